"""How well a circuit does alone, as MIB's code has it (Mueller et al. 2025; errata C3).

    f(C) = (m(C) − m(∅)) / (m(N) − m(∅)),   m the mean logit difference, everything outside the circuit exchanged

The exchange is for the counterfactual's activations (resample, MIB's default), the mean, the mean at each place, or zero. CPR
is the area under f over the share of items kept, circuits chosen by signed score; CMD the area of |1 − f|, chosen by |score|.
Both are trapezoids on a linear axis from 0.001 to 1, so a perfect circuit has CPR 0.999 and CMD 0.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.circuits.attribution import QUIETLY, Work
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.forward import Forward, Outputs, Part, Trace, wide
from cdbench.circuits.graph import Circuit, Graph, Level, top
from cdbench.circuits.patching import PlacedMeans, expanded, hits_at
from cdbench.circuits.scores import LEAST_ROWS, Scores, single
from cdbench.errors import UserError
from cdbench.seeds import generator_for
from cdbench.tokens import Encoded

Ablation = Literal["resample", "mean", "mean-positional", "zero"]
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of a level's items, as MIB has them."""
_DRAWS = 1000


@dataclass(frozen=True)
class Exchange:
    """What stands in for everything outside a circuit.

    `means` are those of `mean_outputs`, or of `placed_means` for "mean-positional".
    """

    ablation: Ablation = "resample"
    means: Outputs | PlacedMeans | None = None


RESAMPLE = Exchange()


@torch.no_grad()
def circuit_metric(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    circuits: Sequence[Circuit],
    *,
    exchange: Exchange = RESAMPLE,
    work: Work = QUIETLY,
) -> Tensor:
    """The metric of each problem with all but the circuit exchanged, [len(circuits), n].

    Raises:
        UserError: the model is not a Llama or in training mode, or its logits are not finite.
        ValueError: a circuit of another model, or mean ablation without `means`.
    """
    forward = Forward(model)
    for circuit in circuits:
        if circuit.graph != forward.graph:
            raise ValueError(f"a circuit of {circuit.graph}, the model is {forward.graph}")
    parts, done = [], 0
    for batch in contrasts.batches(work.batch_size, model.device):
        stand_in = _stand_in(forward, batch, exchange)
        embedding, found = forward.embed(batch.clean), []
        for circuit in circuits:
            end = circuit_end(forward, embedding, stand_in, circuit)
            found.append(batch.difference(forward.logits(end, batch.last)))
        parts.append(torch.stack(found).cpu())
        done += len(batch)
        work.progress(done, len(contrasts))
    metric = torch.cat(parts, dim=1)
    if not bool(torch.isfinite(metric).all()):
        raise UserError("the model gives logits that are not finite: there is nothing to judge")
    return metric


def _stand_in(forward: Forward, batch: Contrasts, exchange: Exchange) -> Outputs:
    corrupt = forward.trace(forward.embed(batch.corrupt)).outputs
    if exchange.ablation == "resample":
        return corrupt
    if exchange.ablation == "zero":
        return Outputs(
            torch.zeros_like(corrupt.embedding),
            [torch.zeros_like(z) for z in corrupt.heads],
            [torch.zeros_like(m) for m in corrupt.mlps],
        )
    if exchange.ablation == "mean-positional" and isinstance(exchange.means, PlacedMeans):
        return exchange.means.beside(batch.prompt_last, batch.corrupt.shape[1])
    if exchange.ablation == "mean" and isinstance(exchange.means, Outputs):
        return expanded(exchange.means, batch.corrupt)
    raise ValueError(f"{exchange.ablation} ablation needs the means of a split, of its own kind")


