"""Distillation of the teacher's logits (paper A, Table 1 and 5.1, first term)."""

from dataclasses import dataclass

from cdbench.api import Kl, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class KlDistillation(ObjectiveMethod):
    temperature: float = 2.0

    def terms(self, problem: Problem) -> list[Term]:
        return [Kl(self.temperature)]
