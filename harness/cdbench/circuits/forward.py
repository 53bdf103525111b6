"""The forward pass of a Llama taken apart, so that what a node writes can be read, replaced, and gone on from.

It calls the model's own modules (norms, projections, rotary embedding, MLPs) and differs from `LlamaForCausalLM.forward` in
nothing but who calls them; a test holds the two together. Prompts are padded on the right, so the causal mask is the only one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from cdbench.circuits.graph import Graph
from cdbench.errors import UserError
from cdbench.sites import require_llama

Part = Literal["input", "query", "key", "value", "heads", "mlp_input", "mlp"]
Edit = Callable[[Part, int, Tensor], Tensor]
"""(part, layer, value) -> the value to go on with.

[b, t, width] for the input, the MLP's input (before its norm) and the MLP; [b, t, heads, head width] for queries, keys and values
(before rotation, once per query head) and for the heads (before the output projection).
"""


def wide(x: Tensor) -> Tensor:
    """In at least float32: half precision is for storing, not for sums."""
    return x if x.dtype == torch.float64 else x.float()


def as_it_is(part: Part, layer: int, value: Tensor) -> Tensor:
    """The edit that changes nothing."""
    return value


@dataclass(frozen=True)
class Outputs:
    """What all nodes put out: [b, t, width] of the input and of each MLP, [b, t, heads, head width] of each layer's heads.

    A head's output is kept before its part of the output projection: that map is linear and a head's own, so exchanging one or
    the other is the same, and this is many times smaller.
    """

    embedding: Tensor
    heads: list[Tensor]
    mlps: list[Tensor]

    def detach(self) -> "Outputs":
        """The same without gradient."""
        return Outputs(self.embedding.detach(), [z.detach() for z in self.heads], [m.detach() for m in self.mlps])


@dataclass(frozen=True)
class Trace:
    """One pass: the nodes' outputs and the residual stream [b, t, width] before each layer, after its heads, and at the end."""

    outputs: Outputs
    before: list[Tensor]
    middle: list[Tensor]
    end: Tensor


