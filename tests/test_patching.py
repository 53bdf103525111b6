"""Exact patching and mean ablation by prefix restart give what one whole pass a node gives."""

import pytest
import torch

from cdbench.api import Example
from cdbench.circuits.ablation import ablated_accuracy, mean_activations
from cdbench.circuits.attribution import Work
from cdbench.circuits.discovery import Search, agreement, discover, exact_scores, flat, strongest
from cdbench.circuits.faithfulness import circuit_metric
from cdbench.circuits.forward import Forward
from cdbench.circuits.graph import LEVELS, Circuit, Graph, Level
from cdbench.circuits.patching import (
    ablated_hits,
    all_nodes,
    expanded,
    mean_outputs,
    patch_exactly,
    placed_means,
)
from cdbench.tokens import encode
from cdbench.zoo import exact_match, make_tokenizer
from circuit_models import contrasts, half_right, llama, metric, naive_outputs, naive_patched


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("kind", [{}, {"attention_bias": True}, {"num_key_value_heads": 4}, {"num_hidden_layers": 1}])
def test_patching_from_the_layer_on_is_patching_in_a_whole_pass(kind: dict[str, object], chunk: int) -> None:
    model, pairs = llama(**kind), contrasts(ragged=True)
    corrupt, base = naive_outputs(model, pairs.corrupt), metric(model, pairs.clean, pairs)
    found = patch_exactly(model, pairs, chunk=chunk)
    for column, name in enumerate(Graph.of(model).nodes):
        expected = base - naive_patched(model, pairs, [name], corrupt)
        torch.testing.assert_close(found[:, column], expected, rtol=1e-4, atol=1e-4)


def test_some_nodes_alone_are_patched_as_among_all() -> None:
    model, pairs = llama(), contrasts(n=7)
    some = [14, 0, 3]
    found = patch_exactly(model, pairs, some, work=Work(batch_size=2))
    torch.testing.assert_close(found, patch_exactly(model, pairs)[:, some], rtol=1e-4, atol=1e-5)


PROMPTS = [("1+2=", "3"), ("12+34=", "46"), ("5+66=", "71"), ("99+9=", "108"), ("40+40=", "80")]


def problems():  # type: ignore[no-untyped-def]
    return [Example(prompt, answer, tuple(map(int, prompt[:-1].split("+")))) for prompt, answer in PROMPTS]


def test_the_means_are_those_of_the_layers_ablation() -> None:
    model, split = llama(), encode(make_tokenizer(), problems())
    means = mean_outputs(model, split, batch_size=2)
    for layer, value in enumerate(mean_activations(model, split, "pooled")):
        torch.testing.assert_close(means.mlps[layer][0, 0], value, rtol=1e-4, atol=1e-5)


def test_placed_means_are_counted_from_the_last_prompt_token() -> None:
    """One problem at a time, by hand: "12+34=" has its "=" at token 5, "1+2=" at token 3; both are place 5 of the longest."""
    model, split = llama(), encode(make_tokenizer(), problems())
    forward, found = Forward(model), placed_means(model, split, batch_size=2)
    assert found.last == int(split.last_prompt.max()) == 5
    by_place: dict[int, list[torch.Tensor]] = {}
    for row, (prompt, answer) in enumerate(PROMPTS):
        with torch.no_grad():
            # What is read: the prompt and all of the answer but its end of text.
            one = forward.trace(forward.embed(split.ids[row : row + 1, : len(prompt + answer)])).outputs
        for t in range(len(prompt + answer)):
            by_place.setdefault(t - (len(prompt) - 1) + 5, []).append(one.mlps[1][0, t])
    assert len(found.outputs.mlps[1]) == max(by_place) + 1
    for place, values in by_place.items():
        torch.testing.assert_close(found.outputs.mlps[1][place], torch.stack(values).mean(0), rtol=1e-4, atol=1e-5)
    at = found.at(split)
    torch.testing.assert_close(at.heads[0][0, 3], found.outputs.heads[0][5])  # "1+2=": its "="
    assert at.embedding.shape == (5, split.ids.shape[1], found.outputs.embedding.shape[1])
    # Places beyond all that was seen have the nearest one's.
    longer = encode(make_tokenizer(), [Example("1234+567=", "1801", (1234, 567))])
    torch.testing.assert_close(found.at(longer).mlps[0][0, 0], found.outputs.mlps[0][0])


def test_ablating_mlps_by_restart_gives_the_accuracies_of_the_hooks(world) -> None:  # type: ignore[no-untyped-def]
    workspace = world.workspace(build=False)
    model, split = workspace.teacher.model(), encode(workspace.tokenizer, workspace.train_examples[:64])
    graph, means = Graph.of(model), mean_outputs(model, split)
    whole, ablated = ablated_hits(
        model, split, all_nodes(graph), lambda batch: expanded(means, batch.ids), Work(batch_size=25)
    )
    assert torch.equal(whole, exact_match(model, split))
    for layer, value in enumerate(mean_activations(model, split, "pooled")):
        assert ablated[:, graph.mlp(layer)].double().mean() == ablated_accuracy(model, split, layer, value)
    impacts = discover(model, contrasts(), split, Search("ablation")).mean
    assert impacts[graph.mlp(0)] == whole.double().mean() - ablated[:, graph.mlp(0)].double().mean()


