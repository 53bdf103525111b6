"""Attribution patching: its definition by hooks and finite differences, its laws, and where it is exact."""

import math
from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cdbench.api import Example
from cdbench.circuits import discovery
from cdbench.circuits.attribution import Work, attribute
from cdbench.circuits.contrasts import Contrasts, Pair, by_operands, make_contrasts
from cdbench.circuits.discovery import By, Search, discover, flat
from cdbench.circuits.faithfulness import circuit_metric
from cdbench.circuits.graph import LEVELS, Circuit, Graph, Level
from cdbench.circuits.patching import patch_exactly
from cdbench.errors import UserError
from cdbench.tokens import encode
from cdbench.zoo import make_tokenizer
from circuit_models import contrasts, linear_llama, llama, metric, naive_outputs, naive_patched


def test_a_models_scores_by_hand() -> None:
    """Everything linear, one layer of one head, width 2, two tokens, MLP off: the numbers can be followed.

    Embeddings: token 0 -> (1, 0), 1 -> (0, 1), 2 -> (2, 1). Values: v(x) = x, and the head writes z as it is. With no queries
    the last position reads the mean of both. Logit of token 0 is the first dimension, of token 1 the second; M = x0 − x1 at the
    last position.

    clean (2, 0): embeddings (2, 1), (1, 0); head at the end: ((2 + 1) / 2, (1 + 0) / 2) = (1.5, 0.5); sum (2.5, 0.5); M = 2.
    corrupt (1, 0): embeddings (0, 1), (1, 0); head: (0.5, 0.5); sum (1.5, 0.5); M = 1.
    Exchanging the head alone gives (1, 0) + (0.5, 0.5): M = 1, so it loses 1. The MLP writes nothing: 0. Exchanging the
    embedding loses all of 1, over the head, as the last token is the same.
    """
    model = linear_llama().double()
    small = type(model)(
        type(model.config)(
            hidden_size=2,
            intermediate_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            vocab_size=3,
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.no_grad():
        layer = small.model.layers[0]
        small.model.embed_tokens.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [2, 1]]))
        for projection in (layer.self_attn.v_proj, layer.self_attn.o_proj):
            projection.weight.copy_(torch.eye(2))
        layer.self_attn.q_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        small.lm_head.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
        layer.input_layernorm = layer.post_attention_layernorm = small.model.norm = torch.nn.Identity()
    one, graph = torch.tensor([1]), Graph.of(small)
    pair = Contrasts(torch.tensor([[2, 0]]), torch.tensor([[1, 0]]), one, one, torch.tensor([0]), one, ((None, None),))  # type: ignore[arg-type]
    assert attribute(small, pair).mean.tolist() == pytest.approx([1.0, 1.0, 0.0])  # input, a0.h0, m0
    assert patch_exactly(small, pair).mean(0).tolist() == pytest.approx([1.0, 1.0, 0.0])
    # Edges: the embedding reaches the head by its values alone (there is no query, so neither by queries nor by keys), and the
    # logits not at all, as the last token is the same; the head reaches the logits directly, and the MLP passes nothing on.
    # A norm whose epsilon outweighs all that it gets is a constant factor, here 1.
    layer.input_layernorm, layer.post_attention_layernorm, small.model.norm = (LlamaRMSNorm(2, 1e12) for _ in range(3))
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, small.model.norm):
        norm.weight.data.fill_(1e6)
    edges = attribute(small.double(), pair, "edge").mean
    told = dict(zip(graph.names("edge"), flat(edges, graph, "edge").tolist(), strict=True))
    assert {name: score for name, score in told.items() if abs(score) > 1e-6} == {
        "input->a0.h0<v>": pytest.approx(1.0),
        "a0.h0->logits": pytest.approx(1.0),
    }
    # Both dimensions of the head's output move by (1, 0), and the metric reads (1, −1).
    neurons = attribute(small, pair, "neuron").mean
    assert neurons.flatten().tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])