class Forward:
    """The parts of one model's forward pass.

    Raises:
        UserError: not a LlamaForCausalLM, or in training mode (dropout would make every number a draw).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: LlamaForCausalLM = require_llama(model)
        if model.training:
            raise UserError("the model is in training mode; call model.eval() before looking at its circuits")
        self.graph = Graph.of(self.model)
        self.blocks = list(self.model.model.layers)
        first = self.blocks[0].self_attn
        self.head_width: int = first.head_dim
        self.shared: int = first.num_key_value_groups
        """How many query heads share one head of keys and values."""

    def embed(self, ids: Tensor) -> Tensor:
        """[b, t] -> [b, t, width]."""
        embedded: Tensor = self.model.model.embed_tokens(ids)
        return embedded

    def split(self, x: Tensor) -> Tensor:
        """[b, t, n * head width] -> [b, t, n, head width]."""
        return x.reshape(*x.shape[:-1], -1, self.head_width)

    def rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding for the positions of x."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        cos, sin = self.model.model.rotary_emb(x, position_ids=positions)
        return cos, sin

    def queries_keys_values(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[b, t, width] -> [b, t, heads, head width] three times, before rotation; keys and values once per query head."""
        own = self.blocks[layer].self_attn
        normed = self.blocks[layer].input_layernorm(x)
        q, k, v = (self.split(project(normed)) for project in (own.q_proj, own.k_proj, own.v_proj))
        return q, k.repeat_interleave(self.shared, dim=2), v.repeat_interleave(self.shared, dim=2)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys, values [b, t, heads, head width] -> what each head has read, of the same shape."""
        first, second, third = (x.transpose(1, 2) for x in (q, k, v))
        first, second = apply_rotary_pos_emb(first, second, *rotary)
        scale = self.blocks[layer].self_attn.scaling
        return F.scaled_dot_product_attention(first, second, third, is_causal=True, scale=scale).transpose(1, 2)

    def heads(self, layer: int, x: Tensor, rotary: tuple[Tensor, Tensor], edit: Edit = as_it_is) -> Tensor:
        """The heads' outputs from the residual stream before the layer, [b, t, heads, head width]."""
        q, k, v = self.queries_keys_values(layer, x)
        q, k, v = edit("query", layer, q), edit("key", layer, k), edit("value", layer, v)
        return edit("heads", layer, self.attend(layer, q, k, v, rotary))

    def project(self, layer: int, z: Tensor) -> Tensor:
        """The heads' joint contribution to the residual stream, [b, t, width]; with the bias, if there is one."""
        projected: Tensor = self.blocks[layer].self_attn.o_proj(z.flatten(-2))
        return projected

    def output_weight(self, layer: int) -> Tensor:
        """[heads, head width, width]: each head's part of the output projection."""
        weight: Tensor = self.blocks[layer].self_attn.o_proj.weight
        return weight.T.reshape(-1, self.head_width, weight.shape[0])

    def write(self, layer: int, z: Tensor) -> Tensor:
        """Each head's own contribution to the residual stream, [b, t, heads, width]; the bias is no head's."""
        return torch.einsum("bthe,hew->bthw", z, self.output_weight(layer))

    def bias(self, layer: int) -> Tensor | float:
        """The bias of the output projection; 0 for the Llamas we know."""
        bias: Tensor | None = self.blocks[layer].self_attn.o_proj.bias
        return 0.0 if bias is None else bias

    def mlp(self, layer: int, middle: Tensor) -> Tensor:
        """The MLP's output from the residual stream after the heads, [b, t, width]."""
        block = self.blocks[layer]
        out: Tensor = block.mlp(block.post_attention_layernorm(middle))
        return out

    def logits(self, end: Tensor, at: Tensor) -> Tensor:
        """Logits in at least float32 from the stream's end: at one position each, [b] -> [b, vocabulary], or at several."""
        rows = torch.arange(len(end), device=end.device)
        chosen = end[rows[:, None], at] if at.ndim == 2 else end[rows, at]
        return wide(self.model.lm_head(self.model.model.norm(chosen)))

    def trace(self, embedding: Tensor, edit: Edit = as_it_is) -> Trace:
        """Runs all layers from what `embed` gave; `edit` may replace what is read and written on the way."""
        x = edit("input", 0, embedding)
        rotary = self.rotary(x)
        outputs, before, middle = Outputs(x, [], []), [], []
        for layer in range(self.graph.layers):
            before.append(x)
            outputs.heads.append(self.heads(layer, x, rotary, edit))
            middle.append(x + self.project(layer, outputs.heads[-1]))
            read = edit("mlp_input", layer, middle[-1])
            outputs.mlps.append(edit("mlp", layer, self.mlp(layer, read)))
            x = middle[-1] + outputs.mlps[-1]
        return Trace(outputs, before, middle, x)

    def restart(self, x: Tensor, layer: int, read: Tensor) -> Tensor:
        """The residual stream's end at the positions `read` [b, a], from the stream [b, t, width] before `layer` on.

        Behind the last layer's keys and values nothing moves between positions any more: the rest of it is done at `read` alone.
        """
        rotary, last, rows = self.rotary(x), self.graph.layers - 1, torch.arange(len(x), device=x.device)[:, None]
        for i in range(layer, last):
            x = x + self.project(i, self.heads(i, x, rotary))
            x = x + self.mlp(i, x)
        end = x[rows, read]
        end = end + self.project(last, self._heads_at(last, x, read, rotary))
        return end + self.mlp(last, end)

    def _heads_at(self, layer: int, x: Tensor, read: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """`heads` at the positions `read` [b, a] alone, [b, a, heads, head width]."""
        q, k, v = self.queries_keys_values(layer, x)
        rows = torch.arange(len(x), device=x.device)[:, None]
        first, second, third = (part.transpose(1, 2) for part in (q[rows, read], k, v))
        cos, sin = rotary
        _, second = apply_rotary_pos_emb(second, second, cos, sin)
        first, _ = apply_rotary_pos_emb(first, first, cos[0][read], sin[0][read])
        seen = torch.arange(x.shape[1], device=x.device) <= read[:, :, None]
        scale = self.blocks[layer].self_attn.scaling
        return F.scaled_dot_product_attention(first, second, third, seen[:, None], scale=scale).transpose(1, 2)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside the block: only activations do."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
