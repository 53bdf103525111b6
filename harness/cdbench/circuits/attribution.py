"""Attribution patching: what exchanging each node, edge or neuron for its counterfactual would do, to first order.

    importance = (h_clean − h_corrupt) · ∂M/∂h, summed over positions and dimensions; positive = helpful (errata C1, C2)

Two forward passes and one backward pass give all nodes (Nanda 2023; paper B, 4.2.2), neurons and edges (Syed et al. 2023). With
`steps` m the gradient is the mean over the inputs at k/m of the way from the counterfactual's embedding to the clean one,
k = 1 … m, for edges k = 0 … m − 1, both as EAP-IG's code has it (integrated gradients, Hanna et al. 2024); m = 1 is plain
attribution patching, whose gradient is the clean run's. The metric is summed over a batch, so a
problem's scores do not depend on its neighbours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.forward import Forward, Outputs, Part, frozen, wide
from cdbench.circuits.graph import Level
from cdbench.circuits.scores import Scores

Progress = Callable[[int, int], None]
"""(problems done, of how many)."""
_FOLDS = 20
_PER_PROBLEM = 1 << 24
"""Up to so many scores (64 MB) a row is kept for each problem; beyond, for a twentieth of them."""


def quiet(done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Work:
    """How to go through the problems: so many at a time, telling `progress`. No score depends on it."""

    batch_size: int = 100
    progress: Progress = quiet


QUIETLY = Work()


@dataclass
class _Live:
    """What a backward pass is asked for: tensors of the live graph, by part and layer."""

    wanted: frozenset[Part]
    found: dict[tuple[Part, int], Tensor] = field(default_factory=dict)

    def __call__(self, part: Part, layer: int, value: Tensor) -> Tensor:
        if part not in self.wanted:
            return value
        if part == "mlp_input":
            # An alias that only the MLP reads: its gradient is the MLP's alone, not that of the stream going on.
            value = value.clone()
        self.found[part, layer] = value
        return value


@dataclass(frozen=True)
class _Passes:
    """One batch: both runs' outputs, the clean residual stream before each layer, and gradients by part and layer.

    Gradients are those of the summed metric, mean over the steps; ("end", 0) is the residual stream's end. Those at queries, keys
    and values stay apart step by step, as each goes back through the norm at its own step's stream; so does that stream.
    """

    clean: Outputs
    corrupt: Outputs
    mean: dict[tuple[str, int], Tensor]
    steps: list[dict[tuple[str, int], Tensor]]
    before: list[list[Tensor]]

    def gradient(self, part: str, layer: int) -> Tensor:
        return self.mean[part, layer]


def _passes(
    forward: Forward, batch: Contrasts, steps: int, wanted: frozenset[Part], *, from_corrupt: bool = False
) -> _Passes:
    """`from_corrupt`: of several steps the first is the counterfactual's prompt, and none the clean one, as EAP-IG has edges."""
    with torch.no_grad():
        near, far = forward.embed(batch.clean), forward.embed(batch.corrupt)
        corrupt = forward.trace(far).outputs
        shifted = from_corrupt and steps > 1
        clean = forward.trace(near).outputs if shifted else None
    mean: dict[tuple[str, int], Tensor] = {}
    apart: list[dict[tuple[str, int], Tensor]] = []
    before: list[list[Tensor]] = []
    with frozen(forward.model), torch.enable_grad():
        for k in range(steps) if shifted else range(1, steps + 1):
            # The last step is the clean run itself, not nearly so.
            start = near if k == steps else far + (k / steps) * (near - far)
            live = _Live(wanted)
            trace = forward.trace(start.detach().requires_grad_(), live)
            metric = batch.difference(forward.logits(trace.end, batch.last)).sum()
            tensors: dict[tuple[str, int], Tensor] = {(str(part), i): found for (part, i), found in live.found.items()}
            tensors["end", 0] = trace.end
            grads = dict(zip(tensors, torch.autograd.grad(metric, list(tensors.values())), strict=True))
            apart.append({key: grads.pop(key) for key in tensors if key[0] in ("query", "key", "value")})
            mean = {key: mean[key] + value for key, value in grads.items()} if mean else grads
            if apart[-1]:
                before.append([x.detach() for x in trace.before])
    mean = {key: value / steps for key, value in mean.items()}
    return _Passes(clean or trace.outputs.detach(), corrupt, mean, apart, before)


def _dot(difference: Tensor, gradient: Tensor, over: Sequence[int]) -> Tensor:
    return (wide(difference) * wide(gradient)).sum(tuple(over))


@torch.no_grad()
def attribute(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    level: Level = "node",
    *,
    steps: int = 1,
    work: Work = QUIETLY,
) -> Scores:
    """Importance of all nodes, edges or neurons, a row a problem (of several wordings their mean): of a large model's edges or
    neurons a row is the mean over a twentieth of the problems, in their order.

    Nodes: [n, nodes]. Edges: [n or 20, nodes, readers], 0 where there is no edge; with one step a node's edges sum to the node.
    Neurons: [n or 20, nodes, width]; a node's sum to the node.

    Raises:
        UserError: the model is not a Llama or in training mode.
    """
    forward, n, problem = Forward(model), len(contrasts), contrasts.problems
    shape, different = forward.graph.shape(level), int(problem[-1]) + 1
    each = level == "node" or different * math.prod(shape) <= _PER_PROBLEM
    folds = different if each else min(_FOLDS, different)
    fold = problem * folds // different
    rows = torch.zeros(folds, *shape, dtype=wide(model.lm_head.weight).dtype)
    score = {"node": _nodes, "edge": _edges, "neuron": _neurons}[level]
    for indices in torch.arange(n).split(work.batch_size):
        found, counts = torch.unique_consecutive(fold[indices], return_counts=True)
        batch = contrasts.take(indices, model.device)
        rows[found] += score(forward, batch, steps, counts.tolist()).cpu()
        work.progress(int(indices[-1]) + 1, n)
    sizes = torch.bincount(fold, minlength=folds)
    return Scores(level, rows / sizes.reshape(-1, *[1] * (rows.ndim - 1)), sizes)