def test_positive_is_helpful_and_equation_5_is_its_negative() -> None:
    """Errata C1: the sign, pinned. A node without which the right answer loses has a positive score."""
    model, pairs = linear_llama(), contrasts()
    scores, exact = attribute(model, pairs).rows, patch_exactly(model, pairs)
    clean, patched = (
        metric(model, pairs.clean, pairs),
        naive_patched(model, pairs, ["m2"], naive_outputs(model, pairs.corrupt)),
    )
    node = Graph.of(model).mlp(2)
    torch.testing.assert_close(scores[:, node], (clean - patched).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exact[:, node], (clean - patched).detach(), rtol=1e-4, atol=1e-4)
    x = torch.stack([naive_outputs(model, ids)["m2"][:, -1] for ids in (pairs.clean, pairs.corrupt)])
    gradient = (
        model.lm_head.weight[pairs.correct] - model.lm_head.weight[pairs.other]
    ).detach()  # nothing comes after m2
    equation_5 = ((x[1] - x[0]) * gradient).sum(-1)
    torch.testing.assert_close(scores[:, node], -equation_5, rtol=1e-4, atol=1e-4)


def test_in_a_linear_model_attribution_is_exact() -> None:
    model, pairs = linear_llama(), contrasts(ragged=True)
    torch.testing.assert_close(attribute(model, pairs).rows, patch_exactly(model, pairs), rtol=1e-4, atol=1e-4)


def test_scores_are_the_derivative_of_moving_a_node_towards_its_counterfactual() -> None:
    """Finite differences, by hooks: (M(h + ε d) − M(h − ε d)) / 2ε with d = clean − corrupt -> the score, for every node.

    Llama's norms compute in float32 whatever the type, so ε must not be small.
    """
    model, pairs = llama().double(), contrasts()
    scores, epsilon = attribute(model, pairs).rows, 3e-3
    clean, corrupt = naive_outputs(model, pairs.clean), naive_outputs(model, pairs.corrupt)
    for column, name in enumerate(Graph.of(model).nodes):
        step = epsilon * (clean[name] - corrupt[name])
        up, down = (naive_patched(model, pairs, [name], {name: clean[name] + sign * step}) for sign in (1, -1))
        torch.testing.assert_close(scores[:, column], (up - down) / (2 * epsilon), rtol=5e-3, atol=5e-3)


def swapped(pairs: Contrasts) -> Contrasts:
    """The same question asked of the counterfactual's prompt."""
    return replace(pairs, clean=pairs.corrupt, corrupt=pairs.clean)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("level", ["edge", "neuron"])
def test_a_nodes_edges_and_its_neurons_add_up_to_the_node(level: str, steps: int) -> None:
    model, pairs = llama(), contrasts(n=10)
    nodes = attribute(model, pairs, steps=steps).mean
    parts = attribute(model, pairs, level, steps=steps).mean.sum(1)  # type: ignore[arg-type]
    if level == "edge" and steps > 1:
        # EAP-IG's edges begin a step earlier than its nodes: at the counterfactual's prompt, not at the first step from it.
        at_clean, at_corrupt = attribute(model, pairs).mean, attribute(model, swapped(pairs)).mean
        parts = parts + (at_clean + at_corrupt) / steps
    torch.testing.assert_close(parts, nodes, rtol=1e-4, atol=1e-5)


def test_an_edges_score_is_the_derivative_of_moving_what_one_reader_gets() -> None:
    """Against exact patching of one edge at a time, in a linear model, where both are the same."""
    model, pairs = linear_llama(), contrasts()
    with torch.no_grad():  # uniform attention has no gradient to queries; edges into them must be 0
        for layer in model.model.layers:
            layer.input_layernorm = torch.nn.RMSNorm(16)
            layer.input_layernorm.variance_epsilon = 1e12  # so large that the norm is a constant factor
            layer.input_layernorm.eps = 1e12
            layer.input_layernorm.weight.fill_(1e6)
    graph = Graph.of(model)
    scores = attribute(model, pairs, "edge").mean
    everything = torch.ones(len(graph.nodes), dtype=torch.bool)
    places = graph.edge_mask.nonzero().tolist()
    circuits = [Circuit(graph, everything)]
    for i, j in places:
        kept = graph.edge_mask.clone()
        kept[i, j] = False
        circuits.append(Circuit(graph, everything, edges=kept))
    lost = circuit_metric(model, pairs, circuits).double().mean(1)
    expected = lost[0] - lost[1:]
    found = torch.tensor([scores[i, j] for i, j in places])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3, check_dtype=False)
    queries = torch.tensor(["<q>" in name for name in graph.readers])
    assert scores[:, queries].abs().max() == 0
    assert scores[~graph.edge_mask].abs().max() == 0


