"""Control: `circuit_finetune` of as many heads and MLPs that are not the circuit's, drawn while there are such."""

from dataclasses import dataclass
from typing import Literal

from cdbench.api import CrossEntropy, Method, Outcome, Problem, top_components


@dataclass(frozen=True)
class CircuitFinetuneOtherPart(Method):
    share: float = 0.5
    by: Literal["attribution", "ablation"] = "attribution"

    def run(self, problem: Problem) -> Outcome:
        found, rng = problem.components("student", self.by), problem.rng("other_part")
        circuit, drawn = top_components(found, self.share), rng.sample(found.sites, len(found.sites))
        part: list[str] = []
        for kind in ("attn", "mlp"):
            others_first = sorted((site for site in drawn if site.startswith(kind)), key=circuit.__contains__)
            part += others_first[: sum(site.startswith(kind) for site in circuit)]
        trained = problem.fit([CrossEntropy()], part)
        return Outcome(trained.weights, extras={"part": part})
