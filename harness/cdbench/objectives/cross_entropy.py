"""Cross-entropy on the answer tokens and the end of text (paper A, 4.1.4 and Appendix G; errata A4)."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cdbench.api import Signal, Term, TermInputs
from cdbench.tokens import IGNORE


def cross_entropy(logits: Float[Tensor, "b a v"], tokens: Int[Tensor, "b a"]) -> Float[Tensor, ""]:
    """Mean over answer tokens; logits [b, a, v], tokens [b, a] with -100 as filler."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=IGNORE)


@dataclass(frozen=True)
class CrossEntropy(Term):
    """The gold answer as target."""

    weight: float = 1.0
    name: str = "cross_entropy"

    @property
    def student_sites(self) -> tuple[str, ...]:
        return ()

    @property
    def signals(self) -> tuple[Signal, ...]:
        return ()

    def loss(self, inputs: TermInputs) -> Tensor:
        return cross_entropy(inputs.logits, inputs.answer_tokens)