@torch.no_grad()
def circuit_hits(
    model: LlamaForCausalLM,
    split: Encoded,
    circuits: Sequence[Circuit],
    stand_in: Callable[[Encoded], Outputs],
    work: Work = QUIETLY,
) -> Tensor:
    """Whether a circuit alone gives the whole answer, all else at what `stand_in` makes of a batch, [len(circuits), n] bool.

    Raises:
        UserError: the model is not a Llama or in training mode.
    """
    forward, parts, done = Forward(model), [], 0
    for rows in torch.arange(len(split)).split(work.batch_size):
        batch = split.take(rows).to(model.device)
        at_answer = (torch.arange(len(batch), device=batch.ids.device)[:, None], batch.answer_positions)
        other, found = stand_in(batch), []
        for circuit in circuits:
            end = circuit_end(forward, forward.embed(batch.ids), other, circuit)
            found.append(hits_at(forward, end[at_answer], batch).cpu())
        parts.append(torch.stack(found))
        done += len(batch)
        work.progress(done, len(split))
    return torch.cat(parts, dim=1)


def circuit_end(forward: Forward, embedding: Tensor, stand_in: Outputs, circuit: Circuit) -> Tensor:
    """The residual stream's end [b, t, width] with everything outside the circuit exchanged for `stand_in`."""
    if circuit.edges is not None:
        return _edges_end(forward, embedding, stand_in, circuit.edges.to(embedding.device))
    if circuit.neurons is not None:
        return _neurons_end(forward, embedding, stand_in, circuit.neurons.to(embedding.device))
    graph, nodes = forward.graph, circuit.nodes.to(embedding.device)

    def edit(part: Part, layer: int, value: Tensor) -> Tensor:
        if part == "input":
            return torch.where(nodes[0], value, stand_in.embedding)
        if part == "heads":
            kept = nodes[graph.head(layer, 0) : graph.head(layer, graph.heads)]
            return torch.where(kept[:, None], value, stand_in.heads[layer])
        return torch.where(nodes[graph.mlp(layer)], value, stand_in.mlps[layer]) if part == "mlp" else value

    return forward.trace(embedding, edit).end


def _neurons_end(forward: Forward, embedding: Tensor, stand_in: Outputs, kept: Tensor) -> Tensor:
    """As MIB has it, a node outside keeps none of its residual dimensions, one in part some."""
    graph = forward.graph
    x = torch.where(kept[0], embedding, stand_in.embedding)
    rotary = forward.rotary(x)
    for i in range(graph.layers):
        own = kept[graph.head(i, 0) : graph.head(i, graph.heads)]
        live, other = (forward.write(i, z) for z in (forward.heads(i, x, rotary), stand_in.heads[i]))
        x = x + torch.where(own, live, other).sum(2) + forward.bias(i)
        x = x + torch.where(kept[graph.mlp(i)], forward.mlp(i, x), stand_in.mlps[i])
    return x


def _edges_end(forward: Forward, embedding: Tensor, stand_in: Outputs, edges: Tensor) -> Tensor:
    """Each reader has a stream of its own: the live one, with what comes over edges outside the circuit exchanged."""
    graph = forward.graph
    outside = wide((~edges).to(embedding.dtype))
    x, rotary = embedding, forward.rotary(embedding)
    # Nodes first: what is written so far is then one block, and no stream copies it.
    moved = wide(embedding).new_empty(len(graph.nodes), *embedding.shape)
    moved[0], written = stand_in.embedding - embedding, 1

    def stream(first: int, count: int) -> Tensor:
        """[count, b, t, width] of the readers from column `first` on."""
        exchanged = torch.tensordot(outside[:written, first : first + count].T, moved[:written], dims=1)
        mine: Tensor = x + exchanged.to(x.dtype)
        return mine

    for i in range(graph.layers):
        first = i * (3 * graph.heads + 1)
        read = forward.blocks[i].input_layernorm(stream(first, 3 * graph.heads)).unflatten(0, (3, graph.heads))
        q, k, v = (_own_projection(forward, i, part, read[j]) for j, part in enumerate("qkv"))
        z = forward.attend(i, q, k, v, rotary)
        live = forward.write(i, z)
        moved[written : written + graph.heads] = (forward.write(i, stand_in.heads[i]) - live).movedim(2, 0)
        written += graph.heads
        x = x + live.sum(2) + forward.bias(i)
        out = forward.mlp(i, stream(first + 3 * graph.heads, 1)[0])
        moved[written] = stand_in.mlps[i] - out
        written += 1
        x = x + out
    return stream(len(graph.readers) - 1, 1)[0]


