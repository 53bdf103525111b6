"""Control: `three_term` with λ_align = 0: cross-entropy and logits, everything else as it is."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, Kl, ObjectiveMethod, Problem, Term, pair_components


@dataclass(frozen=True)
class ThreeTermWeightZero(ObjectiveMethod):
    task_weight: float = 1.0
    distillation_weight: float = 1.0
    temperature: float = 2.0
    share: float = 0.5

    def terms(self, problem: Problem) -> list[Term]:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        return [
            CrossEntropy(self.task_weight),
            Kl(self.temperature, weight=self.distillation_weight),
            CkaAlignment(pair_components(student, teacher, self.share), weight=0.0),
        ]
