"""1 − CKA of whole circuits, their components' activations side by side (paper B, 4.3, strategy B; errata C7).

No component has a partner: the student may spread the computation over its heads as it likes. CKA compares spaces of any two
widths, so no probe is needed to bring one into the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdbench.api import Signal, Source, Term, TermInputs
from cdbench.similarity import linear_cka


def global_cka(student: Sequence[Tensor], teacher: Sequence[Tensor], *, debiased: bool) -> Tensor:
    """1 − CKA of [b, d] activations, concatenated to [b, sum of d] on either side."""
    return 1 - linear_cka(torch.cat(list(student), dim=1), torch.cat(list(teacher), dim=1), debiased=debiased)


@dataclass(frozen=True)
class GlobalCka(Term):
    """Aligns the state of the student's circuit with that of the teacher's, at the last prompt token.

    Attributes:
        own, target: sites of the student's and of the teacher's circuit.
        estimator: as in CkaAlignment.
    """

    own: tuple[str, ...]
    target: tuple[str, ...]
    weight: float = 0.01
    estimator: Literal["biased", "debiased"] = "biased"
    source: Source = "teacher"
    name: str = "global_cka"

    @property
    def student_sites(self) -> tuple[str, ...]:
        return self.own

    @property
    def signals(self) -> tuple[Signal, ...]:
        return tuple(Signal(site, source=self.source) for site in self.target)

    def loss(self, inputs: TermInputs) -> Tensor:
        student = [inputs.student(site) for site in self.own]
        teacher = [inputs.teacher(signal).float() for signal in self.signals]
        return global_cka(student, teacher, debiased=self.estimator == "debiased")
