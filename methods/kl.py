"""Distillation of the teacher's logits (paper A, Table 1 and 5.1, first term)."""

from dataclasses import dataclass
from typing import Literal

from cdbench.api import Kl, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class KlDistillation(ObjectiveMethod):
    temperature: float = 2.0
    direction: Literal["teacher_first", "as_printed"] = "teacher_first"

    def terms(self, problem: Problem) -> list[Term]:
        return [Kl(self.temperature, self.direction)]
