"""Control: `atp_cd` aligned with the teacher's components on other problems; the logits stay in place."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class AtpShuffledTeacher(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share)
        rows = list(range(len(problem.train)))
        problem.rng("shuffled_teacher").shuffle(rows)
        terms = [Kl(self.temperature), CkaAlignment(pairs, self.alignment_weight, permutation=tuple(rows))]
        return problem.fit(terms, top_components(student, self.share))