def _nodes(forward: Forward, batch: Contrasts, steps: int, groups: list[int]) -> Tensor:
    """[groups, nodes], summed over each group of so many pairs that follow each other."""
    p = _passes(forward, batch, steps, frozenset({"input", "heads", "mlp"}))
    columns = [_dot(p.clean.embedding - p.corrupt.embedding, p.gradient("input", 0), (1, 2))[:, None]]
    for i in range(forward.graph.layers):
        columns.append(_dot(p.clean.heads[i] - p.corrupt.heads[i], p.gradient("heads", i), (1, 3)))
        columns.append(_dot(p.clean.mlps[i] - p.corrupt.mlps[i], p.gradient("mlp", i), (1, 2))[:, None])
    return _summed(torch.cat(columns, dim=1), groups)


def _summed(rows: Tensor, groups: list[int]) -> Tensor:
    return rows if len(groups) == len(rows) else torch.stack([part.sum(0) for part in rows.split(groups)])


def _neurons(forward: Forward, batch: Contrasts, steps: int, groups: list[int]) -> Tensor:
    """[groups, nodes, width], summed over each group of so many pairs that follow each other."""
    p = _passes(forward, batch, steps, frozenset({"input", "mlp_input", "mlp"}))
    found = [_dot(p.clean.embedding - p.corrupt.embedding, p.gradient("input", 0), (1,))[:, None]]
    for i in range(forward.graph.layers):
        # The stream after the heads is read by the MLP, and goes on to where the MLP writes.
        after = p.gradient("mlp_input", i) + p.gradient("mlp", i)
        moved = forward.write(i, p.clean.heads[i] - p.corrupt.heads[i])
        found.append(_dot(moved, after[:, :, None], (1,)))
        found.append(_dot(p.clean.mlps[i] - p.corrupt.mlps[i], p.gradient("mlp", i), (1,))[:, None])
    return _summed(torch.cat(found, dim=1), groups)


def _edges(forward: Forward, batch: Contrasts, steps: int, groups: list[int]) -> Tensor:
    """[groups, nodes, readers], summed over each group of so many pairs that follow each other."""
    graph = forward.graph
    p = _passes(forward, batch, steps, frozenset({"query", "key", "value", "mlp_input"}), from_corrupt=True)
    first = wide(p.clean.embedding - p.corrupt.embedding)
    # Nodes first, so that each group's scores are one product of matrices that lie as they are needed.
    moved = first.new_empty(len(graph.nodes), *first.shape)
    moved[0], written = first, 1
    scores = first.new_zeros(len(groups), *graph.shape("edge"))

    def fill(column: int, gradient: Tensor) -> None:
        """Edges of all that is written so far into the readers [r, b, t, width] from `column` on."""
        block = scores[:, :written, column : column + len(gradient)]
        source, read = moved[:written].flatten(2), wide(gradient).flatten(2)
        if len(groups) == len(batch):  # a row each: one product
            block[:] = torch.einsum("sbk,rbk->bsr", source, read)
            return
        parts = zip(source.split(groups, dim=1), read.split(groups, dim=1), strict=True)
        for row, (some, their) in zip(block, parts, strict=True):
            torch.mm(some.flatten(1), their.flatten(1).T, out=row)

    for i in range(graph.layers):
        column = i * (3 * graph.heads + 1)
        reads = [_head_inputs(forward, i, step, x[i]) for step, x in zip(p.steps, p.before, strict=True)]
        fill(column, torch.stack(reads).mean(0) if len(reads) > 1 else reads[0])
        moved[written : written + graph.heads] = forward.write(i, p.clean.heads[i] - p.corrupt.heads[i]).movedim(2, 0)
        written += graph.heads
        fill(column + 3 * graph.heads, p.gradient("mlp_input", i)[None])
        moved[written] = p.clean.mlps[i] - p.corrupt.mlps[i]
        written += 1
    fill(len(graph.readers) - 1, p.gradient("end", 0)[None])
    return scores


def _head_inputs(forward: Forward, layer: int, step: dict[tuple[str, int], Tensor], x: Tensor) -> Tensor:
    """Gradients at each head's query, key and value input, [3 heads, b, t, width], from those at the queries, keys and values.

    Back through the projections and, in closed form, through the RMS norm at the residual stream x: with r = 1/rms(x) and
    u = r·g·W·weight of the norm, u − x·mean(u·x)·r².
    """
    own, norm = forward.blocks[layer].self_attn, forward.blocks[layer].input_layernorm
    shared = [1, forward.shared, forward.shared]
    weight = torch.cat(
        [
            forward.split(project.weight.T).movedim(0, -1).repeat_interleave(times, dim=0)
            for project, times in zip((own.q_proj, own.k_proj, own.v_proj), shared, strict=True)
        ]
    )
    x = wide(x)
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    gradient = wide(torch.cat([step[part, layer] for part in ("query", "key", "value")], dim=2)) * r[:, :, None]
    b, t = x.shape[:2]
    u = torch.bmm(gradient.movedim(2, 0).flatten(1, 2), wide(weight) * wide(norm.weight)).reshape(-1, b, t, x.shape[-1])
    along = torch.einsum("hbtw,btw->hbt", u, x / x.shape[-1])[..., None] * r.pow(2)
    return torch.addcmul(u, x, along, value=-1)
