"""Control: `head_cd` with λ = 0: cross-entropy alone on the same heads (the parent paper's second row)."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class HeadWeightZero(Method):
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "ablation").heads for model in ("student", "teacher"))
        alignment = CkaAlignment(pair_components(student, teacher, self.share, "importance"), weight=0.0)
        return problem.fit([CrossEntropy(), alignment], top_components(student, self.share, signed=True))
