"""All three terms: λ_task·CE + λ_KD·T²·KL + λ_align Σ (1 − CKA) on components paired by function (paper B, equation 3)."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, Kl, ObjectiveMethod, Problem, Term, pair_components


@dataclass(frozen=True)
class ThreeTerm(ObjectiveMethod):
    task_weight: float = 1.0
    distillation_weight: float = 1.0
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def terms(self, problem: Problem) -> list[Term]:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        return [
            CrossEntropy(self.task_weight),
            Kl(self.temperature, weight=self.distillation_weight),
            CkaAlignment(pair_components(student, teacher, self.share), self.alignment_weight),
        ]
