"""Control: `atp_cd` with λ = 0: distillation of logits into the same part of the student, the alignment only measured."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class AtpWeightZero(Method):
    temperature: float = 2.0
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        alignment = CkaAlignment(pair_components(student, teacher, self.share), weight=0.0)
        return problem.fit([Kl(self.temperature), alignment], top_components(student, self.share))