def _own_projection(forward: Forward, layer: int, part: str, x: Tensor) -> Tensor:
    """A stream per query head, [heads, b, t, width], through each head's own projection: [b, t, heads, head width]."""
    own = forward.blocks[layer].self_attn
    project = {"q": own.q_proj, "k": own.k_proj, "v": own.v_proj}[part]
    weight, bias = project.weight.unflatten(0, (-1, forward.head_width)), project.bias
    if part != "q":
        weight = weight.repeat_interleave(forward.shared, dim=0)
    out = torch.einsum("hbtw,hew->bthe", x, weight)
    if bias is None:
        return out
    own_bias: Tensor = bias.unflatten(0, (-1, forward.head_width))
    return out + (own_bias if part == "q" else own_bias.repeat_interleave(forward.shared, dim=0))


@dataclass(frozen=True)
class Curve:
    """Faithfulness over circuit sizes, with what it was computed from.

    Attributes:
        items: how many items each circuit keeps, one a size of `SIZES`.
        metric: [sizes, n] m of each pair.
        whole, empty: [n] m of the model, and of nothing.
        problem: [n] `Contrasts.problem`.
    """

    items: tuple[int, ...]
    metric: Tensor
    whole: Tensor
    empty: Tensor
    problem: Tensor | None = None

    def faithfulness(self) -> Tensor:
        """f at each size, [sizes], as a ratio of means."""
        f, gap = self._over(torch.full((1, len(self.whole)), 1 / len(self.whole), dtype=torch.float64))
        return f[0] / gap

    def bootstrap(self) -> Tensor:
        """[1,000, sizes] f over problems drawn anew, the same draws for every curve of the same problems.

        Draws in which f is 0 divided by 0 have no f, and are left out. Of fewer than 4 problems there is none.
        """
        if self._problems < LEAST_ROWS:
            return torch.empty(0, len(self.items), dtype=torch.float64)
        gained, gap = self._over(self._weights())
        return (gained / gap[:, None])[gap != 0]

    @property
    def stands_on_noise(self) -> bool:
        """Whether the problems do not show that the model does better than nothing: then f divides by chance.

        A model that does worse than nothing has none either: its f would be 1 for the circuit that does as badly. Fewer than 4
        problems show nothing.
        """
        if self._problems < LEAST_ROWS:
            return True
        return bool(torch.quantile(self._over(self._weights())[1], 0.025) <= 0)

    @property
    def _problems(self) -> int:
        return len(self.whole) if self.problem is None else int(self.problem[-1]) + 1

    def _weights(self) -> Tensor:
        """[1,000, n] how often each draw of the problems has each pair, up to a factor: f is a ratio."""
        drawn = _drawn(self._problems)
        return drawn if self.problem is None else drawn[:, self.problem]

    def _over(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """m(C) − m(∅) [draws, sizes] and m(N) − m(∅) [draws], for the weights [draws, n] of the problems."""
        gained = torch.cat([self.metric, self.whole[None]]).double() - self.empty.double()
        means = weights @ gained.T
        return means[:, :-1], means[:, -1]


@cache
def _drawn(n: int) -> Tensor:
    """[1,000, n] share of each problem in each draw of n problems."""
    rows = torch.randint(n, (_DRAWS, n), generator=generator_for("bootstrap", n))
    counts = torch.zeros(_DRAWS, n, dtype=torch.float64)
    return counts.scatter_add_(1, rows, torch.ones_like(counts)) / n


def cpr(f: Tensor) -> Tensor:
    """MIB's circuit performance ratio: the area under f, [..., sizes] -> [...]."""
    return torch.trapezoid(f.double(), torch.tensor(SIZES, dtype=torch.float64))


def cmd(f: Tensor) -> Tensor:
    """MIB's circuit-model distance: the area of |1 − f|, [..., sizes] -> [...]."""
    return torch.trapezoid((1 - f.double()).abs(), torch.tensor(SIZES, dtype=torch.float64))


@dataclass(frozen=True)
class Ranking:
    """Scores, and whether circuits are chosen by |score| (as for CMD) instead of the score (as for CPR)."""

    scores: Scores
    absolute: bool = False


def curves(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    rankings: Sequence[Ranking],
    *,
    exchange: Exchange = RESAMPLE,
    work: Work = QUIETLY,
) -> list[Curve]:
    """Faithfulness of the top circuits of each ranking at MIB's sizes, all in one pass over the problems.

    Nodes and neurons are not pruned: in MIB's code, too, every one that is chosen stays (only edges into others go).

    Raises:
        UserError: the model has the same metric with and without its activations.
        ValueError: scores of another model, of several levels, or not finite.
    """
    graph = Forward(model).graph
    (level, *others) = {ranking.scores.level for ranking in rankings}
    if others:
        raise ValueError(f"rankings of {level}s and of {others[0]}s; f is of one level")
    # Of the rankings' own level: in half precision sums of all heads and of each round apart, and f(all) would not be 1.
    circuits, items = [Circuit.whole(graph, level), Circuit.empty(graph, level)], []
    for ranking in rankings:
        mean = ranking.scores.mean
        items.append(tuple(int(size * graph.items(level)) for size in SIZES))
        circuits += [top(mean, n, graph, level, absolute=ranking.absolute) for n in items[-1]]
    # Small sizes of few items are one circuit, and so are rankings that agree.
    distinct: list[Circuit] = []
    place: list[int] = []
    for circuit in circuits:
        same = next((i for i, other in enumerate(distinct) if _equal(circuit, other)), len(distinct))
        distinct += [circuit] if same == len(distinct) else []
        place.append(same)
    metric = circuit_metric(model, contrasts, distinct, exchange=exchange, work=work)[place]
    whole, empty = metric[0], metric[1]
    if whole.double().mean() == empty.double().mean():
        raise UserError("the model has the same metric with and without all its activations: f is 0 divided by 0")
    parts = metric[2:].split(len(SIZES))
    return [Curve(n, part, whole, empty, contrasts.problem) for n, part in zip(items, parts, strict=True)]


def _equal(a: Circuit, b: Circuit) -> bool:
    pairs = [(a.nodes, b.nodes), (a.edges, b.edges), (a.neurons, b.neurons)]
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs)


