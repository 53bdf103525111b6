"""Mean ablation of MLP layers (paper A, 4.1.2; errata A6).

The mean is taken on the training split, over the prompt's tokens and over the problems, and stands in for the layer's
output at every position ("pooled", as printed) or position by position ("per_position").
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.sites import captured, mlp_out
from cdbench.tokens import Encoded
from cdbench.zoo import exact_match

_BATCH = 250


@torch.no_grad()
def mean_activations(model: LlamaForCausalLM, split: Encoded, mean: Literal["pooled", "per_position"]) -> list[Tensor]:
    """Each MLP layer's mean output: [hidden] pooled, or [positions, hidden].

    Pooled: the mean over problems of the mean over a problem's prompt tokens, as printed. Per position: over the problems
    whose prompt reaches the position; past the longest prompt the last mean stands in.
    """
    layers = range(model.config.num_hidden_layers)
    width = split.ids.shape[1]
    sums = [torch.zeros(width, model.config.hidden_size, dtype=torch.float64) for _ in layers]
    weights = torch.zeros(width, dtype=torch.float64)
    for rows in torch.arange(len(split)).split(_BATCH):
        batch = split.select(rows)
        inside = torch.arange(width)[None] <= batch.last_prompt[:, None]
        weight = inside.double()
        if mean == "pooled":
            weight = weight / weight.sum(1, keepdim=True)
        with captured(model, [mlp_out(layer) for layer in layers]) as found:
            model.model(input_ids=batch.ids.to(model.device), use_cache=False)
        for layer in layers:
            sums[layer] += torch.einsum("bt,bth->th", weight, found[mlp_out(layer)].cpu().double())
        weights += weight.sum(0)
    if mean == "pooled":
        return [(total.sum(0) / len(split)).float() for total in sums]
    last = int((weights > 0).nonzero().max())
    return [(total[: last + 1] / weights[: last + 1, None]).float() for total in sums]


def ablated_accuracy(model: LlamaForCausalLM, split: Encoded, layer: int, value: Tensor) -> float:
    """Exact-match accuracy with one MLP layer's output replaced by `value` at every position."""

    def replace(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if value.ndim == 1:
            return value.to(output).expand_as(output)
        filled = value[torch.arange(output.shape[1]).clamp(max=len(value) - 1)]
        return filled.to(output).expand_as(output)

    handle = model.model.layers[layer].mlp.register_forward_hook(replace)
    try:
        return exact_match(model, split, _BATCH).double().mean().item()
    finally:
        handle.remove()


def ablation_impacts(
    model: LlamaForCausalLM, split: Encoded, mean: Literal["pooled", "per_position"]
) -> tuple[float, list[float]]:
    """Baseline accuracy and each MLP layer's ablation impact ΔP = P_baseline − P_ablated, in accuracy (0 to 1)."""
    baseline = exact_match(model, split, _BATCH).double().mean().item()
    means = mean_activations(model, split, mean)
    return baseline, [baseline - ablated_accuracy(model, split, layer, value) for layer, value in enumerate(means)]


def normalise(impacts: Sequence[float]) -> list[float]:
    """Impacts divided by the largest absolute one (paper A, 4.1.3); all zero when none has any."""
    largest = max(abs(impact) for impact in impacts)
    return [impact / largest if largest else 0.0 for impact in impacts]
