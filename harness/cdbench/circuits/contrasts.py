"""Pairs of problems that differ in what is to be located: the clean prompt, its counterfactual, and the two next tokens.

The metric is MIB's: logit(correct) − logit(counterfactual answer) at the last position. Answers of several tokens are contrasted
at the first token in which the two differ; what they share before it stands after both prompts. So 46 and 41 are contrasted as
"6" against "1" after a "4", and 146 and 46 as "1" against "4".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cdbench.api import Example
from cdbench.errors import UserError
from cdbench.tokens import all_ids

Pair = tuple[Example, Example]


@dataclass(frozen=True)
class Contrasts:
    """n pairs as tensors, right-padded to t positions.

    Attributes:
        clean, corrupt: [n, t] token ids of the problem and of its counterfactual; of equal length pair by pair.
        last: [n] the position whose logits are read; nothing to its right matters.
        prompt_last: [n] the last token of the prompt itself.
        correct, other: [n] the next token of the clean problem and of the counterfactual.
        pairs: the problems.
        without_contrast: how many pairs were dropped because both have the same answer.
        problem: [n] which problem a pair asks, 0 and up, where one is asked in several wordings: its pairs stand together.
            None: each pair is a problem of its own.
    """

    clean: Tensor
    corrupt: Tensor
    last: Tensor
    prompt_last: Tensor
    correct: Tensor
    other: Tensor
    pairs: tuple[Pair, ...]
    without_contrast: int = 0
    problem: Tensor | None = None

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def problems(self) -> Tensor:
        """[n] which problem each pair asks. Drawing problems anew is drawing these: wordings of one say one thing."""
        return torch.arange(len(self)) if self.problem is None else self.problem

    def take(self, rows: Tensor, device: torch.device | None = None) -> "Contrasts":
        """Some pairs, cut to the longest among them, on a device."""
        width = int(self.last[rows].max()) + 1
        return Contrasts(
            clean=self.clean[rows, :width].to(device),
            corrupt=self.corrupt[rows, :width].to(device),
            last=self.last[rows].to(device),
            prompt_last=self.prompt_last[rows].to(device),
            correct=self.correct[rows].to(device),
            other=self.other[rows].to(device),
            pairs=tuple(self.pairs[i] for i in rows.tolist()),
            problem=None if self.problem is None else self.problem[rows].unique_consecutive(return_inverse=True)[1],
        )

    def batches(self, size: int, device: torch.device | None = None) -> "list[Contrasts]":
        """All pairs in order, `size` at a time."""
        return [self.take(rows, device) for rows in torch.arange(len(self)).split(size)]

    def difference(self, logits: Tensor) -> Tensor:
        """The metric: [n, vocabulary] logits at `last` -> [n] logit(correct) − logit(other)."""
        rows = torch.arange(len(self), device=logits.device)
        return logits[rows, self.correct] - logits[rows, self.other]


def by_operands(contrasts: Contrasts) -> Contrasts:
    """The same, pairs that follow each other and ask about the same two numbers, in whichever order, counted as one problem."""
    keys = [frozenset(clean.operands) for clean, _ in contrasts.pairs]
    fresh = [i == 0 or key != keys[i - 1] for i, key in enumerate(keys)]
    return replace(contrasts, problem=torch.tensor(fresh).cumsum(0) - 1)


def make_contrasts(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> Contrasts:
    """Encodes pairs of a problem and its counterfactual. Pairs with equal answers have no contrast: dropped and counted.

    Raises:
        UserError: the two prompts of a pair are of different token length, or no pair is left.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token; an answer that begins another could not be told from it"
        )
    kept, rows = [], []
    sides = (all_ids(tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
    for (clean, corrupt), (first, own), (second, others) in zip(pairs, *sides, strict=True):
        if len(first) != len(second):
            raise UserError(
                f"{clean.prompt!r} has {len(first)} tokens and its counterfactual {corrupt.prompt!r} {len(second)}; "
                "activations can be exchanged between prompts of equal length only"
            )
        if own == others:
            continue
        shared = next(i for i, (a, b) in enumerate(zip(own, others, strict=False)) if a != b)
        prefix = own[:shared]
        rows.append((first + prefix, second + prefix, len(first) - 1, own[shared], others[shared]))
        kept.append((clean, corrupt))
    if not kept:
        raise UserError(f"none of {len(pairs)} pairs has two answers that differ: there is no contrast to attribute")
    width = max(len(row[0]) for row in rows)
    filler = int(tokenizer.eos_token_id)
    padded = torch.tensor([[ids + [filler] * (width - len(ids)) for ids in row[:2]] for row in rows])
    return Contrasts(
        clean=padded[:, 0],
        corrupt=padded[:, 1],
        last=torch.tensor([len(row[0]) - 1 for row in rows]),
        prompt_last=torch.tensor([row[2] for row in rows]),
        correct=torch.tensor([row[3] for row in rows]),
        other=torch.tensor([row[4] for row in rows]),
        pairs=tuple(kept),
        without_contrast=len(pairs) - len(kept),
    )
