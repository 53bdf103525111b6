"""1 − CKA of whole circuits, their components' activations side by side (paper B, 4.3, strategy B; errata C7).

No component has a partner: the student may spread the computation over its heads as it likes. CKA compares spaces of any two
widths, so no probe is needed to bring one into the other. With one, the student's circuit is only asked to hold the teacher's
state somewhere in a linear image of it: the probe takes over part of the work, and is thrown away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cdbench.api import Problem, Signal, Source, Term, TermInputs
from cdbench.circuits.components import is_head
from cdbench.objectives.cka_alignment import teacher_rows
from cdbench.similarity import linear_cka

_PROBE_WIDTH = 512


def global_cka(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, debiased: bool, probe: Tensor | None = None
) -> Tensor:
    """1 − CKA of [b, d] activations, concatenated to [b, sum of d] on either side; the student's through `probe`, if any."""
    own = torch.cat(list(student), dim=1)
    return 1 - linear_cka(
        own if probe is None else own.float() @ probe, torch.cat(list(teacher), dim=1), debiased=debiased
    )


def make_probe(problem: Problem, own: Sequence[str]) -> Tensor:
    """A random linear map of the student's circuit state, [d_student, at most 512].

    CKA compares any two widths, and does not see into which corner of a wider space a state is put: 512 dimensions say as much as
    the teacher's own width would, which would be 20 GB of probe for Llama-3.
    """
    config = problem.student.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = sum(head if is_head(site) else config.hidden_size for site in own)
    drawn = torch.randn(width, min(width, _PROBE_WIDTH), generator=problem.generator("probe")) / width**0.5
    probe: Tensor = drawn.to(problem.student.device).requires_grad_()
    return probe


@dataclass(frozen=True)
class GlobalCka(Term):
    """Aligns the state of the student's circuit with that of the teacher's, at the last prompt token.

    Attributes:
        own, target: sites of the student's and of the teacher's circuit.
        estimator, source, permutation: as in CkaAlignment.
        probe: what the student's state is mapped by first (`make_probe`), trained along and discarded; None for nothing.
    """

    own: tuple[str, ...]
    target: tuple[str, ...]
    weight: float = 0.01
    estimator: Literal["biased", "debiased"] = "biased"
    source: Source = "teacher"
    permutation: tuple[int, ...] = ()
    probe: Tensor | None = field(default=None, compare=False)
    name: str = "global_cka"

    @property
    def student_sites(self) -> tuple[str, ...]:
        return self.own

    @property
    def signals(self) -> tuple[Signal, ...]:
        return tuple(Signal(site, source=self.source) for site in self.target)

    @property
    def learned(self) -> tuple[Tensor, ...]:
        return () if self.probe is None else (self.probe,)

    def loss(self, inputs: TermInputs) -> Tensor:
        rows = teacher_rows(inputs, self.permutation)
        student = [inputs.student(site) for site in self.own]
        teacher = [inputs.teacher(signal, rows).float() for signal in self.signals]
        return global_cka(student, teacher, debiased=self.estimator == "debiased", probe=self.probe)
