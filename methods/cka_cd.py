"""Circuit distillation: T²·KL + λ Σ (1 − CKA) over functionally paired MLP layers (paper A, 5.1; errata A2, A4, A5)."""

from dataclasses import dataclass
from typing import Literal

from cdbench.api import CkaAlignment, Kl, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class CkaCircuitDistillation(ObjectiveMethod):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    direction: Literal["teacher_first", "as_printed"] = "teacher_first"
    reduction: Literal["sum", "mean"] = "sum"
    estimator: Literal["biased", "debiased"] = "biased"
    position: Literal["last_prompt", "all"] = "last_prompt"

    def terms(self, problem: Problem) -> list[Term]:
        alignment = CkaAlignment(problem.pairs(), self.alignment_weight, self.reduction, self.estimator, self.position)
        return [Kl(self.temperature, self.direction), alignment]
