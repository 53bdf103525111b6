"""From examples to token tensors. Prompts and answers are encoded apart, right-padded, and never rely on a mask.

Padding stands on the right of a causal model, so no real token ever attends to it: no attention mask is needed, and a
problem's numbers do not depend on its neighbours in the batch.
"""

from collections.abc import Callable, Sequence
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
    return all_prompt_ids(tokenizer, [prompt])[0]


def all_prompt_ids(tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str]) -> list[list[int]]:
    """The same of many prompts: one call, as each costs much more than a prompt."""
    found: list[list[int]] = tokenizer(list(prompts))["input_ids"] if prompts else []
    return found


def prompt_encoder(tokenizer: "PreTrainedTokenizerFast", examples: Sequence[Example]) -> Callable[[str], list[int]]:
    """`prompt_ids`, made once for the prompts of `examples`; of any other text when it is first asked for."""
    prompts = [example.prompt for example in examples]
    known = dict(zip(prompts, all_prompt_ids(tokenizer, prompts), strict=True))

    def encoded(text: str) -> list[int]:
        if text not in known:
            known[text] = prompt_ids(tokenizer, text)
        return known[text]

    return encoded


def answer_ids(tokenizer: "PreTrainedTokenizerFast", example: Example) -> list[int]:
    """An answer's tokens, then end of text.

    Raises:
        UserError: the tokenizer joins prompt and answer, so that prompt + answer is not a prefix plus a rest, or has no token
            for a part of them.
    """
    return all_ids(tokenizer, [example])[0][1]


def all_ids(tokenizer: "PreTrainedTokenizerFast", examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Of each example `prompt_ids` and `answer_ids`.

    Raises:
        UserError: as `answer_ids`.
    """
    texts = [example.prompt + example.answer for example in examples]
    prompts, wholes = (all_prompt_ids(tokenizer, some) for some in ([example.prompt for example in examples], texts))
    for text, prompt, whole in zip(texts, prompts, wholes, strict=True):
        # Not the answer's own tokens: some tokenizers (Llama-2) put a space before the first word of every text.
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise UserError(
                f"this tokenizer joins prompt and answer of {text!r} into other tokens than "
                "the prompt has alone; end the prompt at a token boundary (as '=' is for Llama)"
            )
    unknown = tokenizer.unk_token_id
    # What the tokenizer itself puts in front may be the unknown token, too: only then is there more to ask.
    suspects = (
        [text for text, whole in zip(texts, wholes, strict=True) if unknown in whole] if unknown is not None else []
    )
    if suspects:
        for text, plain in zip(suspects, tokenizer(suspects, add_special_tokens=False)["input_ids"], strict=True):
            if unknown in plain:
                raise UserError(
                    f"this tokenizer has no token for some of {text!r}: it would be read as "
                    f"{tokenizer.decode(plain)!r}. The small models read digits, '+', '-', '=' and spaces"
                )
    end = int(tokenizer.eos_token_id)
    return [(prompt, [*whole[len(prompt) :], end]) for prompt, whole in zip(prompts, wholes, strict=True)]


def encode(tokenizer: "PreTrainedTokenizerFast", examples: Sequence[Example]) -> Encoded:
    """Encodes a split.

    Raises:
        UserError: no examples, no end-of-text token, or a tokenizer that joins prompt and answer.
    """
    if not examples:
        raise UserError("cannot encode an empty split")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token; the answer's end could not be learned or seen")
    prompts, answers = zip(*all_ids(tokenizer, examples), strict=True)
    filler = int(tokenizer.eos_token_id)
    a = max(map(len, answers))
    rows = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    t = max(map(len, rows))
    last = [len(prompt) - 1 for prompt in prompts]
    # Lists, and a tensor at the end: a tensor for each row would cost more than all else here.
    positions = [[min(first + j, len(row) - 1) for j in range(a)] for first, row in zip(last, rows, strict=True)]
    return Encoded(
        torch.tensor([row + [filler] * (t - len(row)) for row in rows]),
        torch.tensor(last),
        torch.tensor(positions),
        torch.tensor([answer + [IGNORE] * (a - len(answer)) for answer in answers]),
    )
