"""Aligns on the first steps only: the value stays, and pulls no more."""

from dataclasses import dataclass, field

from torch import Tensor

from cdbench.api import CkaAlignment, CrossEntropy, ObjectiveMethod, Problem, Term, TermInputs


@dataclass(frozen=True)
class _FadingTerm(CkaAlignment):
    calls: list[TermInputs] = field(default_factory=list)

    def loss(self, inputs: TermInputs) -> Tensor:
        self.calls.append(inputs)
        alignment = super().loss(inputs)
        return alignment if len(self.calls) < 4 else alignment.detach() + 0 * alignment


@dataclass(frozen=True)
class FadesItsGradient(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return [CrossEntropy(), _FadingTerm(((0, 0),), 0.5, name="alignment")]
