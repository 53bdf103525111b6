"""Σ (1 − CKA) over paired layers or components at the last prompt token (paper A, 4.1.4; paper B, 3.3; errata A4, A5, A8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdbench.api import Position, Problem, Signal, Source, Term, TermInputs
from cdbench.errors import RunFailed
from cdbench.similarity import linear_cka
from cdbench.sites import mlp_out

Place = int | str
"""The number of a layer, or a site."""


def _site(place: Place) -> str:
    return mlp_out(place) if isinstance(place, int) else place


def shuffled_rows(problem: Problem) -> tuple[int, ...]:
    """A `permutation` of the training problems, another for each seed: the control that breaks the correspondence of samples."""
    rows = list(range(len(problem.train)))
    problem.rng("shuffled_teacher").shuffle(rows)
    return tuple(rows)


def teacher_rows(inputs: TermInputs, permutation: Sequence[int]) -> Tensor:
    """The training problems whose teacher rows stand beside a batch: its own, or those that `permutation` has for them."""
    return torch.tensor(permutation)[inputs.rows] if permutation else inputs.rows


def cka_alignment(
    pairs: Sequence[tuple[Tensor, Tensor]], *, debiased: bool, reduction: Literal["sum", "mean"]
) -> Tensor:
    """Sum (as printed) or mean of 1 − CKA over pairs of [b, d_student], [b, d_teacher].

    Raises:
        RunFailed: no pairs.
    """
    if not pairs:
        raise RunFailed(
            "the alignment has no pairs: no two layers or components of student and teacher belong together"
        )
    losses = torch.stack([1 - linear_cka(x, y, debiased=debiased) for x, y in pairs])
    return losses.sum() if reduction == "sum" else losses.mean()


@dataclass(frozen=True)
class CkaAlignment(Term):
    """Aligns student layers or components with the teacher's.

    Attributes:
        pairs: (student's, teacher's): sites ("attn.0.head.3", "mlp.0.out"), or numbers of layers, whose MLP outputs are meant.
        estimator: biased as printed; at a batch of 32 it is strongly biased upward, but it trains (errata A8).
        source: which frozen model is the target; "untrained_teacher" is a control.
        permutation: [n] other training problem whose teacher row stands in for each problem's own: the control that
            breaks the correspondence of samples. Empty for none.
    """

    pairs: tuple[tuple[Place, Place], ...]
    weight: float = 0.01
    reduction: Literal["sum", "mean"] = "sum"
    estimator: Literal["biased", "debiased"] = "biased"
    position: Position = "last_prompt"
    source: Source = "teacher"
    permutation: tuple[int, ...] = ()
    name: str = "cka"

    @property
    def student_sites(self) -> tuple[str, ...]:
        return tuple(_site(s) for s, _ in self.pairs)

    @property
    def signals(self) -> tuple[Signal, ...]:
        return tuple(self._signal(t) for _, t in self.pairs)

    def _signal(self, place: Place) -> Signal:
        return Signal(_site(place), self.position, self.source)

    def loss(self, inputs: TermInputs) -> Tensor:
        rows = teacher_rows(inputs, self.permutation)
        activations = [
            (
                inputs.student(_site(s), self.position).flatten(0, -2),
                inputs.teacher(self._signal(t), rows).float().flatten(0, -2),
            )
            for s, t in self.pairs
        ]
        return cka_alignment(activations, debiased=self.estimator == "debiased", reduction=self.reduction)
