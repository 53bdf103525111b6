"""Exchanging single nodes for something else, exactly, and going on from there: activation patching, mean ablation.

A node of layer i changes nothing before layer i, so the pass is taken up again from there (prefix restart): about half of the
work of one whole pass a node. In layer i itself no attention is computed again: what a head writes is a product of matrices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.circuits.attribution import QUIETLY, Work
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.forward import Forward, Outputs, Trace, wide
from cdbench.circuits.graph import Graph
from cdbench.tokens import IGNORE, Encoded

_ROWS = 256
"""Problems times nodes that are worked on at once, at least."""


def exchanged(
    forward: Forward, trace: Trace, stand_in: Outputs, nodes: Sequence[int], read: Tensor, *, chunk: int = 0
) -> Iterator[tuple[list[int], Tensor]]:
    """For each of `nodes` (places in `Graph.nodes`) the residual stream's end with that node's output exchanged.

    `read` [b, a] are the positions asked for. Yields (nodes, [len(nodes), b, a, width]), `chunk` nodes of a layer at a time; 0:
    as many as make about 256 rows, at least 8.
    """
    graph, wanted = forward.graph, set(nodes)
    b = len(read)
    chunk = chunk or max(8, _ROWS // b)
    rows = torch.arange(b, device=read.device)[:, None]
    if 0 in wanted:
        yield [0], forward.trace(stand_in.embedding).end[rows, read][None]
    for i in range(graph.layers):
        last = i == graph.layers - 1  # behind it nothing moves between positions any more
        of_layer = [*(graph.head(i, h) for h in range(graph.heads)), graph.mlp(i)]
        todo = [node for node in of_layer if node in wanted]
        for some in (todo[j : j + chunk] for j in range(0, len(todo), chunk)):
            heads = [node - of_layer[0] for node in some if node != of_layer[-1]]
            states = []
            if heads:
                moved = stand_in.heads[i][:, :, heads] - trace.outputs.heads[i][:, :, heads]
                middle = trace.middle[i] + torch.einsum("bthe,hew->hbtw", moved, forward.output_weight(i)[heads])
                middle = middle[:, rows, read] if last else middle
                states.append(middle + forward.mlp(i, middle.flatten(0, 1)).reshape(middle.shape))
            if some[-1] == of_layer[-1]:
                after = (trace.middle[i] + stand_in.mlps[i])[None]
                states.append(after[:, rows, read] if last else after)
            state = torch.cat(states)
            if not last:
                state = forward.restart(state.flatten(0, 1), i + 1, read.repeat(len(state), 1)).unflatten(0, (-1, b))
            yield some, state


@torch.no_grad()
def patch_exactly(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    nodes: Sequence[int] | None = None,
    *,
    chunk: int = 0,
    work: Work = QUIETLY,
) -> Tensor:
    """What attribution approximates: M(clean) − M(clean with the node's output from the counterfactual), [n, len(nodes)].

    A row a pair, all nodes if none are named.

    Raises:
        UserError: the model is not a Llama or in training mode.
    """
    forward = Forward(model)
    nodes = range(len(forward.graph.nodes)) if nodes is None else nodes
    place = {node: column for column, node in enumerate(nodes)}
    parts, done = [], 0
    for batch in contrasts.batches(work.batch_size, model.device):
        trace = forward.trace(forward.embed(batch.clean))
        stand_in = forward.trace(forward.embed(batch.corrupt)).outputs
        base = batch.difference(forward.logits(trace.end, batch.last))
        found = base.new_zeros(len(batch), len(place))
        for some, ends in exchanged(forward, trace, stand_in, nodes, batch.last[:, None], chunk=chunk):
            logits = wide(model.lm_head(model.model.norm(ends[:, :, 0])))
            for node, value in zip(some, logits, strict=True):
                found[:, place[node]] = base - batch.difference(value)
        parts.append(found.cpu())
        done += len(batch)
        work.progress(done, len(contrasts))
    return torch.cat(parts)


@torch.no_grad()
def mean_outputs(model: LlamaForCausalLM, split: Encoded, *, batch_size: int = 100) -> Outputs:
    """Every node's mean output over the prompts of a split, [1, 1, ...] each: the mean over a prompt's tokens, then over prompts.

    As in `ablation.mean_activations`, for heads and the embedding too (errata A6).
    """
    forward = Forward(model)
    total: Outputs | None = None
    for rows in torch.arange(len(split)).split(batch_size):
        batch = split.take(rows).to(model.device)
        inside = (torch.arange(batch.ids.shape[1], device=model.device)[None] <= batch.last_prompt[:, None]).double()
        weight = inside / inside.sum(1, keepdim=True) / len(split)
        found = forward.trace(forward.embed(batch.ids)).outputs
        sums = Outputs(
            torch.einsum("bt,btw->w", weight, found.embedding.double())[None, None],
            [torch.einsum("bt,bthe->he", weight, z.double())[None, None] for z in found.heads],
            [torch.einsum("bt,btw->w", weight, m.double())[None, None] for m in found.mlps],
        )
        total = sums if total is None else _added(total, sums)
    assert total is not None, "an Encoded split is never empty"
    dtype = model.dtype
    return Outputs(total.embedding.to(dtype), [z.to(dtype) for z in total.heads], [m.to(dtype) for m in total.mlps])


@dataclass(frozen=True)
class PlacedMeans:
    """Every node's mean output at each place of a problem, counted from its last prompt token.

    Attributes:
        outputs: [places, ...] each; the last prompt token's place is `last`.
    """

    outputs: Outputs
    last: int

    def at(self, split: Encoded) -> Outputs:
        """The means at every token of a batch, [b, t, ...]; beyond the places that were seen the nearest one's."""
        return self.beside(split.last_prompt, split.ids.shape[1])

    def beside(self, last_prompt: Tensor, width: int) -> Outputs:
        """The same for prompts that end at the tokens `last_prompt` [b], at the first `width` tokens."""
        place = _places(last_prompt, width, self.last).clamp(0, len(self.outputs.embedding) - 1)
        place = place.to(self.outputs.embedding.device)
        return Outputs(
            self.outputs.embedding[place],
            [x[place] for x in self.outputs.heads],
            [x[place] for x in self.outputs.mlps],
        )


def _places(last_prompt: Tensor, width: int, last: int) -> Tensor:
    return torch.arange(width)[None] - last_prompt.cpu()[:, None] + last


@torch.no_grad()
def placed_means(model: LlamaForCausalLM, split: Encoded, *, batch_size: int = 100) -> PlacedMeans:
    """Every node's mean output over the problems of a split, place by place, prompt and answer (errata A6, `per_position`).

    A mean over all places tells the model at no place what it should see there: it is the mean of a prompt, not of a digit, and
    whoever gets it everywhere has lost the prompt's form with its content.
    """
    forward, last = Forward(model), int(split.last_prompt.max())
    count = last + 1 + split.answer_positions.shape[1]
    total: Outputs | None = None
    seen = torch.zeros(count, dtype=torch.float64, device=model.device)
    for rows in torch.arange(len(split)).split(batch_size):
        batch = split.take(rows)
        real = torch.arange(batch.ids.shape[1])[None] <= batch.answer_positions.max(1).values[:, None]
        place = _places(batch.last_prompt, batch.ids.shape[1], last)
        weight = torch.nn.functional.one_hot(place.clamp(max=count - 1), count).double() * real[:, :, None]
        weight = weight.to(model.device)
        seen += weight.sum((0, 1))
        found = forward.trace(forward.embed(batch.ids.to(model.device))).outputs
        sums = Outputs(
            torch.einsum("btp,btw->pw", weight, found.embedding.double()),
            [torch.einsum("btp,bthe->phe", weight, z.double()) for z in found.heads],
            [torch.einsum("btp,btw->pw", weight, m.double()) for m in found.mlps],
        )
        total = sums if total is None else _added(total, sums)
    assert total is not None, "an Encoded split is never empty"
    kept = int(seen.nonzero()[-1]) + 1  # a place that no problem has stands at the end, if anywhere
    share = seen[:kept].clamp(min=1.0)

    def mean(x: Tensor) -> Tensor:
        return (x[:kept] / share.reshape(-1, *[1] * (x.ndim - 1))).to(model.dtype)

    return PlacedMeans(
        Outputs(mean(total.embedding), [mean(z) for z in total.heads], [mean(m) for m in total.mlps]), last
    )


def _added(a: Outputs, b: Outputs) -> Outputs:
    return Outputs(
        a.embedding + b.embedding,
        [x + y for x, y in zip(a.heads, b.heads, strict=True)],
        [x + y for x, y in zip(a.mlps, b.mlps, strict=True)],
    )


def expanded(outputs: Outputs, ids: Tensor) -> Outputs:
    """Means [1, 1, ...] at every problem and position of a batch of tokens [b, t]."""
    b, t = ids.shape
    return Outputs(
        outputs.embedding.expand(b, t, -1),
        [x.expand(b, t, -1, -1) for x in outputs.heads],
        [x.expand(b, t, -1) for x in outputs.mlps],
    )


@torch.no_grad()
def ablated_hits(
    model: LlamaForCausalLM,
    split: Encoded,
    nodes: Sequence[int],
    stand_in: Callable[[Encoded], Outputs],
    work: Work = QUIETLY,
) -> tuple[Tensor, Tensor]:
    """Exact match of the whole answer, as the model is and with each node's output at what `stand_in` makes of a batch.

    Returns [n] and [n, len(nodes)] bool. Greedy decoding follows the gold answer exactly as long as every gold token so far was
    the arg-max, so one pass with the answer as input suffices.

    Raises:
        UserError: the model is not a Llama or in training mode.
    """
    forward = Forward(model)
    place = {node: column for column, node in enumerate(nodes)}
    whole, parts, done = [], [], 0
    for rows in torch.arange(len(split)).split(work.batch_size):
        batch = split.take(rows).to(model.device)
        trace = forward.trace(forward.embed(batch.ids))
        found = torch.zeros(len(batch), len(place), dtype=torch.bool)
        whole.append(
            hits_at(forward, trace.end[torch.arange(len(batch))[:, None], batch.answer_positions], batch).cpu()
        )
        for some, ends in exchanged(forward, trace, stand_in(batch), nodes, batch.answer_positions):
            for node, end in zip(some, ends, strict=True):
                found[:, place[node]] = hits_at(forward, end, batch).cpu()
        parts.append(found)
        done += len(batch)
        work.progress(done, len(split))
    return torch.cat(whole), torch.cat(parts)


def hits_at(forward: Forward, end: Tensor, batch: Encoded) -> Tensor:
    """[b, a, width] of the residual stream's end at the answer positions -> [b] bool, whether the whole answer is right."""
    predicted = wide(forward.model.lm_head(forward.model.model.norm(end))).argmax(-1)
    right: Tensor = ((predicted == batch.answer_tokens) | (batch.answer_tokens == IGNORE)).all(1)
    return right


def all_nodes(graph: Graph) -> range:
    """The places of all nodes."""
    return range(len(graph.nodes))
