"""Control: `three_term` aligned with the teacher's architecture at initialisation; the logits are the real teacher's."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, Kl, ObjectiveMethod, Problem, Term, pair_components


@dataclass(frozen=True)
class ThreeTermUntrainedTeacher(ObjectiveMethod):
    task_weight: float = 1.0
    distillation_weight: float = 1.0
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def terms(self, problem: Problem) -> list[Term]:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share)
        return [
            CrossEntropy(self.task_weight),
            Kl(self.temperature, weight=self.distillation_weight),
            CkaAlignment(pairs, self.alignment_weight, source="untrained_teacher"),
        ]
