"""Attribution, exact patching and attention against TransformerLens and pyvene, which nobody here wrote: `make oracles`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.circuits.attention import attention_pattern
from cdbench.circuits.attribution import attribute
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.graph import Graph
from cdbench.circuits.patching import patch_exactly
from cdbench.zoo import make_tokenizer
from circuit_models import contrasts, llama

pytestmark = pytest.mark.filterwarnings("ignore")
lens = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is optional: make oracles")


def bridged(model: LlamaForCausalLM) -> Any:
    """A model as TransformerLens runs it."""
    name = "meta-llama/Llama-3.2-1B"  # names the architecture; nothing is loaded from there
    return lens.TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=make_tokenizer(), device="cpu")


@pytest.fixture(scope="module")
def bridge() -> Any:
    """The same random Llama with grouped-query attention."""
    return bridged(own()[0])


def ungrouped(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same function, each query head with keys and values of its own: TransformerLens has no input of a head otherwise."""
    config = model.config
    made = llama(vocab_size=config.vocab_size, num_key_value_heads=config.num_attention_heads)
    state, shared = model.state_dict(), config.num_attention_heads // config.num_key_value_heads
    for name in state:
        if "k_proj" in name or "v_proj" in name:
            heads = state[name].unflatten(0, (config.num_key_value_heads, -1))
            state[name] = heads.repeat_interleave(shared, dim=0).flatten(0, 1)
    made.load_state_dict(state)
    return made


def hook_of(node: str) -> tuple[str, int | None]:
    """A node's hook in TransformerLens, and its head."""
    if node == "input":
        return "hook_embed", None
    layer, _, head = node[1:].partition(".h")
    return (f"blocks.{layer}.attn.hook_z", int(head)) if head else (f"blocks.{layer}.hook_mlp_out", None)


def metric(logits: Tensor, pairs: Contrasts) -> Tensor:
    return pairs.difference(logits[torch.arange(len(pairs)), pairs.last])


def own() -> tuple[Any, Contrasts]:
    return llama(vocab_size=len(make_tokenizer())), contrasts(vocabulary=len(make_tokenizer()))


