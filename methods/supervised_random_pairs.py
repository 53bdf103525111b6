"""Control: `supervised_cd` with each student layer paired with a random teacher layer (the parent paper's third row)."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class SupervisedRandomPairs(ObjectiveMethod):
    alignment_weight: float = 0.01

    def terms(self, problem: Problem) -> list[Term]:
        rng = problem.rng("random_pairs")
        layers = range(problem.teacher_layers)
        # A teacher of one layer leaves no other partner.
        pairs = [(s, rng.choice([x for x in layers if x != t] or [t])) for s, t in problem.pairs()]
        return [CrossEntropy(), CkaAlignment(tuple(pairs), self.alignment_weight)]
