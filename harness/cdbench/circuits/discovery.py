"""Ranking the parts of a model by one of three measures, and holding the ranking against exact patching."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.circuits.attribution import QUIETLY, Work, attribute
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.faithfulness import circuit_hits, circuit_metric
from cdbench.circuits.forward import Forward, Outputs
from cdbench.circuits.graph import Circuit, Graph, Level
from cdbench.circuits.patching import ablated_hits, all_nodes, expanded, mean_outputs, patch_exactly
from cdbench.circuits.scores import Scores, spearman
from cdbench.errors import UserError
from cdbench.tokens import Encoded

By = Literal["attribution", "exact", "ablation"]
_MOST = 1 << 32
"""Bytes of the circuits that lack one item each."""


@dataclass(frozen=True)
class Agreement:
    """Attribution beside exact patching, on the items that attribution puts on top by |score|.

    Attributes:
        items: places among the level's items (`Graph.names`), largest |score| first.
        approximate, exact: their scores.
        spearman: rank correlation of the two over these items; NaN where one is constant.
        same_sign: how many have the same sign in both.
    """

    items: tuple[int, ...]
    approximate: tuple[float, ...]
    exact: tuple[float, ...]
    spearman: float
    same_sign: int


@dataclass(frozen=True)
class Search:
    """What to rank, and by what; `steps` are those of integrated gradients, 1 is plain attribution patching."""

    by: By = "attribution"
    level: Level = "node"
    steps: int = 1


def discover(
    model: LlamaForCausalLM, contrasts: Contrasts, split: Encoded, search: Search, work: Work = QUIETLY
) -> Scores:
    """Scores of all items of a level. `split` is what mean ablation takes its means and accuracies from.

    Attribution costs the same however many items there are; exact patching and ablation take a pass each, of nodes about half.

    Raises:
        UserError: the model is not a Llama, or in training mode; or mean ablation of a model that solves nothing.
    """
    if search.by == "attribution":
        return attribute(model, contrasts, search.level, steps=search.steps, work=work)
    graph = Forward(model).graph
    if search.by == "exact":
        effects = _exact_effects(model, contrasts, search.level, range(graph.items(search.level)), work)
        return _scores(graph, search.level, effects, contrasts.problems)
    means = mean_outputs(model, split, batch_size=work.batch_size)
    effects = _ablation_effects(model, split, means, search.level, work)
    return _scores(graph, search.level, effects, torch.arange(len(split)))


def _scores(graph: Graph, level: Level, effects: Tensor, problem: Tensor) -> Scores:
    """[n, items], in the order of `Graph.names` -> scores in the level's shape, a row a problem; 0 for edges that are none."""
    sizes = problem.bincount()
    rows = torch.zeros(len(sizes), effects.shape[1]).index_add_(0, problem, effects.float()) / sizes[:, None]
    if level == "edge":
        rows = torch.zeros(len(rows), *graph.shape("edge")).masked_scatter_(graph.edge_mask, rows.contiguous())
    return Scores(level, rows.reshape(len(rows), *graph.shape(level)), sizes)


def flat(scores: Tensor, graph: Graph, level: Level) -> Tensor:
    """Scores of the items that exist, in the order of `Graph.names`."""
    return scores[graph.edge_mask] if level == "edge" else scores.flatten()


def exact_scores(
    model: LlamaForCausalLM, contrasts: Contrasts, level: Level, items: Sequence[int], work: Work = QUIETLY
) -> Tensor:
    """Exact patching of single items, mean over the problems, [len(items)]."""
    return _exact_effects(model, contrasts, level, items, work).double().mean(0)


def _exact_effects(
    model: LlamaForCausalLM, contrasts: Contrasts, level: Level, items: Sequence[int], work: Work
) -> Tensor:
    """What each item's exchange takes from the metric of each problem, [n, len(items)]."""
    if level == "node":
        return patch_exactly(model, contrasts, items, work=work)
    metric = circuit_metric(model, contrasts, _whole_and_without(Forward(model).graph, level, items), work=work)
    return (metric[0] - metric[1:]).T


def _ablation_effects(model: LlamaForCausalLM, split: Encoded, means: Outputs, level: Level, work: Work) -> Tensor:
    """Ablation impact of each item for each problem (paper A, 4.1.2, per item): right before − right after, [n, items]."""
    graph = Forward(model).graph

    def everywhere(batch: Encoded) -> Outputs:
        return expanded(means, batch.ids)

    if level == "node":
        whole, ablated = ablated_hits(model, split, all_nodes(graph), everywhere, work)
    else:
        circuits = _whole_and_without(graph, level, range(graph.items(level)))
        hits = circuit_hits(model, split, circuits, everywhere, work)
        whole, ablated = hits[0], hits[1:].T
    if not bool(whole.any()):
        raise UserError(
            f"the model solves none of the {len(whole)} problems: ablation could take no accuracy from it; rank by attribution"
        )
    return whole[:, None].float() - ablated.float()


def _whole_and_without(graph: Graph, level: Level, items: Sequence[int]) -> list[Circuit]:
    """The whole model as edges or neurons, and the whole without each of some items.

    Raises:
        UserError: they would fill gigabytes, and a pass an item would take days.
    """
    whole = Circuit.whole(graph, level)
    exists = whole.edges if level == "edge" else whole.neurons
    assert exists is not None
    if len(items) * exists.numel() > _MOST:
        raise UserError(
            f"{len(items):,} {level}s, each taken out of {exists.numel():,} in a pass of its own: too many for a model of this "
            "size; rank by attribution, which takes a few passes for all of them"
        )
    places = exists.flatten().nonzero().flatten()
    circuits = [whole]
    for item in items:
        kept = exists.clone()
        kept.view(-1)[places[item]] = False
        circuits.append(replace(whole, edges=kept) if level == "edge" else replace(whole, neurons=kept))
    return circuits


def strongest(scores: Scores, graph: Graph, n: int) -> tuple[int, ...]:
    """The places of the `n` items of largest |score| among the level's items, largest first; equal ones in the graph's order.

    Raises:
        ValueError: fewer than one is asked for, or more than there are.
    """
    if not 1 <= n <= graph.items(scores.level):
        raise ValueError(f"the top {n} {scores.level}s; there are 1 to {graph.items(scores.level)} to ask for")
    values = flat(scores.mean, graph, scores.level)
    return tuple(values.abs().argsort(descending=True, stable=True)[:n].tolist())


def agreement(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    scores: Scores,
    asked: int | Sequence[int] = 10,
    work: Work = QUIETLY,
) -> Agreement:
    """Patches items exactly and compares: those named, or that many of largest |score|.

    Raises:
        ValueError: fewer than one is asked for, or more than there are.
    """
    graph = Forward(model).graph
    values = flat(scores.mean, graph, scores.level)
    items = strongest(scores, graph, asked) if isinstance(asked, int) else tuple(asked)
    exact = exact_scores(model, contrasts, scores.level, items, work).double()
    ranked = values[list(items)]
    return Agreement(
        items=items,
        approximate=tuple(ranked.tolist()),
        exact=tuple(exact.tolist()),
        spearman=spearman(ranked, exact) if len(items) > 1 else math.nan,
        same_sign=int((ranked.sign() == exact.sign()).sum()),
    )
