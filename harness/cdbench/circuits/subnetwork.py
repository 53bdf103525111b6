"""Which parameters are a circuit's: what subnetwork fine-tuning may change (paper B, 4.4; Wadhwa et al. 2025)."""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.errors import UserError

_SITE = re.compile(r"mlp\.(?P<mlp>\d+)\.out|attn\.(?P<attn>\d+)\.head\.(?P<head>\d+)")
Place = slice | tuple[slice, slice]


def parameter_masks(model: LlamaForCausalLM, sites: Sequence[str]) -> dict[str, Tensor]:
    """Name -> which entries belong to the heads and MLPs at `sites`, bool; a parameter that has none is not there.

    A head owns its rows of the query projection and its columns of the output projection; keys and values belong to each head
    that reads them. An MLP owns all its matrices. Norms, embeddings, biases of the output projection and the head of the model
    are nobody's.

    Raises:
        UserError: a site that is neither `mlp.3.out` nor `attn.5.head.2`, or that the model has not.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    for site in sites:
        for name, where in _owned(model, site):
            if name in shapes:
                masks.setdefault(name, torch.zeros(shapes[name], dtype=torch.bool))[where] = True
    return masks


def shared_parameters(model: LlamaForCausalLM, part: Sequence[str], other: Sequence[str]) -> float:
    """The share of a part's parameters that belong to another part of the model, too.

    Raises:
        UserError: as `parameter_masks`.
        ValueError: the part has no parameters.
    """
    mine, theirs = parameter_masks(model, part), parameter_masks(model, other)
    count = sum(int(mask.sum()) for mask in mine.values())
    if not count:
        raise ValueError("a part of a model without parameters shares none")
    return sum(int((mask & theirs[name]).sum()) for name, mask in mine.items() if name in theirs) / count


def _owned(model: LlamaForCausalLM, site: str) -> Iterator[tuple[str, Place]]:
    """The parameters of a site and which entries of each; some models have no biases."""
    match, config = _SITE.fullmatch(site), model.config
    layer = int((match["mlp"] or match["attn"]) if match else config.num_hidden_layers)
    head = int((match["head"] or 0) if match else 0)
    if not match or layer >= config.num_hidden_layers or head >= config.num_attention_heads:
        raise UserError(
            f"'{site}' is no head and no MLP of this model: write mlp.3.out or attn.5.head.2; it has layers 0 to "
            f"{config.num_hidden_layers - 1} and heads 0 to {config.num_attention_heads - 1}"
        )
    prefix, own = f"model.layers.{layer}", model.model.layers[layer].self_attn
    if match["mlp"]:
        for part in ("gate_proj", "up_proj", "down_proj"):
            yield f"{prefix}.mlp.{part}.weight", slice(None)
            yield f"{prefix}.mlp.{part}.bias", slice(None)
        return
    mine, shared = (slice(i * own.head_dim, (i + 1) * own.head_dim) for i in (head, head // own.num_key_value_groups))
    for part, rows in (("q_proj", mine), ("k_proj", shared), ("v_proj", shared)):
        yield f"{prefix}.self_attn.{part}.weight", rows
        yield f"{prefix}.self_attn.{part}.bias", rows
    yield f"{prefix}.self_attn.o_proj.weight", (slice(None), mine)
