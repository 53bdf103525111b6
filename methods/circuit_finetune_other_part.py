"""Control: `circuit_finetune` of as many heads and MLPs that are not the circuit's, drawn while there are such."""

from dataclasses import dataclass
from typing import Literal

from cdbench.api import CrossEntropy, Method, Outcome, Problem, other_components, shared_parameters, top_components


@dataclass(frozen=True)
class CircuitFinetuneOtherPart(Method):
    share: float = 0.5
    by: Literal["attribution", "ablation"] = "attribution"

    def run(self, problem: Problem) -> Outcome:
        found = problem.components("student", self.by)
        circuit = top_components(found, self.share)
        part = other_components(circuit, found.sites, problem.rng("other_part"))
        of_circuit = shared_parameters(problem.student, part, circuit)
        trained = problem.fit([CrossEntropy()], part)
        return Outcome(trained.weights, extras={"part": part, "part_of_circuit": of_circuit})
