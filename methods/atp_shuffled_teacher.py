"""Control: `atp_cd` aligned with the teacher's components on other problems; the logits stay in place."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, Method, Outcome, Problem, pair_components, shuffled_rows, top_components


@dataclass(frozen=True)
class AtpShuffledTeacher(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share)
        terms = [Kl(self.temperature), CkaAlignment(pairs, self.alignment_weight, permutation=shuffled_rows(problem))]
        return problem.fit(terms, top_components(student, self.share))