def test_attribution_is_that_of_transformer_lens(bridge: Any) -> None:
    model, pairs = own()
    nodes = Graph.of(model).nodes
    with torch.no_grad():
        _, far = bridge.run_with_cache(pairs.corrupt)
    live: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> Tensor:
        if not value.requires_grad:
            value = value.detach().requires_grad_()
        live[hook.name] = value
        return value

    names = list(dict.fromkeys(hook_of(node)[0] for node in nodes))
    logits = bridge.run_with_hooks(pairs.clean, fwd_hooks=[(name, keep) for name in names])
    seen = list(live.values())
    gradients = dict(zip(live, torch.autograd.grad(metric(logits, pairs).sum(), seen), strict=True))
    aliases = dict(zip(names, live, strict=True))
    expected = []
    for node in nodes:
        name, head = hook_of(node)
        key = aliases[name]
        product = (live[key].detach() - far[name]) * gradients[key]
        expected.append((product if head is None else product[:, :, head]).flatten(1).sum(1))
    torch.testing.assert_close(attribute(model, pairs).rows, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


def edges_by_hooks(bridge: Any, pairs: Contrasts, graph: Graph, steps: int) -> Tensor:
    """Edge attribution from what TransformerLens's hooks see, [sources, readers]: (counterfactual - clean) of each source times
    the gradient at each reader's own input. With more than one step the mean gradient on the way from the counterfactual's
    embedding, at k/steps of it from k = 0 on (EAP-IG)."""
    layers = range(graph.layers)
    nodes = [*dict.fromkeys(hook_of(node)[0].replace("hook_z", "hook_result") for node in graph.nodes)]
    readers = [f"blocks.{i}.hook_{at}" for i in layers for at in ("q_input", "k_input", "v_input", "mlp_in")]
    readers.append(f"blocks.{graph.layers - 1}.hook_resid_post")

    def columns(values: Any) -> Tensor:
        """[n, t, each, width]: one head after the other, of what has heads."""
        return torch.cat([value if value.ndim == 4 else value[:, :, None] for value in values], 2)

    with torch.no_grad():
        near, far = bridge.run_with_cache(pairs.clean)[1], bridge.run_with_cache(pairs.corrupt)[1]
    moved = columns([(far[name] - near[name]).detach() for name in nodes])
    scores = torch.zeros(len(graph.nodes), graph.edge_mask.shape[1])
    for k in range(steps):
        share, live = k / steps if steps > 1 else 1.0, []

        def embedding(value: Tensor, hook: Any, share: float = share) -> Tensor:
            return torch.lerp(far["hook_embed"], near["hook_embed"], share).requires_grad_()

        def keep(value: Tensor, hook: Any, live: list[Tensor] = live) -> Tensor:
            live.append(value.clone())  # an MLP is given the stream itself, which goes on to other readers
            return live[-1]

        logits = bridge.run_with_hooks(
            pairs.clean, fwd_hooks=[("hook_embed", embedding), *((name, keep) for name in readers)]
        )
        gradients = torch.autograd.grad(metric(logits, pairs).sum(), live)
        scores -= torch.einsum("btsw,btrw->sr", moved, columns(gradients))
    return scores / (steps * len(pairs)) * graph.edge_mask


@pytest.mark.parametrize("steps", [1, 5])
def test_edges_are_those_of_transformer_lens(steps: int) -> None:
    model, pairs = own()
    graph, bridge = Graph.of(model), bridged(ungrouped(model))
    for switch in (bridge.set_use_split_qkv_input, bridge.set_use_attn_result, bridge.set_use_hook_mlp_in):
        switch(True)
    expected = edges_by_hooks(bridge, pairs, graph, steps)
    # Embeddings differ at two places before the last, where alone the last layer's queries, its MLP and the logits matter.
    assert (expected[graph.edge_mask] == 0).sum() == graph.heads + 2
    found = attribute(model, pairs, "edge", steps=steps).mean
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_exact_patching_is_that_of_transformer_lens(bridge: Any) -> None:
    model, pairs = own()
    _, far = bridge.run_with_cache(pairs.corrupt)
    base = metric(bridge(pairs.clean), pairs)
    found = patch_exactly(model, pairs)
    for column, node in enumerate(Graph.of(model).nodes):
        name, head = hook_of(node)

        def exchange(value: Tensor, hook: Any, name: str = name, head: int | None = head) -> Tensor:
            if head is None:
                return far[name]
            value = value.clone()
            value[:, :, head] = far[name][:, :, head]
            return value

        patched = metric(bridge.run_with_hooks(pairs.clean, fwd_hooks=[(name, exchange)]), pairs)
        torch.testing.assert_close(found[:, column], base - patched, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_is_that_of_transformer_lens(bridge: Any) -> None:
    from cdbench.api import Example

    examples = [Example(f"{a}+{b}=", str(a + b), (a, b)) for a, b in ((12, 34), (56, 78), (90, 11))]
    pattern = attention_pattern(own()[0], make_tokenizer(), examples)
    ids = torch.tensor([make_tokenizer()(example.prompt)["input_ids"] for example in examples])
    _, cache = bridge.run_with_cache(ids)
    for layer in range(3):
        expected = cache[f"blocks.{layer}.attn.hook_pattern"].mean(0)
        torch.testing.assert_close(pattern.weights[layer], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_exchanging_an_mlp_is_an_interchange_intervention_of_pyvene() -> None:
    pyvene = pytest.importorskip("pyvene", reason="pyvene is optional: make oracles")
    model, pairs = own()
    base, found = metric(model(input_ids=pairs.clean).logits, pairs), patch_exactly(model, pairs)
    for layer in range(3):
        config = pyvene.IntervenableConfig(
            representations=[pyvene.RepresentationConfig(layer, "mlp_output", "pos", 6)],
            intervention_types=pyvene.VanillaIntervention,
        )
        exchanged = pyvene.IntervenableModel(config, model)
        where = [[list(range(6))] * len(pairs)]
        _, out = exchanged(
            {"input_ids": pairs.clean}, [{"input_ids": pairs.corrupt}], {"sources->base": (where, where)}
        )
        expected = base - metric(out.logits, pairs)
        torch.testing.assert_close(found[:, Graph.of(model).mlp(layer)], expected, rtol=1e-4, atol=1e-5)
