"""The student before training (paper A, Table 1: printed as "Baseline (Fine-tune)", errata A3)."""

from dataclasses import dataclass

from cdbench.api import ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class Base(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return []
