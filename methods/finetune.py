"""Fine-tuning on the gold answers (paper A, 4.1.1; errata A3)."""

from dataclasses import dataclass

from cdbench.api import CrossEntropy, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class FineTune(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return [CrossEntropy()]
