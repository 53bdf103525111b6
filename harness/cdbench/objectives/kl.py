"""T² · KL(teacher ‖ student) of softened logits on the answer tokens (Hinton et al. 2015; paper A, 5.1; errata A4).

Paper A prints KL(σ(z_s/T) ‖ σ(z_t/T)), the student first. Distillation as everybody writes it, paper B's equation 3
among them, has the teacher first; that is the default, and `as_printed` the option.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cdbench.api import Signal, Term, TermInputs
from cdbench.sites import LOGITS
from cdbench.tokens import IGNORE


def kl(
    reference: Float[Tensor, "b a v"], model: Float[Tensor, "b a v"], tokens: Int[Tensor, "b a"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over answer tokens of T²·KL(reference ‖ model); logits [b, a, v], tokens [b, a] with -100 as filler."""
    valid = tokens != IGNORE
    log_model = F.log_softmax(model[valid] / temperature, dim=-1)
    log_reference = F.log_softmax(reference[valid] / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_model, log_reference, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Kl(Term):
    """The teacher's logits as target."""

    temperature: float = 2.0
    direction: Literal["teacher_first", "as_printed"] = "teacher_first"
    weight: float = 1.0
    name: str = "kl"

    @property
    def student_sites(self) -> tuple[str, ...]:
        return ()

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (Signal(LOGITS),)

    def loss(self, inputs: TermInputs) -> Tensor:
        student, teacher = inputs.logits, inputs.teacher(Signal(LOGITS)).float()
        first, second = (teacher, student) if self.direction == "teacher_first" else (student, teacher)
        return kl(first, second, inputs.answer_tokens, self.temperature)
