"""Control: `cka_cd` aligned with the teacher's activations on other problems; the logits stay in place."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, ObjectiveMethod, Problem, Term, shuffled_rows


@dataclass(frozen=True)
class CkaShuffledTeacher(ObjectiveMethod):
    alignment_weight: float = 0.01
    temperature: float = 2.0

    def terms(self, problem: Problem) -> list[Term]:
        alignment = CkaAlignment(problem.pairs(), self.alignment_weight, permutation=shuffled_rows(problem))
        return [Kl(self.temperature), alignment]
