"""Circuit distillation of whole circuits: T²·KL + λ (1 − CKA) of their concatenated states (paper B, 4.3 B; errata C7)."""

from dataclasses import dataclass
from typing import Literal

from cdbench.api import GlobalCka, Kl, Method, Outcome, Problem, make_probe, top_components


@dataclass(frozen=True)
class GlobalCircuitDistillation(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5
    probe: bool = False
    train: Literal["circuit", "all"] = "circuit"

    def run(self, problem: Problem) -> Outcome:
        own, target = (
            top_components(problem.components(model, "attribution"), self.share) for model in ("student", "teacher")
        )
        probe = make_probe(problem, own) if self.probe else None
        terms = [Kl(self.temperature), GlobalCka(own, target, self.alignment_weight, probe=probe)]
        trained = problem.fit(terms, own if self.train == "circuit" else ())
        return Outcome(trained.weights, extras={"circuit": own, "teacher_circuit": target})
