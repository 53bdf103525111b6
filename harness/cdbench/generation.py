"""Greedy continuations: of prompts, of problems, and a teacher's own worked solutions."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench.api import Example, Solution
from cdbench.circuits.solutions import work_out
from cdbench.errors import UserError
from cdbench.predictions import WORKED, WORKED_TOKENS, WORKS, score
from cdbench.tokens import all_ids, all_prompt_ids

SPARE_TOKENS = 2
_SHOWN = 3
_TRIED = 32


@torch.inference_mode()
def continuations(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], budget: int, batch_size: int
) -> list[str]:
    """At most `budget` tokens after each prompt, in order; stops at end of text.

    Prompts of equal token length form a batch, so nothing is padded.
    """
    tokens = all_prompt_ids(tokenizer, prompts)
    texts = [""] * len(prompts)
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(tokens):
        by_length.setdefault(len(ids), []).append(i)
    for _, indices in sorted(by_length.items()):
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            batch = torch.tensor([tokens[i] for i in chunk], device=model.device)
            for i, row in zip(chunk, _greedy(model, batch, budget, int(tokenizer.eos_token_id)), strict=True):
                texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
    return texts


def _greedy(model: LlamaForCausalLM, ids: Tensor, budget: int, eos: int) -> list[list[int]]:
    produced, cache = [], None
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(budget):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        chosen = output.logits[:, -1].float().argmax(-1)
        produced.append(chosen)
        done |= chosen == eos
        if bool(done.all()):
            break
        ids = chosen[:, None]
    rows = torch.stack(produced, dim=1).tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], batch_size: int
) -> list[str]:
    """What a model answers to problems, in order: to end of text, or two tokens beyond the longest gold answer.

    Whoever has begun by then to work its problem out is given 64 tokens, or more if the longest worked solution takes more.
    """
    prompts = [example.prompt for example in examples]
    texts = continuations(model, tokenizer, prompts, _budget(tokenizer, examples), batch_size)
    works = [i for i, text in enumerate(texts) if re.search(WORKS, text)]
    if works:
        longer = max(WORKED_TOKENS, _worked_budget(tokenizer, examples))
        again = continuations(model, tokenizer, [prompts[i] for i in works], longer, batch_size)
        for i, text in zip(works, again, strict=True):
            texts[i] = text
    return texts


def _budget(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> int:
    return max(len(answer) for _, answer in all_ids(tokenizer, examples)) - 1 + SPARE_TOKENS


def _worked_budget(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> int:
    """0 where the problems cannot be worked out by columns, or the tokenizer cannot write that."""
    try:
        return _budget(tokenizer, [Example(each.prompt, work_out(each), each.operands) for each in examples])
    except UserError:
        return 0


def solutions(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], batch_size: int
) -> list[Solution]:
    """A worked solution of each problem: the teacher's own where it writes one that ends in the right answer.

    It is asked with the prompt alone, and after the first three problems worked out; which of the two it solves more of the next
    32 by is how it is asked for all but those three. The others' solutions are written by the rule of `work_out`.

    Raises:
        UserError: a problem that cannot be worked out by columns.
    """
    written = [work_out(example) for example in examples]
    shown = "".join(
        f"{each.prompt}{text}{_separator(tokenizer)}"
        for each, text in zip(examples[:_SHOWN], written[:_SHOWN], strict=True)
    )
    budget = _budget(tokenizer, [Example(e.prompt, w, e.operands) for e, w in zip(examples, written, strict=True)])

    def own(before: str, some: Sequence[Example]) -> list[str | None]:
        texts = continuations(model, tokenizer, [before + each.prompt for each in some], budget, batch_size)
        return [_own(each, text) for each, text in zip(some, texts, strict=True)]

    asked = examples[_SHOWN:]  # what was shown could be copied
    tried = {before: sum(text is not None for text in own(before, asked[:_TRIED])) for before in ("", shown)}
    best = max(tried, key=lambda before: tried[before])
    answers = own(best, asked) if tried[best] else [None] * len(asked)
    found = [*[None] * (len(examples) - len(asked)), *answers]
    return [Solution(a or b, by_teacher=a is not None) for a, b in zip(found, written, strict=True)]


def _separator(tokenizer: PreTrainedTokenizerFast) -> str:
    """A line's end, or a space where the tokenizer knows no lines."""
    return " " if tokenizer.unk_token_id in tokenizer("\n", add_special_tokens=False)["input_ids"] else "\n"


def _own(example: Example, text: str) -> str | None:
    """The worked solution that a continuation begins with, if its answer is right."""
    match = re.search(WORKED, text)
    return match[0].strip() if match and score(example.prompt, example.answer, match[0]).correct else None
