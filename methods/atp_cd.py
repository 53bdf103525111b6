"""Circuit distillation of components: T²·KL + λ Σ (1 − CKA) on heads and MLPs paired by function (paper B, 4.3 A and 4.4)."""

from dataclasses import dataclass
from typing import Literal

from cdbench.api import CkaAlignment, Kl, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class AttributionPatchingDistillation(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5
    pairing: Literal["profile", "importance"] = "profile"
    train: Literal["circuit", "all"] = "circuit"

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share, self.pairing)
        circuit = top_components(student, self.share, signed=self.pairing == "importance")
        terms = [Kl(self.temperature), CkaAlignment(pairs, self.alignment_weight)]
        trained = problem.fit(terms, circuit if self.train == "circuit" else ())
        return Outcome(trained.weights, extras={"component_pairs": pairs, "circuit": circuit})
