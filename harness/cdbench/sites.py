"""Where activations are read: `mlp.3.out`, `mlp.3.neurons`, `mlp.3.up`, `attn.5.head.2`, `logits`.

`neurons` is the input of `down_proj`, act(gate)·up, which is what a neuron of a gated MLP puts out;
`up` is the output of `up_proj` alone, as paper A's code has it (errata B5). A head is
its slice of the input of `o_proj`, so grouped-query attention needs nothing special.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cdbench.errors import UserError
from cdbench.tokens import Encoded

_SITE = re.compile(r"mlp\.(?P<mlp>\d+)\.(?P<part>out|neurons|up)|attn\.(?P<attn>\d+)\.head\.(?P<head>\d+)")
LOGITS = "logits"


def mlp_out(layer: int) -> str:
    """The name of a layer's MLP output."""
    return f"mlp.{layer}.out"


def require_llama(model: nn.Module) -> LlamaForCausalLM:
    """The model, if the hooks know its architecture.

    Raises:
        UserError: it is not a LlamaForCausalLM.
    """
    if not isinstance(model, LlamaForCausalLM):
        raise UserError(f"the hooks know LlamaForCausalLM, this model is a {type(model).__name__}")
    return model


Capture = Callable[[Tensor], None]


def _attach(model: LlamaForCausalLM, site: str, keep: Capture) -> Any:
    match = _SITE.fullmatch(site)
    if not match:
        raise UserError(f"unknown site '{site}'; write mlp.3.out, mlp.3.neurons, mlp.3.up, attn.5.head.2 or logits")
    layer = int(match["mlp"] or match["attn"] or 0)
    if layer >= model.config.num_hidden_layers:
        raise UserError(f"site '{site}': the model has layers 0 to {model.config.num_hidden_layers - 1}")
    block = model.model.layers[layer]
    if match["part"] == "out":
        return block.mlp.register_forward_hook(lambda module, args, output: keep(output))
    if match["part"] == "neurons":
        return block.mlp.down_proj.register_forward_pre_hook(lambda module, args: keep(args[0]))
    if match["part"] == "up":
        return block.mlp.up_proj.register_forward_hook(lambda module, args, output: keep(output))
    head, width = int(match["head"]), block.self_attn.head_dim
    if head >= model.config.num_attention_heads:
        raise UserError(f"site '{site}': the model has heads 0 to {model.config.num_attention_heads - 1}")
    cut = slice(head * width, (head + 1) * width)
    return block.self_attn.o_proj.register_forward_pre_hook(lambda module, args: keep(args[0][..., cut]))


@contextmanager
def captured(model: nn.Module, sites: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Fills the dictionary with the activations of each forward inside the block, [batch, positions, width].

    Raises:
        UserError: unknown site or architecture.
    """
    llama = require_llama(model)
    found: dict[str, Tensor] = {}
    handles = []
    try:
        for site in dict.fromkeys(sites):
            if site != LOGITS:
                handles.append(_attach(llama, site, partial(found.__setitem__, site)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def answer_logits(model: LlamaForCausalLM, batch: Encoded) -> Tensor:
    """Logits at the answer positions only, [b, a, vocabulary], float32.

    The head is applied to the positions asked for, not to all: at Llama's vocabulary of 128k it is most of the work.
    """
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    rows = torch.arange(len(batch), device=hidden.device)[:, None]
    logits: Tensor = model.lm_head(hidden[rows, batch.answer_positions])
    return logits.float()


def at_last_prompt(activation: Tensor, batch: Encoded) -> Tensor:
    """[b, t, width] -> [b, width], the row at each problem's last prompt token."""
    return activation[torch.arange(len(batch), device=activation.device), batch.last_prompt]
