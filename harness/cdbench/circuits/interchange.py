"""Interchange interventions: does a component carry a variable of the causal model (Geiger et al. 2021; MIB's causal track)?

A component's activations on a base problem's prompt are exchanged for those on a source problem. If the component carries the
variable, the model now answers as the causal model does with the base's operands and the source's value: 27+64 with the carry of
20+61 (none) is 81. Accuracy is the share of pairs with exactly that answer. Pairs whose expected answer is the base's own or the
source's are left out: the first would be right without any exchange, the second by copying.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench.api import Example
from cdbench.circuits.arithmetic import Variable, answer_with, operator, value_of
from cdbench.circuits.attribution import QUIETLY, Work
from cdbench.circuits.forward import Forward, Outputs
from cdbench.circuits.patching import exchanged, hits_at
from cdbench.data import Layout, PromptEncoder, layout
from cdbench.errors import UserError
from cdbench.tokens import Encoded, encode, prompt_encoder
from cdbench.zoo import exact_match


@dataclass(frozen=True)
class Interchanges:
    """n base problems with the answer that is expected after the exchange, and their sources' prompts.

    Attributes:
        base: prompt and expected answer as tokens.
        source: [n, t] the source's prompt in the same places, right-padded; equal prompt length pair by pair.
        pairs: (base, source).
        expected: the causal model's answers.
    """

    variable: Variable
    base: Encoded
    source: Tensor
    pairs: tuple[tuple[Example, Example], ...]
    expected: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def take(self, kept: Tensor) -> "Interchanges":
        """Some pairs; `kept` [n] bool."""
        rows = kept.nonzero().flatten()
        some = rows.tolist()
        pairs, expected = tuple(self.pairs[i] for i in some), tuple(self.expected[i] for i in some)
        return Interchanges(self.variable, self.base.select(rows), self.source[rows], pairs, expected)


def make_interchanges(
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    variable: Variable,
    rng: Random,
    *,
    same: bool = False,
    tokens: PromptEncoder | None = None,
) -> Interchanges:
    """Draws for each problem a source of the same layout (tokens, and digits by operand) that has another value of the variable.

    `same`: a source that has the same value and another answer, as a control. What carries the variable and nothing else leaves
    the base's answer as it is. `tokens`: what the tokenizer makes of a prompt, where the caller keeps it for the next variable.

    Raises:
        UserError: problems that are neither sums nor differences, or none has a source.
    """
    pools: dict[tuple[Layout, str], list[tuple[Example, int]]] = {}
    tokens = tokens or prompt_encoder(tokenizer, examples)
    keys = [(layout(e, tokens), operator(e)) for e in examples]
    for example, (shape, op) in zip(examples, keys, strict=True):
        a, b = example.operands
        pools.setdefault((shape, op), []).append((example, value_of(a, b, op, variable)))
    pairs, expected = [], []
    for example, (shape, op) in zip(examples, keys, strict=True):
        a, b = example.operands
        own = value_of(a, b, op, variable)
        answers = {value: str(answer_with(a, b, op, variable, value)) for value in range(10) if (value == own) == same}
        shows = {value: answer for value, answer in answers.items() if same or answer != example.answer}
        fitting = [
            (other, value)
            for other, value in pools[shape, op]
            if value in shows and other.answer not in (example.answer, shows[value])
        ]
        if fitting:
            chosen, value = rng.choice(fitting)
            pairs.append((example, chosen))
            expected.append(shows[value])
    if not pairs:
        what = "have the same" if same else "differ in"
        raise UserError(f"no two of {len(examples)} problems {what} '{variable}' so that an exchange would show")
    targets = [Example(base.prompt, text, base.operands) for (base, _), text in zip(pairs, expected, strict=True)]
    base = encode(tokenizer, targets)
    source = torch.full_like(base.ids, int(tokenizer.eos_token_id))
    for row, (_, other) in enumerate(pairs):
        ids = tokens(other.prompt)
        source[row, : len(ids)] = torch.tensor(ids)
    return Interchanges(variable, base, source, tuple(pairs), tuple(expected))


def solved(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> list[Example]:
    """The problems that the model answers right: an exchange between others would count the model's own errors (as in MIB)."""
    right = exact_match(model, encode(tokenizer, examples)).tolist()
    return [example for example, known in zip(examples, right, strict=True) if known]


@torch.no_grad()
def interchange_hits(
    model: LlamaForCausalLM,
    problems: Interchanges,
    nodes: Sequence[int],
    work: Work = QUIETLY,
) -> Tensor:
    """Whether the model gives the expected answer with each node's prompt activations exchanged, [n, len(nodes)] bool.

    Raises:
        UserError: the model is not a Llama or in training mode.
    """
    forward = Forward(model)
    place = {node: column for column, node in enumerate(nodes)}
    parts, done = [], 0
    for rows in torch.arange(len(problems)).split(work.batch_size):
        batch = problems.base.select(rows).to(model.device)
        trace = forward.trace(forward.embed(batch.ids))
        other = forward.trace(forward.embed(problems.source[rows].to(model.device))).outputs
        prompt = torch.arange(batch.ids.shape[1], device=model.device)[None] <= batch.last_prompt[:, None]
        stand_in = _on_prompt(prompt, other, trace.outputs)
        found = torch.zeros(len(batch), len(place), dtype=torch.bool)
        for some, ends in exchanged(forward, trace, stand_in, nodes, batch.answer_positions):
            for node, end in zip(some, ends, strict=True):
                found[:, place[node]] = hits_at(forward, end, batch).cpu()
        parts.append(found)
        done += len(batch)
        work.progress(done, len(problems))
    return torch.cat(parts)


def _on_prompt(prompt: Tensor, source: Outputs, base: Outputs) -> Outputs:
    """The source's outputs on the prompt [b, t] bool, the base's own where the answer stands."""
    wide, heads = prompt[:, :, None], prompt[:, :, None, None]
    return Outputs(
        torch.where(wide, source.embedding, base.embedding),
        [torch.where(heads, x, y) for x, y in zip(source.heads, base.heads, strict=True)],
        [torch.where(wide, x, y) for x, y in zip(source.mlps, base.mlps, strict=True)],
    )


def best_node(hits: Tensor) -> tuple[int, Tensor]:
    """The column with most hits on the first half of the problems, and its hits on the second half.

    Chosen on one half and judged on the other, as the best of many columns would flatter itself. Equal: the first.
    """
    half = len(hits) // 2
    best = int(hits[:half].sum(0).argmax())
    return best, hits[half:, best]
