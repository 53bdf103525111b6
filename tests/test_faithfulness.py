"""Faithfulness as MIB's code has it: limits, three levels against each other, areas, pruning."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdbench.circuits.attribution import Work, attribute
from cdbench.circuits.evaluation import Rivals, evaluate
from cdbench.circuits.faithfulness import (
    RESAMPLE,
    SIZES,
    Ablation,
    Curve,
    Exchange,
    Ranking,
    _moved,
    circuit_metric,
    cmd,
    cpr,
    curve,
    curves,
    greedy_order,
    magnitude,
    random_scores,
)
from cdbench.circuits.graph import LEVELS, Circuit, Graph, Level, prune, top
from cdbench.circuits.patching import mean_outputs, placed_means
from cdbench.circuits.scores import Scores, single, spearman
from cdbench.errors import UserError
from cdbench.tokens import Encoded, encode
from cdbench.zoo import make_tokenizer
from circuit_models import contrasts, llama, metric, naive_outputs, naive_patched
from test_patching import problems


@pytest.mark.parametrize("kind", [{}, {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 1}])
@pytest.mark.parametrize("level", LEVELS)
def test_all_is_the_model_and_nothing_is_the_counterfactual(level: str, kind: dict[str, object]) -> None:
    """f(all) = 1 and f(∅) = 0."""
    model, pairs = llama(**kind), contrasts(ragged=True)
    graph = Graph.of(model)
    scores = random_scores(graph, level, 0).mean  # type: ignore[arg-type]
    whole, none = (top(scores, n, graph, level) for n in (graph.items(level), 0))  # type: ignore[arg-type]
    found = circuit_metric(model, pairs, [whole, none])
    torch.testing.assert_close(found[0], metric(model, pairs.clean, pairs).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], metric(model, pairs.corrupt, pairs).detach(), rtol=1e-4, atol=1e-4)
    f = curve(model, pairs, single(level, scores)).faithfulness()  # type: ignore[arg-type]
    assert f[-1].item() == pytest.approx(1, abs=1e-4)
    assert f[0].item() == pytest.approx(0, abs=1e-4)


MIBS = json.loads((Path(__file__).parent / "data" / "mib" / "faithfulness.json").read_text())


@pytest.mark.parametrize("level", LEVELS)
def test_cpr_and_cmd_are_those_of_mibs_code_on_a_model(level: Level) -> None:
    """What EAP-IG's `apply_topn`, `prune` and `evaluate_graph` (hannamw/EAP-IG at 81770db, carried over to TransformerLens 4.3's
    bridge) and MIB's `evaluate_area_under_curve` gave for this model, these problems and these scores, to six digits.
    """
    model, pairs = llama(num_key_value_heads=4), contrasts(n=24, seed=3)
    theirs, graph = MIBS[level], Graph.of(model)
    scores = single(level, torch.tensor(theirs["scores"]).reshape(graph.shape(level)))
    for name, found in zip(
        ("signed", "absolute"), curves(model, pairs, [Ranking(scores), Ranking(scores, absolute=True)]), strict=True
    ):
        f = found.faithfulness()
        assert f.tolist() == pytest.approx(theirs[name]["f"], abs=1e-5)
        assert cpr(f).item() == pytest.approx(theirs[name]["cpr"], abs=5e-6)
        assert cmd(f).item() == pytest.approx(theirs[name]["cmd"], abs=5e-6)
    assert found.whole.mean().item() == pytest.approx(MIBS["whole"], abs=1e-5)
    assert found.empty.mean().item() == pytest.approx(MIBS["empty"], abs=1e-5)


ABLATIONS = json.loads((Path(__file__).parent / "data" / "mib" / "ablations.json").read_text())


@pytest.mark.parametrize("level", LEVELS)
def test_ablations_of_a_model_with_grouped_queries_are_those_of_mibs_code(level: Level) -> None:
    """What EAP-IG's `apply_topn`, `prune` and `evaluate_graph` (on TransformerLens 4.3's bridge, `activations += update` written
    as a sum: the bridge hands out the stream itself) gave by signed score at MIB's sizes; keys and values ungrouped there.

    Left out are sizes at which it says nothing: without the embedding at zero the stream is 0, and theirs is clean minus clean,
    rounding that the norms make large; of edges, its `prune` leaves some that nothing reaches, which only an exchange for what
    the counterfactual gives makes equal to none. Its "mean" is no mean (it takes the last token's, divided by the length).
    """
    model, pairs = llama(), contrasts(n=24, seed=3)
    clean, corrupt = pairs.clean.clone(), pairs.corrupt.clone()
    clean[:, 0] = corrupt[:, 0] = 1
    pairs = replace(pairs, clean=clean, corrupt=corrupt)
    split = Encoded(clean, pairs.last, pairs.last[:, None], pairs.correct[:, None])
    exchanges = {"resample": RESAMPLE, "zero": Exchange("zero"),
                 "mean-positional": Exchange("mean-positional", placed_means(model, split))}  # fmt: skip
    scores = single(level, torch.tensor(ABLATIONS[level]["scores"]).reshape(Graph.of(model).shape(level)))
    for name, exchange in exchanges.items():
        found = curve(model, pairs, scores, exchange=exchange).metric.double().mean(1).tolist()
        held = [
            (ours, theirs) for ours, theirs in zip(found, ABLATIONS[level][name], strict=True) if theirs is not None
        ]
        assert len(held) >= 2
        assert [ours for ours, _ in held] == pytest.approx([theirs for _, theirs in held], abs=1e-5), name


@pytest.mark.parametrize("level", LEVELS)
def test_the_limits_hold_in_half_precision(level: Level) -> None:
    """Heads summed apart and summed together round apart: the whole model is measured as its circuits are."""
    model, pairs = llama().to(torch.bfloat16), contrasts(ragged=True)
    scores = random_scores(Graph.of(model), level, 0)
    whole = curve(model, pairs, scores)
    assert whole.faithfulness()[-1].item() == 1
    assert whole.faithfulness()[0].item() == 0
    exact = metric(llama(), pairs.clean, pairs).detach()
    assert ((whole.whole - exact).norm() / exact.norm()).item() < 0.05
    full = curve(llama(), pairs, scores)
    gap = full.whole.mean() - full.empty.mean()
    apart = (whole.metric.mean(1) - full.metric.mean(1)).abs().max() / gap.abs()
    assert apart.item() < 0.1


def test_rankings_of_two_levels_have_no_curve_together() -> None:
    model, pairs = llama(), contrasts()
    rankings = [Ranking(random_scores(Graph.of(model), level, 0)) for level in LEVELS[:2]]
    with pytest.raises(ValueError, match="f is of one level"):
        curves(model, pairs, rankings)


@pytest.mark.parametrize("seed", range(3))
def test_a_node_is_all_its_edges_and_all_its_neurons(seed: int) -> None:
    model, pairs = llama(), contrasts()
    graph = Graph.of(model)
    kept = torch.rand(len(graph.nodes), generator=torch.Generator().manual_seed(seed)) > 0.4
    circuits = [
        Circuit(graph, kept),
        Circuit(graph, kept, edges=graph.edge_mask & kept[:, None]),
        Circuit(graph, kept, neurons=kept[:, None].expand(-1, 16)),
    ]
    found = circuit_metric(model, pairs, circuits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-4)
    outside = [name for name, on in zip(graph.nodes, kept.tolist(), strict=True) if not on]
    naive = naive_patched(model, pairs, outside, naive_outputs(model, pairs.corrupt))
    torch.testing.assert_close(found[0], naive, rtol=1e-4, atol=1e-4)


def test_one_edge_less_changes_what_that_reader_gets_and_nothing_else() -> None:
    """Without m1->logits the logits read the stream with the counterfactual's m1, while m2 still reads the true one."""
    model, pairs = llama(), contrasts()
    graph = Graph.of(model)
    edges = graph.edge_mask.clone()
    edges[graph.mlp(1), -1] = False
    every = torch.ones(len(graph.nodes), dtype=torch.bool)
    found = circuit_metric(model, pairs, [Circuit(graph, every, edges=edges)])[0]
    clean, corrupt = (naive_outputs(model, ids) for ids in (pairs.clean, pairs.corrupt))
    stream = clean["input"] + sum(clean[f"m{i}"] for i in range(3))
    for layer in range(3):
        z = torch.cat([clean[f"a{layer}.h{h}"] for h in range(4)], dim=-1)
        stream = stream + model.model.layers[layer].self_attn.o_proj(z)
    stream = stream + corrupt["m1"] - clean["m1"]
    logits = model.lm_head(model.model.norm(stream[:, -1])).detach()
    torch.testing.assert_close(found, pairs.difference(logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_other_ablations_put_means_or_zeros_outside(ablation: str) -> None:
    model, pairs = llama(), contrasts()
    graph, split = Graph.of(model), encode(make_tokenizer(), problems())
    means = mean_outputs(model, split) if ablation == "mean" else None
    kept = torch.ones(len(graph.nodes), dtype=torch.bool)
    kept[graph.head(1, 2)] = kept[graph.mlp(0)] = False
    found = circuit_metric(model, pairs, [Circuit(graph, kept)], exchange=Exchange(ablation, means))[0]  # type: ignore[arg-type]
    instead = {
        "a1.h2": (means.heads[1][:, :, 2] if means else torch.zeros(4)).expand(8, 6, 4),
        "m0": (means.mlps[0] if means else torch.zeros(16)).expand(8, 6, 16),
    }
    torch.testing.assert_close(found, naive_patched(model, pairs, ["a1.h2", "m0"], instead), rtol=1e-4, atol=1e-4)


def test_means_at_each_place_stand_where_they_were_seen() -> None:
    """Every prompt is 6 tokens long: at place i stands what the node has there, on average over prompts."""
    model, pairs = llama(), contrasts()
    graph, split = Graph.of(model), encode(make_tokenizer(), [each for each in problems() if len(each.prompt) == 6])
    kept = torch.ones(len(graph.nodes), dtype=torch.bool)
    kept[graph.head(1, 2)] = kept[graph.mlp(0)] = False
    means = placed_means(model, split)
    found = circuit_metric(model, pairs, [Circuit(graph, kept)], exchange=Exchange("mean-positional", means))[0]
    own = naive_outputs(model, split.ids[:, :6])
    instead = {name: own[name].mean(0).expand(8, 6, -1) for name in ("a1.h2", "m0")}
    torch.testing.assert_close(found, naive_patched(model, pairs, ["a1.h2", "m0"], instead), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ablation", ["mean", "mean-positional"])
def test_mean_ablation_without_means_of_its_kind_is_an_error(ablation: Ablation) -> None:
    model, split = llama(), encode(make_tokenizer(), problems())
    others = placed_means(model, split) if ablation == "mean" else mean_outputs(model, split)
    for means in (None, others):
        with pytest.raises(ValueError, match=f"{ablation} ablation needs the means"):
            circuit_metric(model, contrasts(), [Circuit.whole(Graph.of(model))], exchange=Exchange(ablation, means))


def test_two_rankings_are_compared_problem_by_problem() -> None:
    """Against itself a ranking leaves nothing, and no interval; against another the difference of the areas."""
    model, pairs = llama(), contrasts()
    scores = attribute(model, pairs)
    same = evaluate(model, pairs, scores, Rivals(1, single("node", scores.mean)))["magnitude"]
    assert same["cpr_difference"] == pytest.approx(0, abs=1e-12)
    assert same["cpr_difference_95"] == pytest.approx([0, 0], abs=1e-12)
    found = evaluate(model, pairs, scores, Rivals(2))
    for rival in ("magnitude", "random"):
        low, high = found[rival]["cpr_difference_95"]
        assert low <= found[rival]["cpr_difference"] <= high
        assert found[rival]["cpr_difference"] == pytest.approx(found["circuit"]["cpr"] - found[rival]["cpr"])
        assert found[rival]["cmd_difference"] == pytest.approx(found["circuit"]["cmd"] - found[rival]["cmd"])


def test_a_circuit_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="a circuit of Graph"):
        circuit_metric(llama(), contrasts(), [Circuit.whole(Graph(2, 4, 16))])


def test_areas_are_mibs_on_a_stored_example() -> None:
    """MIB's function (`evaluate_area_under_curve`, linear axis) on these f, worked out term by term.

    Sizes .001 .002 .005 .01 .02 .05 .1 .2 .5 1; widths .001 .003 .005 .01 .03 .05 .1 .3 .5;
    f 0 .01 .02 .1 .3 .6 .8 1.2 .9 1. Means of neighbours: .005 .015 .06 .2 .45 .7 1.0 1.05 .95, times the widths:
    .000005 .000045 .0003 .002 .0135 .035 .1 .315 .475 -> CPR .94085.
    |1 − f|: 1 .99 .98 .9 .7 .4 .2 .2 .1 0; means .995 .985 .94 .8 .55 .3 .2 .15 .05, times the widths:
    .000995 .002955 .0047 .008 .0165 .015 .02 .045 .025 -> CMD .13815.
    """
    f = torch.tensor([0, 0.01, 0.02, 0.1, 0.3, 0.6, 0.8, 1.2, 0.9, 1], dtype=torch.float64)
    assert round(cpr(f).item(), 5) == 0.94085
    assert round(cmd(f).item(), 5) == 0.13815
    perfect = torch.ones(10)
    assert cpr(perfect).item() == pytest.approx(0.999)
    assert cmd(perfect).item() == 0
    assert len(SIZES) == 10


PUBLISHED = [
    # f at MIB's ten sizes -> CPR, CMD
    ((0.0, 0.0, 0.0, 0.0320201402, 0.071480101, 0.1842898389, 0.3516528681, 0.4699217463, 0.6461873637, 1.0054419197),
     0.6392350864, 0.3624858734),
    ((0.0, 0.0, 0.0, 0.0168635567, 0.0284215167, 0.1513860572, 0.2893315169, 0.7006434042, 0.8689596149, 1.0054419197),
     0.7675232198, 0.2341977401),
    ((0.0, 0.0, 0.0, 0.0489785955, 0.0798839242, 0.2047117085, 0.2049999526, 0.3878370098, 0.4470475214, 1.0000302371),
     0.5319224526, 0.467092666),
]  # fmt: skip
"""Results that somebody else's implementation of MIB's evaluation gave: expected values of a public test of that protocol
(`EXPECTED` of a "MIB evaluation pipeline" exercise; methods EAP, EAP-IG and activation patching on IOI, IOI and MCQA)."""


@pytest.mark.parametrize(("f", "area", "distance"), PUBLISHED)
def test_areas_are_those_that_others_published(f: tuple[float, ...], area: float, distance: float) -> None:
    values = torch.tensor(f, dtype=torch.float64)
    assert cpr(values).item() == pytest.approx(area, abs=1e-9)
    assert cmd(values).item() == pytest.approx(distance, abs=1e-9)


def test_a_whole_curve_is_what_mibs_procedure_gives_step_by_step() -> None:
    """MIB's procedure by hand: top-n nodes by score, every other node patched by a naive hook, f, trapezoids."""
    model, pairs = llama(), contrasts()
    graph, scores = Graph.of(model), random_scores(Graph.of(model), "node", 3).mean - 0.5
    scores[0] = 1  # without the embedding a circuit sees the counterfactual only
    corrupt = naive_outputs(model, pairs.corrupt)

    def by_hand(key: torch.Tensor) -> list[float]:
        order, m = key.argsort(descending=True).tolist(), []
        for size in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
            outside = [graph.nodes[i] for i in order[int(size * len(order)) :]]
            m.append(naive_patched(model, pairs, outside, corrupt).double().mean().item())
        none = naive_patched(model, pairs, list(graph.nodes), corrupt).double().mean().item()
        return [(value - none) / (m[-1] - none) for value in m]

    f, g = by_hand(scores), by_hand(scores.abs())
    widths = [0.001, 0.003, 0.005, 0.01, 0.03, 0.05, 0.1, 0.3, 0.5]
    area = sum(w * (a + b) / 2 for w, a, b in zip(widths, f[:-1], f[1:], strict=True))
    distance = sum(w * (abs(1 - a) + abs(1 - b)) / 2 for w, a, b in zip(widths, g[:-1], g[1:], strict=True))
    ranked = single("node", scores)
    assert cpr(curve(model, pairs, ranked).faithfulness()).item() == pytest.approx(area, abs=5e-6)
    assert cmd(curve(model, pairs, ranked, absolute=True).faithfulness()).item() == pytest.approx(distance, abs=5e-6)
    assert f != g


def test_f_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    whole = torch.tensor([2.0, 2.0, 10.0, 10.0])
    found = Curve((1,), torch.tensor([[1.0, 1.0, 3.0, 3.0]]), whole=whole, empty=torch.zeros(4))
    assert found.faithfulness().tolist() == [pytest.approx(4 / 12)]  # the mean of ratios would be 0.4
    draws = found.bootstrap()
    assert draws.shape == (1000, 1)
    # Two kinds of problems: of four drawn, 4, 3, 2, 1 or none are of the first: 4/8, 6/16, 8/24, 10/32 or 12/40.
    assert {round(x, 4) for x in draws.flatten().tolist()} == {0.5, 0.375, 0.3333, 0.3125, 0.3}


def test_a_model_that_does_as_well_with_nothing_has_no_faithfulness() -> None:
    pairs = contrasts()
    with pytest.raises(UserError, match="0 divided by 0"):
        curve(llama(), replace(pairs, corrupt=pairs.clean), single("node", torch.zeros(16)))


def test_top_takes_signed_scores_for_cpr_and_sizes_for_cmd() -> None:
    graph = Graph(1, 1, 4)  # input, a0.h0, m0
    scores = torch.tensor([0.5, -2.0, 1.0])
    assert top(scores, 1, graph, "node").names == ["m0"]
    assert top(scores, 2, graph, "node").names == ["input", "m0"]
    assert top(scores, 1, graph, "node", absolute=True).names == ["a0.h0"]
    assert top(torch.zeros(3), 2, graph, "node").names == ["input", "a0.h0"]  # equal: in the graph's order


@pytest.mark.parametrize(
    ("scores", "n", "level", "words"),
    [
        (torch.zeros(3), -1, "node", "a circuit of -1 nodes; the model has 3"),
        (torch.zeros(3), 4, "node", "a circuit of 4 nodes; the model has 3"),
        (torch.zeros(4), 1, "node", r"node scores of shape \(4,\); this model's have \(3,\)"),
        (torch.tensor([0, torch.nan, 1]), 1, "node", "1 of 3 node scores are not finite"),
        (torch.full((3, 5), torch.inf), 1, "edge", "not finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores: torch.Tensor, n: int, level: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        top(scores, n, Graph(1, 1, 4), level)  # type: ignore[arg-type]


def test_edges_without_a_way_from_the_input_to_the_logits_are_pruned() -> None:
    graph = Graph(2, 1, 4)  # input a0.h0 m0 a1.h0 m1
    place = {name: i for i, name in enumerate(graph.nodes)}
    reader = {name: i for i, name in enumerate(graph.readers)}

    def edges(*names: str) -> torch.Tensor:
        kept = torch.zeros(graph.shape("edge"), dtype=torch.bool)
        for name in names:
            source, _, target = name.partition("->")
            kept[place[source], reader[target]] = True
        return kept

    whole = ["input->m0", "m0->a1.h0<v>", "a1.h0->logits"]
    assert prune(edges(*whole), graph).names == ["input", "m0", "a1.h0"]
    # m1 is fed by m0 and feeds nothing; a0.h0 feeds m0 and is fed by nothing.
    pruned = prune(edges(*whole, "m0->m1", "a0.h0->m0"), graph)
    assert pruned.names == ["input", "m0", "a1.h0"]
    assert pruned.edges is not None
    assert torch.equal(pruned.edges, edges(*whole))
    # A way that ends before the logits falls apart, edge after edge.
    assert prune(edges("input->a0.h0<q>", "a0.h0->m0", "m0->m1"), graph).names == []
    assert prune(edges("input->logits"), graph).names == ["input"]


def test_pruned_edges_change_no_number() -> None:
    model, pairs = llama(), contrasts()
    graph = Graph.of(model)
    for n in (20, 60, 120):
        kept = torch.zeros_like(graph.edge_mask)
        order = torch.randperm(len(graph.edges), generator=torch.Generator().manual_seed(n))[:n]
        rows = graph.edge_mask.nonzero()[order]
        kept[rows[:, 0], rows[:, 1]] = True
        every = torch.ones(len(graph.nodes), dtype=torch.bool)
        found = circuit_metric(model, pairs, [Circuit(graph, every, edges=kept), prune(kept, graph)])
        # What no reader of the circuit depends on, may carry anything. A node that is fed by nothing carries the counterfactual.
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_attribution_finds_better_circuits_than_chance_in_a_trained_model(world) -> None:  # type: ignore[no-untyped-def]
    from cdbench.circuits.arithmetic import make_pairs
    from cdbench.circuits.contrasts import make_contrasts
    from cdbench.seeds import rng_for
    from cdbench.tokens import prompt_ids

    workspace = world.workspace(build=False)
    model, tokenizer = workspace.teacher.model(), workspace.tokenizer
    pairs, _ = make_pairs(workspace.train_examples, "random", lambda text: prompt_ids(tokenizer, text), rng_for("test"))
    found = make_contrasts(tokenizer, pairs)
    mine = cpr(curve(model, found, attribute(model, found, "edge", steps=5)).faithfulness())
    chance = [cpr(curve(model, found, random_scores(Graph.of(model), "edge", i)).faithfulness()) for i in range(3)]
    assert mine > max(chance) + 0.1


@pytest.mark.parametrize("level", LEVELS)
def test_baselines_have_a_score_for_every_item(level: str) -> None:
    model, pairs = llama(), contrasts(ragged=True)
    graph = Graph.of(model)
    size = magnitude(model, pairs, level)  # type: ignore[arg-type]
    assert tuple(size.mean.shape) == graph.shape(level)  # type: ignore[arg-type]
    assert bool((size.mean >= 0).all())
    assert torch.equal(random_scores(graph, level, 1).mean, random_scores(graph, level, 1).mean)  # type: ignore[arg-type]
    assert not torch.equal(random_scores(graph, level, 1).mean, random_scores(graph, level, 2).mean)  # type: ignore[arg-type]


def test_magnitude_is_how_far_an_item_moves_of_the_stream_that_it_becomes_part_of() -> None:
    model, pairs = llama(), contrasts(ragged=True)
    graph = Graph.of(model)
    clean, corrupt = (naive_outputs(model, ids) for ids in (pairs.clean, pairs.corrupt))
    with torch.no_grad():
        streams = model(pairs.clean, output_hidden_states=True).hidden_states
    inside = torch.arange(6)[None] <= pairs.last[:, None]
    moved = (clean["m1"] - corrupt["m1"]) * inside[..., None]
    node = (moved.norm(dim=-1) / streams[2].norm(dim=-1)).sum().item() / 8  # streams[i]: before layer i
    assert magnitude(model, pairs, "node").mean[graph.mlp(1)].item() == pytest.approx(node, rel=1e-4)
    neuron = (moved[..., 3].abs() / streams[2].norm(dim=-1)).sum().item() / 8
    assert magnitude(model, pairs, "neuron").mean[graph.mlp(1), 3].item() == pytest.approx(neuron, rel=1e-4)
    edges = _moved(model, pairs, "edge")
    first = (clean["input"] - corrupt["input"]) * inside[..., None]
    for column, reader in enumerate(graph.readers):
        if reader.startswith("a2."):
            edge = (first.norm(dim=-1) / streams[2].norm(dim=-1)).sum().item() / 8
            assert edges[0, column].item() == pytest.approx(edge, rel=1e-4), reader


def test_rivals_are_more_than_empty_circuits() -> None:
    """By absolute distance the embedding came last: every circuit of a rival was empty, and nothing could be worse."""
    model, pairs = llama(), contrasts(n=16, ragged=True)
    graph = Graph.of(model)
    for level in ("node", "edge"):
        size = magnitude(model, pairs, level)  # type: ignore[arg-type]
        assert bool(top(size.mean, graph.items(level) // 2, graph, level).nodes[0]), level  # type: ignore[arg-type]
    by_size = magnitude(model, pairs, "edge").mean
    for share in (0.05, 0.1, 0.2):
        kept = top(by_size, math.ceil(share * graph.items("edge")), graph, "edge")
        assert len(kept) > 0 and bool(kept.nodes[0]), share  # the largest alone lead nowhere
    raw = _moved(model, pairs, "edge")
    assert len(top(raw, math.ceil(0.05 * graph.items("edge")), graph, "edge")) == 0
    assert all(bool(top(random_scores(graph, "node", i).mean, 1, graph, "node").nodes[0]) for i in range(3))
    for share in (0.05, 0.1, 0.2):  # whatever edges chance puts first, they hang together at the logits
        count = math.ceil(share * graph.items("edge"))
        kept = [top(random_scores(graph, "edge", i).mean, count, graph, "edge") for i in range(3)]
        assert all(len(circuit) > 0 for circuit in kept), share


def test_a_greedy_walk_by_hand() -> None:
    """One layer, one head, width 2. Into the logits: m0 3, a0 1, the embedding 2. m0 is first, and brings its own readers:
    a0 -> m0 9, then a0's queries, keys and values, then what is left."""
    graph = Graph(1, 1, 2)
    named = {"input->logits": 2.0, "a0.h0->logits": 1.0, "m0->logits": 3.0, "input->m0": 0.5, "a0.h0->m0": 9.0}
    named |= {"input->a0.h0<q>": 4.0, "input->a0.h0<k>": 8.0, "input->a0.h0<v>": 2.5}
    scores = torch.zeros(graph.shape("edge"))
    scores[graph.edge_mask] = torch.tensor([named[name] for name in graph.edges])
    order = greedy_order(scores, graph)[graph.edge_mask].tolist()
    taken = sorted(graph.edges, key=lambda name: -order[graph.edges.index(name)])
    assert taken == [
        "m0->logits", "a0.h0->m0", "input->a0.h0<k>", "input->a0.h0<q>", "input->a0.h0<v>", "input->logits",
        "a0.h0->logits", "input->m0",
    ]  # fmt: skip
    assert sorted(order) == list(range(1, 9))


def test_rank_correlation_by_hand() -> None:
    x = torch.tensor([1.0, 2, 3, 4])
    assert spearman(x, torch.tensor([10.0, 20, 30, 40])) == pytest.approx(1)
    assert spearman(x, torch.tensor([4.0, 3, 2, 1])) == pytest.approx(-1)
    from scipy.stats import spearmanr

    a, b = torch.tensor([1.0, 1, 2, 5, 3]), torch.tensor([2.0, 0, 2, 1, 2])
    assert spearman(a, b) == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic)
    assert spearman(x, torch.ones(4)) != spearman(x, torch.ones(4))  # NaN: a constant has no ranks


def test_scores_of_folds_are_weighted_by_their_sizes() -> None:
    scores = Scores("node", torch.tensor([[1.0], [4.0]]), torch.tensor([3, 1]))
    assert scores.mean.tolist() == [1.75]


def test_circuits_are_chosen_by_score_for_cpr_and_by_size_for_cmd() -> None:
    """The node of largest |score| is harmful: by score it comes last, by size first."""
    model, pairs = llama(), contrasts()
    graph = Graph.of(model)
    scores = torch.arange(16.0)
    scores[0] = -100.0  # the input
    signed, absolute = curves(
        model, pairs, [Ranking(single("node", scores)), Ranking(single("node", scores), absolute=True)]
    )
    for found, by_size in ((signed, False), (absolute, True)):
        expected = circuit_metric(model, pairs, [top(scores, 8, graph, "node", absolute=by_size)])[0]
        assert torch.equal(found.metric[SIZES.index(0.5)], expected)
    assert not torch.equal(signed.metric[SIZES.index(0.5)], absolute.metric[SIZES.index(0.5)])


def test_all_rankings_share_one_pass_and_get_what_each_gets_alone() -> None:
    model, pairs = llama(), contrasts()
    rankings = [Ranking(random_scores(Graph.of(model), "node", i)) for i in range(3)]
    together = curves(model, pairs, rankings, work=Work(batch_size=3))
    for ranking, found in zip(rankings, together, strict=True):
        alone = curve(model, pairs, ranking.scores)
        torch.testing.assert_close(found.metric, alone.metric, rtol=1e-4, atol=1e-4)


def test_a_denominator_that_may_be_nothing_is_told() -> None:
    g = torch.Generator().manual_seed(0)
    noise = Curve((1,), torch.randn(1, 50, generator=g), torch.randn(50, generator=g), torch.randn(50, generator=g))
    assert noise.stands_on_noise
    assert not Curve((1,), noise.metric, noise.whole + 5, noise.empty).stands_on_noise
    # A model that is surely worse than nothing: its worst circuit would have f = 1.
    assert Curve((1,), noise.metric, noise.whole - 5, noise.empty).stands_on_noise
    # Draws in which both problems are the first have no f; the others are kept.
    half = Curve((1,), torch.ones(1, 4), whole=torch.tensor([1.0, 1.0, 1.0, 2.0]), empty=torch.ones(4))
    assert bool(torch.isfinite(half.bootstrap()).all())
    assert 600 < len(half.bootstrap()) < 750  # one of four is in 1 − (3/4)⁴ = 68 % of draws


def test_three_problems_have_no_interval_and_show_nothing() -> None:
    few = Curve((1,), torch.ones(1, 3), whole=torch.full((3,), 2.0), empty=torch.zeros(3))
    assert few.bootstrap().shape == (0, 1)
    assert few.stands_on_noise
    four = Curve((1,), torch.ones(1, 4), whole=torch.full((4,), 2.0), empty=torch.zeros(4))
    assert four.bootstrap().shape == (1000, 1)
    assert not four.stands_on_noise


def test_the_evaluation_of_a_circuit_is_finite_and_holds_its_baselines() -> None:
    model, pairs = llama(), contrasts(n=30)
    result = evaluate(model, pairs, attribute(model, pairs), Rivals(3))
    assert result["random"]["draws"] == 3
    low, high = result["random"]["cpr_range"]
    assert low <= result["random"]["cpr"] <= high
    expected = [
        cpr(curve(model, pairs, random_scores(Graph.of(model), "node", i)).faithfulness()).item() for i in range(3)
    ]
    assert result["random"]["cpr"] == pytest.approx(sum(expected) / 3, abs=1e-4)
    assert result["magnitude"]["f"] == result["magnitude"]["f_absolute"]
    assert len(result["circuit"]["f_95"]) == len(SIZES)


def test_intervals_are_over_problems_however_often_each_is_asked() -> None:
    """Every problem asked five times in a row says no more than asked once: the same f, CPR and intervals, draw by draw."""
    g = torch.Generator().manual_seed(1)
    metric, whole, empty = (
        torch.randn(2, 30, generator=g) + 2,
        torch.randn(30, generator=g) + 3,
        torch.randn(30, generator=g),
    )
    once = Curve((1, 2), metric, whole, empty)
    five = [x.repeat_interleave(5, dim=-1) for x in (metric, whole, empty)]
    asked = Curve((1, 2), *five, problem=torch.arange(30).repeat_interleave(5))
    torch.testing.assert_close(asked.faithfulness(), once.faithfulness())
    torch.testing.assert_close(asked.bootstrap(), once.bootstrap())
    flattering = Curve((1, 2), *five)
    assert flattering.bootstrap().std(0).max() < 0.6 * asked.bootstrap().std(0).max()
    # A gap of 0.2 with a spread of 1: thirty problems do not show it, three thousand would.
    spread = torch.randn(30, generator=g)
    gap = 0.2 + (spread - spread.mean()) / spread.std()
    shown = [x.repeat_interleave(100, dim=-1) for x in (metric[:1], empty + gap, empty)]
    assert not Curve((1,), *shown).stands_on_noise
    assert Curve((1,), *shown, problem=torch.arange(30).repeat_interleave(100)).stands_on_noise
    three = Curve(
        (1,),
        *(x[..., :3].repeat_interleave(9, dim=-1) for x in (metric[:1], whole, empty)),
        problem=torch.arange(3).repeat_interleave(9),
    )
    assert three.stands_on_noise and not len(three.bootstrap())