def test_integrated_gradients_of_the_input_add_up_to_the_whole_difference() -> None:
    """Completeness (Sundararajan et al. 2017): the input's score tends to M(clean) − M(corrupt)."""
    model, pairs = llama(), contrasts()
    whole = (metric(model, pairs.clean, pairs) - metric(model, pairs.corrupt, pairs)).mean().item()
    errors = [abs(attribute(model, pairs, steps=steps).mean[0].item() - whole) for steps in (1, 8, 64)]
    assert errors[2] < 0.05 * abs(whole)
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("level", LEVELS)
def test_scores_do_not_depend_on_the_batch(level: str) -> None:
    model, pairs = llama(), contrasts(n=11, ragged=True)
    whole = attribute(model, pairs, level, work=Work(batch_size=100))  # type: ignore[arg-type]
    parts = attribute(model, pairs, level, work=Work(batch_size=3))  # type: ignore[arg-type]
    torch.testing.assert_close(whole.rows, parts.rows, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.rows, attribute(model, pairs, level, work=Work(batch_size=100)).rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", LEVELS)
def test_scores_do_not_depend_on_padding(level: str) -> None:
    model, pairs = llama(), contrasts(ragged=True)
    pad = torch.full((8, 4), 5)
    wider = replace(pairs, clean=torch.cat([pairs.clean, pad], 1), corrupt=torch.cat([pairs.corrupt, pad + 1], 1))
    first, second = (attribute(model, which, level).mean for which in (pairs, wider))  # type: ignore[arg-type]
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.15)])
def test_scores_hardly_depend_on_the_type(dtype: torch.dtype, tolerance: float, level: str) -> None:
    pairs = contrasts()
    expected = attribute(llama(), pairs, level).mean  # type: ignore[arg-type]
    found = attribute(llama().to(dtype), pairs, level).mean  # type: ignore[arg-type]
    assert ((found - expected).norm() / expected.norm()).item() < tolerance


def test_a_counterfactual_equal_to_the_clean_prompt_scores_nothing() -> None:
    pairs = contrasts()
    same = replace(pairs, corrupt=pairs.clean)
    for level in LEVELS:
        assert attribute(llama(), same, level).mean.abs().max() == 0


def test_it_leaves_the_model_as_it_was() -> None:
    model = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for level in LEVELS:
        attribute(model, contrasts(), level)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_bootstrap_intervals_hold_the_mean_and_stability_knows_signal_from_noise() -> None:
    scores = attribute(llama(), contrasts(n=60))
    limits = scores.interval()
    assert limits is not None
    low, high = limits
    assert bool(((low <= scores.mean) & (scores.mean <= high)).all())
    again, some = scores.interval(), scores.interval(torch.tensor([3, 0]))
    assert again is not None and some is not None
    assert torch.equal(again[0], low)  # drawn from a named scope
    torch.testing.assert_close(some[1], high[[3, 0]])
    every = torch.ones(scores.rows.shape[1:], dtype=torch.bool)
    noise = replace(scores, rows=torch.randn(scores.rows.shape, generator=torch.Generator().manual_seed(3)))
    signal = replace(noise, rows=noise.rows + 10 * torch.arange(16.0))
    assert signal.stability(every) > 0.95
    assert abs(noise.stability(every)) < 0.5
    few = replace(scores, rows=scores.rows[:3], sizes=scores.sizes[:3])
    assert few.stability(every) != few.stability(every)  # NaN: nothing can be said of three problems
    assert few.interval() is None