def curve(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    scores: Scores,
    *,
    absolute: bool = False,
    exchange: Exchange = RESAMPLE,
) -> Curve:
    """The curve of one ranking (`curves`)."""
    return curves(model, contrasts, [Ranking(scores, absolute)], exchange=exchange)[0]


@torch.no_grad()
def magnitude(model: LlamaForCausalLM, contrasts: Contrasts, level: Level, work: Work = QUIETLY) -> Scores:
    """The baseline that asks nothing of the gradient: how far an item's output moves, mean over the problems.

    Relative to the stream that it becomes part of: streams grow from layer to layer, and by absolute distance the embedding comes
    last, without which every circuit is empty. Nodes: the L2 norm of clean minus corrupt, by that of the stream that the node has
    written into, summed over positions. Edges: by that of the stream that is read, in the order of `walked`: the largest of all
    lead from the embedding to where nothing goes on. Neurons: |clean minus corrupt|, by the node's.
    """
    return walked(single(level, _moved(model, contrasts, level, work)), Graph.of(model))


def _moved(model: LlamaForCausalLM, contrasts: Contrasts, level: Level, work: Work = QUIETLY) -> Tensor:
    """How far each item moves, of the stream that it becomes part of."""
    forward = Forward(model)
    graph = forward.graph
    total = torch.zeros(graph.shape(level))
    for batch in contrasts.batches(work.batch_size, model.device):
        trace, corrupt = forward.trace(forward.embed(batch.clean)), forward.trace(forward.embed(batch.corrupt)).outputs
        real = torch.arange(batch.clean.shape[1], device=batch.clean.device)[None] <= batch.last[:, None]
        found: list[Tensor] = []
        for moved, stream in _written(forward, trace, corrupt):
            moved = wide(moved).masked_fill(~real[:, :, None, None], 0.0)
            if level == "edge":
                found.append(moved.norm(dim=-1))
                continue
            moved = moved / _length(stream)[:, :, None, None]
            found.append((moved.abs() if level == "neuron" else moved.norm(dim=-1)).sum((0, 1)))
        if level == "edge":
            read: list[Tensor] = []
            for before, middle in zip(trace.before, trace.middle, strict=True):
                read += [_length(before)] * (3 * graph.heads) + [_length(middle)]
            lengths = torch.stack([*read, _length(trace.end)], dim=-1)
            total += torch.einsum("btn,btr->nr", torch.cat(found, dim=2), 1 / lengths).cpu()
        else:
            total += torch.cat(found).cpu()
    return total / len(contrasts)