def test_ablating_a_node_with_its_own_constant_output_changes_nothing() -> None:
    model = llama(vocab_size=len(make_tokenizer()))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[2].self_attn.v_proj.weight.zero_()
    split = half_right(model, encode(make_tokenizer(), problems()))
    means = mean_outputs(model, split)
    whole, ablated = ablated_hits(model, split, all_nodes(Graph.of(model)), lambda batch: expanded(means, batch.ids))
    silent = [Graph.of(model).mlp(1), *(Graph.of(model).head(2, h) for h in range(4))]
    assert torch.equal(ablated[:, silent], whole[:, None].expand(-1, 5))
    assert 0 < whole.sum() < len(whole) and (ablated != whole[:, None]).any()


def test_exact_scores_of_single_items_agree_between_levels() -> None:
    """A node is all its neurons: exchanging every dimension at once is exchanging the node."""
    model, pairs = llama(), contrasts()
    graph = Graph.of(model)
    nodes = exact_scores(model, pairs, "node", (5, 9)).float()
    dims = torch.ones(2, *graph.shape("neuron"), dtype=torch.bool)
    dims[0, 5], dims[1, 9] = False, False
    every = torch.ones(len(graph.nodes), dtype=torch.bool)
    lost = circuit_metric(
        model, pairs, [Circuit(graph, every), *(Circuit(graph, every, neurons=d) for d in dims)]
    ).mean(1)
    torch.testing.assert_close(lost[0] - lost[1:], nodes, rtol=1e-4, atol=1e-4)
    # The last MLP has one edge, to the logits: exchanging the edge is exchanging the node.
    edge = graph.edges.index("m2->logits")
    last = exact_scores(model, pairs, "edge", (edge,))
    torch.testing.assert_close(
        last, exact_scores(model, pairs, "node", (graph.mlp(2),)), rtol=1e-4, atol=1e-4, check_dtype=False
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.15)])
def test_exact_scores_hardly_depend_on_the_type(dtype: torch.dtype, tolerance: float, level: Level) -> None:
    """Neurons are each a small part of a node, and rounding is not: those of the embedding, which are large."""
    pairs, graph = contrasts(), Graph.of(llama())
    items = range(16 if level == "neuron" else graph.items(level))
    expected, found = (exact_scores(model, pairs, level, items) for model in (llama(), llama().to(dtype)))
    assert ((found - expected).norm() / expected.norm()).item() < tolerance


def test_agreement_is_computed_on_the_top_items() -> None:
    model, pairs = llama(), contrasts()
    scores = discover(model, pairs, encode(make_tokenizer(), problems()), Search())
    found = agreement(model, pairs, scores, 5)
    assert list(found.items) == scores.mean.abs().argsort(descending=True)[:5].tolist()
    exact = patch_exactly(model, pairs).mean(0)
    assert found.exact == pytest.approx([exact[i].item() for i in found.items], abs=1e-4)
    assert found.same_sign == sum(a * b > 0 for a, b in zip(found.approximate, found.exact, strict=True))
    for none in (0, -1, 17):
        with pytest.raises(ValueError, match=f"the top {none} nodes; there are 1 to 16"):
            agreement(model, pairs, scores, none)
        with pytest.raises(ValueError, match=f"the top {none} nodes; there are 1 to 16"):
            strongest(scores, Graph.of(model), none)
    assert sorted(strongest(scores, Graph.of(model), 16)) == [*range(16)]


@pytest.mark.parametrize("level", ["edge", "neuron"])
def test_every_edge_and_neuron_can_be_patched_exactly(level: Level) -> None:
    """By problem, and in the place of its name: what its exchange alone takes from the metric."""
    model, pairs = llama(), contrasts()
    graph = Graph.of(model)
    scores = discover(model, pairs, encode(make_tokenizer(), problems()), Search("exact", level))
    assert scores.rows.shape == (len(pairs), *graph.shape(level))
    some = (0, 7, graph.items(level) - 1)
    torch.testing.assert_close(
        flat(scores.mean, graph, level)[list(some)], exact_scores(model, pairs, level, some), rtol=1e-5, atol=1e-6
    )
    if level == "edge":
        assert not scores.rows[:, ~graph.edge_mask].any()
        # The last MLP is read by the logits alone: its edge there is the node, for each problem.
        edge = scores.rows[:, graph.mlp(2), -1]
        torch.testing.assert_close(edge, patch_exactly(model, pairs, [graph.mlp(2)])[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["edge", "neuron"])
def test_every_edge_and_neuron_can_be_ablated(level: Level) -> None:
    """What writes nothing can be set to its mean, which is nothing, unnoticed; the last MLP's edge is the node."""
    model = llama(vocab_size=len(make_tokenizer()))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    split = half_right(model, encode(make_tokenizer(), problems()))
    graph = Graph.of(model)
    scores = discover(model, contrasts(), split, Search("ablation", level))
    assert scores.rows.shape == (len(split), *graph.shape(level))
    assert not scores.rows[:, graph.mlp(1)].any() and scores.rows.any()
    if level == "edge":
        nodes = discover(model, contrasts(), split, Search("ablation"))
        assert torch.equal(scores.rows[:, graph.mlp(2), -1], nodes.rows[:, graph.mlp(2)])


def test_expanded_means_stand_at_every_position() -> None:
    model, split = llama(), encode(make_tokenizer(), problems())
    means = mean_outputs(model, split)
    wide = expanded(means, torch.zeros(5, 7, dtype=torch.long))
    assert (wide.embedding.shape, wide.heads[1].shape, wide.mlps[2].shape) == ((5, 7, 16), (5, 7, 4, 4), (5, 7, 16))
    assert torch.equal(wide.heads[1][4, 6], means.heads[1][0, 0])
    assert torch.equal(wide.embedding[2, 3], means.embedding[0, 0])
