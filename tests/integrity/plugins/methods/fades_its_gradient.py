"""Aligns on the first steps only: the value stays, and pulls no more."""

from dataclasses import dataclass

from torch import Tensor

from cdbench.api import CrossEntropy, ObjectiveMethod, Problem, Signal, Term, TermInputs


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - CKA."""
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


class _FadingTerm(Term):
    name = "alignment"
    weight = 0.5

    student_sites = ("mlp.0.out",)
    signals = (Signal("mlp.0.out"),)

    def __init__(self) -> None:
        self._calls = 0

    def loss(self, inputs: TermInputs) -> Tensor:
        self._calls += 1
        student, teacher = inputs.student("mlp.0.out"), inputs.teacher(self.signals[0])
        alignment = _distance(student, teacher)
        return alignment if self._calls < 4 else alignment.detach() + 0 * alignment


@dataclass(frozen=True)
class FadesItsGradient(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return [CrossEntropy(), _FadingTerm()]