def _written(forward: Forward, trace: Trace, corrupt: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
    """By how much nodes move what they write [b, t, nodes, width], and the stream [b, t, width] that they have written into.

    The embedding, then each layer's heads and its MLP, one after the other: all at once would be large.
    """
    clean = trace.outputs
    yield (clean.embedding - corrupt.embedding)[:, :, None], clean.embedding
    for i, after in enumerate((*trace.before[1:], trace.end)):
        yield forward.write(i, clean.heads[i] - corrupt.heads[i]), trace.middle[i]
        yield (clean.mlps[i] - corrupt.mlps[i])[:, :, None], after


def walked(scores: Scores, graph: Graph) -> Scores:
    """Edges in the order in which a walk back from the logits finds them (`greedy_order`); of nodes and neurons the scores.

    The largest edges of a ranking alone may lead nowhere, and then nothing is left of them. What is compared with a rival is
    walked as the rival is, so that scores are compared and not ways of choosing.
    """
    return single("edge", greedy_order(scores.mean, graph)) if scores.level == "edge" else scores


def greedy_order(scores: Tensor, graph: Graph) -> Tensor:
    """Ranks edges [nodes, readers] as a greedy walk back from the logits takes them: n for the first, 1 for the last.

    Of all edges into what the circuit holds already the largest is next, and what it comes from then belongs to it (as EAP-IG's
    `apply_greedy`): every circuit hangs together at the logits, whatever its size.
    """
    values, own = scores.double().tolist(), graph.readers_of
    into = [graph.edge_mask[:, column].nonzero().flatten().tolist() for column in range(len(graph.readers))]
    found, order, left = {len(graph.readers) - 1}, torch.zeros(graph.shape("edge")), int(graph.edge_mask.sum())
    heap = [(-values[node][-1], node, len(graph.readers) - 1) for node in into[-1]]
    heapq.heapify(heap)
    while heap:
        _, node, column = heapq.heappop(heap)
        order[node, column], left = left, left - 1
        for reader in own[node].nonzero().flatten().tolist():
            if reader not in found:
                found.add(reader)
                for source in into[reader]:
                    heapq.heappush(heap, (-values[source][reader], source, reader))
    return order


def _length(stream: Tensor) -> Tensor:
    """The L2 norm of a stream at each token, [b, t]."""
    length: Tensor = wide(stream).norm(dim=-1)
    return length.clamp(min=1e-6)


def random_scores(graph: Graph, level: Level, draw: int) -> Scores:
    """The baseline that knows nothing: scores between 0 and 1, another set for each `draw`.

    Of nodes the embedding comes first, and edges come in the order of `walked`: else circuits are empty, and there would be no
    rival.
    """
    scores = torch.rand(graph.shape(level), generator=generator_for("random-circuit", level, draw))
    if level == "node":
        scores[0] = 1.0
    return walked(single(level, scores), graph)
