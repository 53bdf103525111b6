"""Subnetwork fine-tuning: cross-entropy on the gold answers, training only the student's own circuit (paper B, 4.4)."""

from dataclasses import dataclass
from typing import Literal

from cdbench.api import CrossEntropy, Method, Outcome, Problem, top_components


@dataclass(frozen=True)
class CircuitFinetune(Method):
    share: float = 0.5
    by: Literal["attribution", "ablation"] = "attribution"

    def run(self, problem: Problem) -> Outcome:
        circuit = top_components(problem.components("student", self.by), self.share)
        trained = problem.fit([CrossEntropy()], circuit)
        return Outcome(trained.weights, extras={"circuit": circuit})
