"""What a head looks at, by the role of a token: the tens of the first operand, the plus, the "=" (paper B, 6.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from cdbench.api import Example
from cdbench.circuits.forward import Forward, Part
from cdbench.circuits.graph import Graph
from cdbench.errors import UserError
from cdbench.tokens import all_prompt_ids, prompt_ids

_DIGITS = re.compile(r"\s*(\d+)\s*")
_PLACE = ("ones", "tens", "hundreds", "thousands", "ten thousands")


@dataclass(frozen=True)
class Pattern:
    """Mean attention weights over the prompts of one layout.

    Attributes:
        roles: the name of each position: "op1 tens", "+", "op2 ones", "=".
        prompts: how many prompts have this layout, of how many.
        weights: [layers, heads, t, t], rows (who looks) sum to 1.
    """

    roles: tuple[str, ...]
    prompts: int
    of: int
    weights: Tensor


def roles(tokenizer: PreTrainedTokenizerFast, prompt: str) -> tuple[str, ...]:
    """The role of each token of a prompt. Digits are named by place when a token is one digit, else the number is."""
    texts = [str(tokenizer.decode([token])) for token in prompt_ids(tokenizer, prompt)]
    named: list[str] = []
    operand, run = 0, 0
    for i, text in enumerate(texts):
        match = _DIGITS.fullmatch(text)
        if not match:
            run = 0
            named.append(text.strip() or repr(text))
            continue
        if not run:
            operand += 1
            run = next((j for j in range(i, len(texts)) if not _DIGITS.fullmatch(texts[j])), len(texts)) - i
        single = len(match[1]) == 1
        place = (_PLACE[run - 1] if run <= len(_PLACE) else f"10^{run - 1}") if single else "number"
        named.append(f"op{operand} {place}")
        run -= 1
    return tuple(named)


def top_heads(graph: Graph, sizes: Tensor, count: int) -> dict[str, tuple[int, int]]:
    """The `count` heads of largest size, largest first: name -> layer and head. `sizes` [nodes] are not negative.

    Raises:
        ValueError: fewer than one is asked for, or more than there are.
    """
    if not 1 <= count <= graph.layers * graph.heads:
        raise ValueError(f"the top {count} heads; the model has 1 to {graph.layers * graph.heads} to ask for")
    order = [i for i in sizes.argsort(descending=True, stable=True).tolist() if graph.nodes[i].startswith("a")]
    return {graph.nodes[i]: divmod(i - 1, graph.heads + 1) for i in order[:count]}


@torch.no_grad()
def attention_pattern(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], *, batch_size: int = 100
) -> Pattern:
    """Mean attention of every head over the prompts of the commonest layout (23+45= and 23+5= are two layouts).

    Raises:
        UserError: no examples; the model is not a Llama or in training mode.
    """
    if not examples:
        raise UserError("no problems to look at")
    layouts: dict[tuple[str, ...], list[Example]] = {}
    for example in examples:
        layouts.setdefault(roles(tokenizer, example.prompt), []).append(example)
    layout, chosen = max(layouts.items(), key=lambda item: len(item[1]))
    forward = Forward(model)
    ids = torch.tensor(all_prompt_ids(tokenizer, [example.prompt for example in chosen]))
    total = torch.zeros(forward.graph.layers, forward.graph.heads, len(layout), len(layout), dtype=torch.float64)
    for batch in ids.split(batch_size):
        found: dict[tuple[str, int], Tensor] = {}

        def keep(part: Part, layer: int, value: Tensor, found: dict[tuple[str, int], Tensor] = found) -> Tensor:
            if part in ("query", "key"):
                found[part, layer] = value
            return value

        embedded = forward.embed(batch.to(model.device))
        forward.trace(embedded, keep)
        for layer in range(forward.graph.layers):
            weights = _weights(forward, layer, found["query", layer], found["key", layer], forward.rotary(embedded))
            total[layer] += weights.double().sum(0).cpu()
    return Pattern(layout, len(chosen), len(examples), (total / len(chosen)).float())


def _weights(forward: Forward, layer: int, q: Tensor, k: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """[b, heads, t, t] softmax of rotated queries and keys, causal."""
    first, second = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *rotary)
    scores = (first @ second.transpose(2, 3)).float() * forward.blocks[layer].self_attn.scaling
    t = scores.shape[-1]
    later = torch.ones(t, t, dtype=torch.bool, device=scores.device).triu(1)
    weights: Tensor = scores.masked_fill(later, -torch.inf).softmax(-1)
    return weights
