"""Control: `cka_cd` aligned with the teacher's architecture at initialisation; the logits are the real teacher's."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class CkaUntrainedTeacher(ObjectiveMethod):
    alignment_weight: float = 0.01
    temperature: float = 2.0

    def terms(self, problem: Problem) -> list[Term]:
        alignment = CkaAlignment(problem.pairs(), self.alignment_weight, source="untrained_teacher")
        return [Kl(self.temperature), alignment]
