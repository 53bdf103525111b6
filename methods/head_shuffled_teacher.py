"""Control: `head_cd` aligned with the teacher's heads on other problems."""

from dataclasses import dataclass

from cdbench.api import (
    CkaAlignment,
    CrossEntropy,
    Method,
    Outcome,
    Problem,
    pair_components,
    shuffled_rows,
    top_components,
)


@dataclass(frozen=True)
class HeadShuffledTeacher(Method):
    alignment_weight: float = 0.01
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "ablation").heads for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share, "importance")
        terms = [CrossEntropy(), CkaAlignment(pairs, self.alignment_weight, permutation=shuffled_rows(problem))]
        return problem.fit(terms, top_components(student, self.share, signed=True))
