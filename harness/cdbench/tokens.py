"""From examples to token tensors. Prompts and answers are encoded apart, right-padded, and never rely on a mask.

Padding stands on the right of a causal model, so no real token ever attends to it: no attention mask is needed, and a
problem's numbers do not depend on its neighbours in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdbench.api import Example
from cdbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORE = -100


@dataclass(frozen=True)
class Encoded:
    """A split as tensors; n problems, t positions, a answer positions (answer tokens, then end of text).

    Attributes:
        ids: [n, t] prompt and answer tokens, right-padded. The final end-of-text token is a target, not an input.
        last_prompt: [n] index of the last prompt token, which predicts the first answer token (errata A5).
        answer_positions: [n, a] index of the token that predicts answer token j; repeats the last one as filler.
        answer_tokens: [n, a] the token to predict there, -100 as filler.
    """

    ids: Tensor
    last_prompt: Tensor
    answer_positions: Tensor
    answer_tokens: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> "Encoded":
        """Some rows, at the split's width."""
        return Encoded(self.ids[rows], self.last_prompt[rows], self.answer_positions[rows], self.answer_tokens[rows])

    def take(self, rows: Tensor) -> "Encoded":
        """Some rows, cut to the longest among them."""
        chosen = self.select(rows)
        width = int(chosen.answer_positions.max()) + 1
        return Encoded(chosen.ids[:, :width], chosen.last_prompt, chosen.answer_positions, chosen.answer_tokens)

    def to(self, device: torch.device) -> "Encoded":
        """The same on another device."""
        return Encoded(*(t.to(device) for t in (self.ids, self.last_prompt, self.answer_positions, self.answer_tokens)))


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", prompt: str) -> list[int]:
    """A prompt's tokens with whatever special tokens the tokenizer itself puts in front (Llama-3: the BOS)."""
    return list(tokenizer(prompt)["input_ids"])


def answer_ids(tokenizer: "PreTrainedTokenizerFast", example: Example) -> list[int]:
    """An answer's tokens, then end of text.

    Raises:
        UserError: the tokenizer joins prompt and answer, so that prompt + answer is not a prefix plus a rest, or has no token
            for a part of them.
    """
    prompt = prompt_ids(tokenizer, example.prompt)
    whole = list(tokenizer(example.prompt + example.answer)["input_ids"])
    answer = whole[len(prompt) :]
    # Not the answer's own tokens: some tokenizers (Llama-2) put a space before the first word of every text.
    if whole[: len(prompt)] != prompt or not answer:
        raise UserError(
            f"this tokenizer joins prompt and answer of {example.prompt + example.answer!r} into other tokens than "
            "the prompt has alone; end the prompt at a token boundary (as '=' is for Llama)"
        )
    plain = list(tokenizer(example.prompt + example.answer, add_special_tokens=False)["input_ids"])
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in plain:
        raise UserError(
            f"this tokenizer has no token for some of {example.prompt + example.answer!r}: it would be read as "
            f"{tokenizer.decode(plain)!r}. The small models read digits, '+', '-', '=' and spaces"
        )
    return [*answer, int(tokenizer.eos_token_id)]


def encode(tokenizer: "PreTrainedTokenizerFast", examples: Sequence[Example]) -> Encoded:
    """Encodes a split.

    Raises:
        UserError: no examples, no end-of-text token, or a tokenizer that joins prompt and answer.
    """
    if not examples:
        raise UserError("cannot encode an empty split")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token; the answer's end could not be learned or seen")
    prompts = [prompt_ids(tokenizer, example.prompt) for example in examples]
    answers = [answer_ids(tokenizer, example) for example in examples]
    filler = int(tokenizer.eos_token_id)
    n, a = len(examples), max(map(len, answers))
    t = max(len(p) + len(x) - 1 for p, x in zip(prompts, answers, strict=True))
    ids = torch.full((n, t), filler)
    positions = torch.zeros((n, a), dtype=torch.long)
    tokens = torch.full((n, a), IGNORE)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        row = prompt + answer[:-1]
        ids[i, : len(row)] = torch.tensor(row)
        first = len(prompt) - 1
        positions[i] = torch.arange(first, first + a).clamp(max=len(row) - 1)
        tokens[i, : len(answer)] = torch.tensor(answer)
    return Encoded(ids, positions[:, 0].clone(), positions, tokens)