def test_stability_over_draws_is_the_mean_rank_correlation_of_every_two() -> None:
    """Four items: 1234 and 1243 correlate at 0.8, each with 4321 at −1 and −0.8; items that do not exist count nowhere."""
    from cdbench.circuits.scores import single, stability_over

    draws = [
        single("node", torch.tensor([*map(float, digits), extra]))
        for digits, extra in (("1234", 9.0), ("1243", -9.0), ("4321", 0.0))
    ]
    exists = torch.tensor([True] * 4 + [False])
    assert stability_over(draws, exists) == pytest.approx((0.8 - 1 - 0.8) / 3)
    assert math.isnan(stability_over(draws[:1], exists))


def test_bootstrap_intervals_of_scores_cover_their_mean() -> None:
    """By simulation: 95 % intervals of 40 problems cover the mean in 88 to 99 of 100 draws (percentiles run short)."""
    from cdbench.circuits.scores import Scores

    g, covered = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        limits = Scores("node", torch.randn(40, 1, generator=g) + 1, torch.ones(40, dtype=torch.long)).interval()
        assert limits is not None
        covered += int(limits[0][0] <= 1 <= limits[1][0])
    assert 176 <= covered <= 198


def test_intervals_weigh_folds_by_their_sizes() -> None:
    """Three folds of one problem at 0 and one of a thousand at 1: nearly every draw that has the large one is near 1."""
    from cdbench.circuits.scores import Scores

    scores = Scores("node", torch.tensor([[0.0], [0.0], [0.0], [1.0]]), torch.tensor([1, 1, 1, 1000]))
    limits = scores.interval()
    assert limits is not None
    assert limits[0][0] == 0  # a third of the draws lacks it
    drawn = [scores.mean_of(torch.tensor([0, 1, 2, 3])).item(), limits[1][0].item()]
    assert drawn[0] == pytest.approx(1000 / 1003)
    assert drawn[1] > 0.999


@pytest.mark.parametrize("level", ["edge", "neuron"])
def test_rows_are_of_problems_or_of_folds_that_hold_each_once_whatever_the_batch(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row a problem that sums to the nodes' row; of large models 53 problems in 20 folds of 2 or 3, to the same sums."""
    model, pairs = llama(), contrasts(n=53)
    nodes = attribute(model, pairs)
    for size in (7, 100):
        each = attribute(model, pairs, level, work=Work(batch_size=size))  # type: ignore[arg-type]
        assert each.sizes.tolist() == [1] * 53
        torch.testing.assert_close(each.rows.sum(2), nodes.rows, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("cdbench.circuits.attribution._PER_PROBLEM", 53 * each.rows[0].numel() - 1)
    for size in (7, 100):
        found = attribute(model, pairs, level, work=Work(batch_size=size))  # type: ignore[arg-type]
        assert found.sizes.sum() == 53 and len(found.sizes) == 20 and set(found.sizes.tolist()) == {2, 3}
        first = 0
        for row, count in zip(found.rows.sum(2), found.sizes.tolist(), strict=True):
            expected = nodes.rows[first : first + count].mean(0)
            torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-4)
            first += count
        torch.testing.assert_close(found.mean, each.mean, rtol=1e-4, atol=1e-5)


def test_an_edge_into_a_query_a_key_or_a_value_is_the_derivative_there() -> None:
    """Finite differences in a nonlinear model: one reader's stream moved a little towards what the edge would bring."""
    from cdbench.circuits.forward import Forward

    model, pairs = llama().double(), contrasts()
    forward, graph = Forward(model), Graph.of(model)
    scores = attribute(model, pairs, "edge").mean
    with torch.no_grad():
        near = forward.trace(forward.embed(pairs.clean))
        far = forward.trace(forward.embed(pairs.corrupt)).outputs
        delta = near.outputs.mlps[0] - far.mlps[0]  # of m0, read by the heads of layer 2

        def moved(part: str, head: int, step: float) -> torch.Tensor:
            shifted = forward.queries_keys_values(2, near.before[2] + step * delta)[
                ["query", "key", "value"].index(part)
            ]

            def edit(which: str, layer: int, value: torch.Tensor) -> torch.Tensor:
                if (which, layer) != (part, 2):
                    return value
                value = value.clone()
                value[:, :, head] = shifted[:, :, head]
                return value

            end = forward.trace(forward.embed(pairs.clean), edit).end
            return pairs.difference(forward.logits(end, pairs.last))

        for part in ("query", "key", "value"):
            for head in range(4):
                slope = ((moved(part, head, 1e-3) - moved(part, head, -1e-3)) / 2e-3).mean().item()
                column = graph.readers.index(f"a2.h{head}<{part[0]}>")
                assert scores[graph.mlp(0), column].item() == pytest.approx(slope, rel=2e-2, abs=2e-3), (part, head)
    parts = [scores[graph.mlp(0), graph.readers.index(f"a2.h1<{p}>")].item() for p in "qkv"]
    assert (
        min(abs(a - b) for a, b in zip(parts, parts[1:] + parts[:1], strict=True)) > 1e-3
    )  # so a mix-up would be seen


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("by", ["attribution", "exact"])
def test_wordings_of_one_problem_are_one_row(level: Level, by: By) -> None:
    """Eight pairs that ask three problems, two of them across batches: a row is the mean of a problem's own."""
    model, pairs = llama(), contrasts()
    asked = replace(pairs, problem=torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]))
    split = encode(make_tokenizer(), [Example("1+1=", "2", (1, 1))])  # which only mean ablation reads
    apart, found = (discover(model, some, split, Search(by, level), Work(3)) for some in (pairs, asked))
    assert found.sizes.tolist() == [3, 1, 4]
    for row, own in zip(found.rows, apart.rows.split([3, 1, 4]), strict=True):
        torch.testing.assert_close(row, own.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean, apart.mean, rtol=1e-4, atol=1e-5)
    assert found.interval() is None  # three problems, however often they are asked


