"""Control: `atp_cd` with the partners dealt out anew at random within heads and within MLPs."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, Method, Outcome, Problem, pair_components, random_partners, top_components


@dataclass(frozen=True)
class AtpRandomPairs(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        functional = pair_components(student, teacher, self.share)
        pairs = random_partners(functional, teacher, problem.rng("random_pairs"))
        terms = [Kl(self.temperature), CkaAlignment(pairs, self.alignment_weight)]
        return problem.fit(terms, top_components(student, self.share))
