"""Ranking the parts of a model by one of three measures, and holding the ranking against exact patching."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.circuits.attribution import QUIETLY, Work, attribute
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.faithfulness import circuit_metric
from cdbench.circuits.forward import Forward
from cdbench.circuits.graph import Circuit, Graph, Level
from cdbench.circuits.patching import ablated_hits, ablation_scores, all_nodes, mean_outputs, patch_exactly
from cdbench.circuits.scores import Scores, spearman
from cdbench.errors import UserError
from cdbench.tokens import Encoded

By = Literal["attribution", "exact", "ablation"]


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

    Raises:
        UserError: edges or neurons by anything but attribution; or the model is not a Llama, or in training mode.
    """
    if search.by == "attribution":
        return attribute(model, contrasts, search.level, steps=search.steps, work=work)
    if search.level != "node":
        raise UserError(
            f"{search.level}s can be ranked by attribution only ({search.by} takes a pass each); its top "
            f"{search.level}s are then patched exactly"
        )
    if search.by == "exact":
        return patch_exactly(model, contrasts, work=work)
    nodes = all_nodes(Forward(model).graph)
    return ablation_scores(*ablated_hits(model, split, mean_outputs(model, split), nodes, work=work))


def flat(scores: Tensor, graph: Graph, level: Level) -> Tensor:
    """Scores of the items that exist, in the order of `Graph.names`."""
    return scores[graph.edge_mask] if level == "edge" else scores.flatten()


def exact_scores(
    model: LlamaForCausalLM, contrasts: Contrasts, level: Level, items: tuple[int, ...], work: Work = QUIETLY
) -> Tensor:
    """Exact patching of single items, mean over the problems, [len(items)]."""
    if level == "node":
        return patch_exactly(model, contrasts, items, work=work).mean
    graph = Forward(model).graph
    everything = torch.ones(len(graph.nodes), dtype=torch.bool)
    circuits = [Circuit.whole(graph)]
    for item in items:
        if level == "edge":
            kept = graph.edge_mask.clone()
            row, column = graph.edge_mask.nonzero()[item].tolist()
            kept[row, column] = False
            circuits.append(Circuit(graph, everything, edges=kept))
        else:
            dims = torch.ones(graph.shape("neuron"), dtype=torch.bool)
            dims.view(-1)[item] = False
            circuits.append(Circuit(graph, everything, neurons=dims))
    metric = circuit_metric(model, contrasts, circuits, work=work).double().mean(1)
    return metric[0] - metric[1:]


def agreement(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    scores: Scores,
    asked: int | Sequence[int] = 10,
    work: Work = QUIETLY,
) -> Agreement:
    """Patches items exactly and compares: those named, or that many of largest |score|.

    Raises:
        ValueError: fewer than one is asked for.
    """
    graph = Forward(model).graph
    values = flat(scores.mean, graph, scores.level)
    if isinstance(asked, int):
        if asked < 1:
            raise ValueError(f"agreement on the top {asked} items; at least 1 is needed")
        asked = values.abs().argsort(descending=True, stable=True)[:asked].tolist()
    items = tuple(asked)
    exact = exact_scores(model, contrasts, scores.level, items, work).double()
    ranked = values[list(items)]
    return Agreement(
        items=items,
        approximate=tuple(ranked.tolist()),
        exact=tuple(exact.tolist()),
        spearman=spearman(ranked, exact) if len(items) > 1 else math.nan,
        same_sign=int((ranked.sign() == exact.sign()).sum()),
    )
