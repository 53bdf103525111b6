"""Aligns on the first steps only: a schedule takes the weight to zero."""

from dataclasses import dataclass

from torch import Tensor

from cdbench.api import CrossEntropy, ObjectiveMethod, Problem, Signal, Term, TermInputs


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - CKA."""
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


class _ScheduledTerm(Term):
    name = "alignment"
    student_sites = ("mlp.0.out",)
    signals = (Signal("mlp.0.out"),)

    def __init__(self) -> None:
        self._calls = 0

    @property
    def weight(self) -> float:  # type: ignore[override]
        """Half, and soon nothing."""
        return 0.5 if self._calls < 4 else 0.0

    def loss(self, inputs: TermInputs) -> Tensor:
        self._calls += 1
        return _distance(inputs.student("mlp.0.out"), inputs.teacher(self.signals[0]))


@dataclass(frozen=True)
class SchedulesTheWeightToZero(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return [CrossEntropy(), _ScheduledTerm()]
