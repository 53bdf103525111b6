"""The forward pass taken apart is the model's own."""

import pytest
import torch
from torch import nn

from cdbench.circuits.forward import Forward, frozen
from cdbench.circuits.graph import Graph
from cdbench.errors import UserError
from circuit_models import contrasts, llama, naive_outputs

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
KINDS = {
    "grouped-query attention": {},
    "multi-head attention": {"num_key_value_heads": 4},
    "one key-value head": {"num_key_value_heads": 1},
    "sdpa": {"attn_implementation": "sdpa"},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied embeddings": {"tie_word_embeddings": True},
    "heads wider than their share": {"head_dim": 8},
    "Llama 3's rope": {"rope_parameters": LLAMA3_ROPE},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_models_own_logits(kind: str) -> None:
    model, pairs = llama(**KINDS[kind]), contrasts()
    forward = Forward(model)
    with torch.no_grad():
        end = forward.trace(forward.embed(pairs.clean)).end
        own = model(input_ids=pairs.clean).logits
    every = torch.arange(6).expand(8, 6)
    torch.testing.assert_close(forward.logits(end, every), own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forward.logits(end, pairs.last), own[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_nodes_put_out_is_what_hooks_on_the_model_see(kind: str) -> None:
    model, pairs = llama(**KINDS[kind]), contrasts()
    forward, seen = Forward(model), naive_outputs(model, pairs.clean)
    with torch.no_grad():
        outputs = forward.trace(forward.embed(pairs.clean)).outputs
    torch.testing.assert_close(outputs.embedding, seen["input"])
    for i in range(3):
        torch.testing.assert_close(outputs.mlps[i], seen[f"m{i}"], rtol=1e-4, atol=1e-5)
        for h in range(4):
            torch.testing.assert_close(outputs.heads[i][:, :, h], seen[f"a{i}.h{h}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_taken_up_again_ends_where_the_whole_pass_does(kind: str, layer: int) -> None:
    """At the positions asked for, in their order, some of them twice."""
    forward, pairs = Forward(llama(**KINDS[kind])), contrasts()
    read = torch.stack([pairs.last, torch.zeros_like(pairs.last), pairs.last - 1, pairs.last], dim=1)
    with torch.no_grad():
        trace = forward.trace(forward.embed(pairs.clean))
        expected = trace.end[torch.arange(len(read))[:, None], read]
        torch.testing.assert_close(forward.restart(trace.before[layer], layer, read), expected)


def test_each_heads_share_adds_up_to_what_the_layer_writes() -> None:
    model = llama(attention_bias=True)
    forward, pairs = Forward(model), contrasts()
    with torch.no_grad():
        nn.init.normal_(model.model.layers[1].self_attn.o_proj.bias)
        z = forward.trace(forward.embed(pairs.clean)).outputs.heads[1]
        shares = forward.write(1, z).sum(2) + forward.bias(1)
        torch.testing.assert_close(shares, forward.project(1, z), rtol=1e-5, atol=1e-5)


def test_what_stands_right_of_the_last_token_changes_nothing() -> None:
    forward, pairs = Forward(llama()), contrasts(ragged=True)
    longer = torch.cat([pairs.clean, torch.full((8, 3), 7)], dim=1)
    with torch.no_grad():
        ends = [forward.trace(forward.embed(ids)).end for ids in (pairs.clean, longer)]
        first, second = (forward.logits(end, pairs.last) for end in ends)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"training mode; call model.eval\(\)"):
        Forward(llama().train())


def test_an_architecture_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="this model is a Linear"):
        Forward(nn.Linear(2, 2).eval())


def test_frozen_gives_parameters_back_as_they_were() -> None:
    model = llama()
    model.lm_head.weight.requires_grad_(False)
    with pytest.raises(KeyError), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]


def test_the_graph_has_mibs_names_in_mibs_order() -> None:
    graph = Graph(layers=2, heads=2, width=4)
    assert graph.nodes == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert graph.readers[:7] == ("a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0")
    assert graph.readers[-1] == "logits"
    # Into layer 0: 1 node to 6 inputs of heads, 3 nodes to the MLP; layer 1: 4 to 6, 6 to 1; 7 to the logits.
    assert len(graph.edges) == graph.items("edge") == 6 + 3 + 24 + 6 + 7
    assert graph.edges[0] == "input->a0.h0<q>"
    assert "m0->a1.h1<v>" in graph.edges
    assert "m1->a1.h1<v>" not in graph.edges
    assert [graph.nodes[graph.head(1, 1)], graph.nodes[graph.mlp(0)]] == ["a1.h1", "m0"]
