"""Control: `head_cd` aligned with the teacher's heads on other problems."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class HeadShuffledTeacher(Method):
    alignment_weight: float = 0.01
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "ablation").heads for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share, "importance")
        rows = list(range(len(problem.train)))
        problem.rng("shuffled_teacher").shuffle(rows)
        terms = [CrossEntropy(), CkaAlignment(pairs, self.alignment_weight, permutation=tuple(rows))]
        return problem.fit(terms, top_components(student, self.share))
