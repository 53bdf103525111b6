"""Control: `three_term` with the partners dealt out anew at random within heads and within MLPs."""

from dataclasses import dataclass

from cdbench.api import (
    CkaAlignment,
    CrossEntropy,
    Kl,
    ObjectiveMethod,
    Problem,
    Term,
    pair_components,
    random_partners,
)


@dataclass(frozen=True)
class ThreeTermRandomPairs(ObjectiveMethod):
    task_weight: float = 1.0
    distillation_weight: float = 1.0
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def terms(self, problem: Problem) -> list[Term]:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        functional = pair_components(student, teacher, self.share)
        pairs = random_partners(functional, teacher, problem.rng("random_pairs"))
        return [
            CrossEntropy(self.task_weight),
            Kl(self.temperature, weight=self.distillation_weight),
            CkaAlignment(pairs, self.alignment_weight),
        ]
