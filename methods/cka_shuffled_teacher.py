"""Control: `cka_cd` aligned with the teacher's activations on other problems; the logits stay in place."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class CkaShuffledTeacher(ObjectiveMethod):
    alignment_weight: float = 0.01
    temperature: float = 2.0

    def terms(self, problem: Problem) -> list[Term]:
        rows = list(range(len(problem.train)))
        problem.rng("shuffled_teacher").shuffle(rows)
        alignment = CkaAlignment(problem.pairs(), self.alignment_weight, permutation=tuple(rows))
        return [Kl(self.temperature), alignment]
