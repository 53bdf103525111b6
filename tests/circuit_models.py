"""Small Llamas and pairs of prompts for the tests of circuits, and naive versions of what is tested, by hooks on the model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cdbench.api import Example
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.graph import Graph
from cdbench.seeds import generator_for
from cdbench.tokens import IGNORE, Encoded
from cdbench.zoo import fresh


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Random weights, large enough that attribution and the truth differ; two query heads share one head of keys and values."""
    sizes: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 64, "initializer_range": 0.3,
        "tie_word_embeddings": False, "attn_implementation": "eager",
    }  # fmt: skip
    return fresh(LlamaConfig(**{**sizes, **changes}), generator_for("test-llama", seed)).eval()


def contrasts(n: int = 8, t: int = 6, vocabulary: int = 40, seed: int = 0, ragged: bool = False) -> Contrasts:
    """Random prompts that differ from their counterfactuals at two positions; `ragged`: of different lengths, right-padded."""
    g = generator_for("test-contrasts", seed)
    clean = torch.randint(3, vocabulary, (n, t), generator=g)
    corrupt = clean.clone()
    corrupt[:, 1] = torch.randint(3, vocabulary, (n,), generator=g)
    corrupt[:, 2] = torch.randint(3, vocabulary, (n,), generator=g)
    last = torch.randint(3, t, (n,), generator=g) if ragged else torch.full((n,), t - 1)
    inside = torch.arange(t)[None] <= last[:, None]
    correct, other = torch.randint(3, vocabulary, (2, n), generator=g)
    empty = Example("", "", ())
    return Contrasts(
        torch.where(inside, clean, 2),
        torch.where(inside, corrupt, 2),
        last,
        last,
        correct,
        other,
        ((empty, empty),) * n,
    )


Hook = Callable[..., Any]


@contextmanager
def hooked(model: LlamaForCausalLM, hooks: Sequence[tuple[nn.Module, bool, Hook]]) -> Iterator[None]:
    """Hooks on modules, before (True) or after (False) they run."""
    handles = [m.register_forward_pre_hook(f) if before else m.register_forward_hook(f) for m, before, f in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def metric(model: LlamaForCausalLM, ids: Tensor, pairs: Contrasts) -> Tensor:
    """[n] by the model's own forward."""
    logits = model(input_ids=ids, use_cache=False).logits
    return pairs.difference(logits[torch.arange(len(ids)), pairs.last])


def naive_outputs(model: LlamaForCausalLM, ids: Tensor) -> dict[str, Tensor]:
    """Every node's output by hooks: input and MLPs [n, t, width], heads as the slice of o_proj's input [n, t, head width]."""
    graph, found = Graph.of(model), {}
    width = model.model.layers[0].self_attn.head_dim
    hooks: list[tuple[nn.Module, bool, Hook]] = [
        (model.model.embed_tokens, False, lambda m, a, o: found.__setitem__("input", o))
    ]
    for i, layer in enumerate(model.model.layers):

        def heads(m: nn.Module, a: tuple[Tensor], i: int = i) -> None:
            for h in range(graph.heads):
                found[f"a{i}.h{h}"] = a[0][..., h * width : (h + 1) * width]

        hooks.append((layer.self_attn.o_proj, True, heads))
        hooks.append((layer.mlp, False, lambda m, a, o, i=i: found.__setitem__(f"m{i}", o)))
    with torch.no_grad(), hooked(model, hooks):
        model(input_ids=ids, use_cache=False)
    return found


def naive_patched(
    model: LlamaForCausalLM, pairs: Contrasts, nodes: Sequence[str], instead: dict[str, Tensor]
) -> Tensor:
    """[n] the metric of the clean prompts with some nodes' outputs replaced, one whole pass by the model's own forward."""
    graph, width = Graph.of(model), model.model.layers[0].self_attn.head_dim
    hooks: list[tuple[nn.Module, bool, Hook]] = []
    if "input" in nodes:
        hooks.append((model.model.embed_tokens, False, lambda m, a, o: instead["input"]))
    for i, layer in enumerate(model.model.layers):

        def heads(m: nn.Module, a: tuple[Tensor], i: int = i) -> tuple[Tensor]:
            z = a[0].clone()
            for h in range(graph.heads):
                if f"a{i}.h{h}" in nodes:
                    z[..., h * width : (h + 1) * width] = instead[f"a{i}.h{h}"]
            return (z,)

        hooks.append((layer.self_attn.o_proj, True, heads))
        if f"m{i}" in nodes:
            hooks.append((layer.mlp, False, lambda m, a, o, i=i: instead[f"m{i}"]))
    with torch.no_grad(), hooked(model, hooks):
        return metric(model, pairs.clean, pairs)


class Ones(nn.Module):
    """An activation function that is 1 everywhere: makes a gated MLP linear."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def linear_llama(seed: int = 0) -> LlamaForCausalLM:
    """A Llama in which all is linear: no norms, uniform attention (no queries), MLPs without a gate."""
    model = llama(seed)
    model.model.norm = nn.Identity()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.mlp.act_fn = Ones()
            layer.input_layernorm = nn.Identity()
            layer.post_attention_layernorm = nn.Identity()
    return model


@torch.no_grad()
def half_right(model: LlamaForCausalLM, split: Encoded) -> Encoded:
    """The split with what the model itself predicts as the answer of every other problem: those it gets right, and random
    weights get hardly another one right. A test of hits on a split that none is right of could not fail."""
    logits = model(input_ids=split.ids).logits
    own = logits[torch.arange(len(split))[:, None], split.answer_positions].argmax(-1)
    theirs = (torch.arange(len(split)) % 2 == 0)[:, None] & (split.answer_tokens != IGNORE)
    return replace(split, answer_tokens=torch.where(theirs, own, split.answer_tokens))
