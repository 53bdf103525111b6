"""Supervised circuit distillation: CE + λ Σ (1 − CKA) (paper A, 4.1.4 and Appendix G; errata A2)."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class SupervisedCircuitDistillation(ObjectiveMethod):
    alignment_weight: float = 0.01

    def terms(self, problem: Problem) -> list[Term]:
        return [CrossEntropy(), CkaAlignment(problem.pairs(), self.alignment_weight)]
