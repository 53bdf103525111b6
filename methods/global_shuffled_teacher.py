"""Control: `global_cd` aligned with the teacher's circuit on other problems; the logits stay in place."""

from dataclasses import dataclass

from cdbench.api import GlobalCka, Kl, Method, Outcome, Problem, shuffled_rows, top_components


@dataclass(frozen=True)
class GlobalShuffledTeacher(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        own, target = (
            top_components(problem.components(model, "attribution"), self.share) for model in ("student", "teacher")
        )
        alignment = GlobalCka(own, target, self.alignment_weight, permutation=shuffled_rows(problem))
        return problem.fit([Kl(self.temperature), alignment], own)
