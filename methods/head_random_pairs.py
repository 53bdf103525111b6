"""Control: `head_cd` with the partners dealt out anew at random, none kept (the parent paper's third row)."""

from dataclasses import dataclass

from cdbench.api import (
    CkaAlignment,
    CrossEntropy,
    Method,
    Outcome,
    Problem,
    pair_components,
    random_partners,
    top_components,
)


@dataclass(frozen=True)
class HeadRandomPairs(Method):
    alignment_weight: float = 0.01
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "ablation").heads for model in ("student", "teacher"))
        functional = pair_components(student, teacher, self.share, "importance")
        pairs = random_partners(functional, teacher, problem.rng("random_pairs"))
        terms = [CrossEntropy(), CkaAlignment(pairs, self.alignment_weight)]
        return problem.fit(terms, top_components(student, self.share, signed=True))