@pytest.mark.parametrize("level", ["edge", "neuron"])
def test_wordings_of_one_problem_are_in_one_fold(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose scores fill memory: twenty-five problems, asked once to four times, in twenty rows."""
    model, pairs = llama(), contrasts(n=62)
    times = torch.tensor([1, 2, 3, 4] * 6 + [2])
    problem = torch.arange(25).repeat_interleave(times)
    apart = attribute(model, pairs, level).rows
    monkeypatch.setattr("cdbench.circuits.attribution._PER_PROBLEM", 1)
    found = attribute(model, replace(pairs, problem=problem), level, work=Work(7))
    fold = problem * 20 // 25
    assert found.sizes.tolist() == fold.bincount().tolist() and len(found.rows) == 20
    for row in range(20):
        torch.testing.assert_close(found.rows[row], apart[fold == row].mean(0), rtol=1e-4, atol=1e-5)


def test_pairs_about_the_same_two_numbers_are_one_problem() -> None:
    def pair(a: int, b: int) -> Pair:
        return Example(f"{a}+{b}=", str(a + b), (a, b)), Example("11+11=", "22", (11, 11))

    pairs = [pair(12, 30), pair(30, 12), pair(12, 31), pair(12, 30)]
    found = by_operands(make_contrasts(make_tokenizer(), pairs))
    assert found.problems.tolist() == [0, 0, 1, 2]
    assert found.take(torch.tensor([2, 3])).problems.tolist() == [0, 1]
    assert make_contrasts(make_tokenizer(), pairs).problems.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("level", ["edge", "neuron"])
def test_items_one_by_one_of_a_model_that_is_too_large_for_it_are_refused(
    level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A circuit an item, each of as many places as there are items, would fill memory before the first pass."""
    model, pairs = llama(), contrasts()
    items = Graph.of(model).items(level)
    assert len(discover(model, pairs, None, Search("exact", level)).mean.flatten()) >= items  # type: ignore[arg-type]
    monkeypatch.setattr(discovery, "_MOST", items)
    with pytest.raises(UserError, match=rf"{items:,} {level}s, each taken out of .* rank by attribution"):
        discover(model, pairs, None, Search("exact", level))  # type: ignore[arg-type]
