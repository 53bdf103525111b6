"""What the evaluator says of a circuit: found on the training split, judged on held-out problems, the same for every row."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cdbench import data
from cdbench.api import Example
from cdbench.circuits.arithmetic import make_pairs
from cdbench.circuits.attention import attention_pattern
from cdbench.circuits.attribution import attribute
from cdbench.circuits.components import components, is_head, pairing_support, top_components
from cdbench.circuits.contrasts import make_contrasts
from cdbench.circuits.faithfulness import (
    circuit_hits,
    circuit_metric,
    cmd,
    cpr,
    curve,
    greedy_order,
    magnitude,
    random_scores,
)
from cdbench.circuits.graph import Circuit, Graph
from cdbench.circuits.patching import hits_at, patch_exactly, placed_means
from cdbench.circuits.scores import single
from cdbench.component_cka import _best_matches, component_cka
from cdbench.judge import SHARE, NotJudged, changed, judge_circuit, perplexity
from cdbench.record import CircuitJudgement, PairingSupport
from cdbench.report.circuits import even_heads, stability_over_seeds
from cdbench.seeds import generator_for, rng_for
from cdbench.similarity import linear_cka
from cdbench.sites import captured
from cdbench.tokens import encode, prompt_ids
from cdbench.workspace import Workspace
from cdbench.zoo import exact_match, make_tokenizer
from circuit_models import half_right, llama
from conftest import World


@pytest.fixture(scope="module")
def held(world: World) -> tuple[Workspace, tuple[Example, ...]]:
    workspace = world.workspace(build=False)
    return workspace, data.read_examples(workspace.heldout_data / "test.jsonl")


@pytest.fixture(scope="module")
def judgement(held: tuple[Workspace, tuple[Example, ...]]) -> CircuitJudgement:
    workspace, test = held
    found = judge_circuit(workspace.student.model(), workspace, test, reference=False)
    assert found is not None
    return found


def test_importance_is_found_on_the_training_split(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    model = workspace.student.model()
    expected = attribute(model, workspace.contrasts)
    assert judgement.importance == expected.mean.tolist()
    seen = {example.prompt for pair in workspace.contrasts.pairs for example in pair}
    assert seen <= {example.prompt for example in workspace.train_examples}
    assert not seen & {example.prompt for example in test}
    assert judgement.nodes == list(Graph.of(model).nodes)
    assert len(judgement.circuit) == math.ceil(SHARE * len(judgement.nodes))
    for low, value, high in zip(judgement.importance_low, judgement.importance, judgement.importance_high, strict=True):
        assert low <= value <= high


def test_it_says_the_same_twice_to_the_bit(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    assert judge_circuit(workspace.student.model(), workspace, test, reference=False) == judgement


def test_the_teacher_is_judged_but_not_compared_with_itself(held) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    found = judge_circuit(workspace.teacher.model(), workspace, test, reference=True)
    assert found is not None and found.cka is None and found.faithfulness is not None


def test_a_circuit_of_everything_is_the_model(held, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    monkeypatch.setattr("cdbench.judge.SHARE", 1.0)
    model = workspace.teacher.model()
    found = judge_circuit(model, workspace, test, reference=True)
    assert found is not None
    assert found.accuracy.k == int(exact_match(model, encode(workspace.tokenizer, test)).sum())
    assert found.edges is not None and found.edges.accuracy == found.accuracy
    assert found.faithfulness is not None and found.faithfulness.f[-1] == pytest.approx(1, abs=1e-5)


def test_without_a_circuit_of_nothing_the_model_is_whole(held, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    monkeypatch.setattr("cdbench.judge.SHARE", 0.0)
    model = workspace.student.model()
    found = judge_circuit(model, workspace, test, reference=False)
    assert found.ablated is not None
    hits = int(exact_match(model, encode(workspace.tokenizer, test)).sum())
    assert found.ablated.k == hits and found.circuit == []
    assert found.ablated_share == (1.0 if hits else None)
    assert "share = 0" in found.not_judged["cka"]


def test_what_the_circuit_is_needed_and_enough_for_is_held_against_as_many_nodes_at_random(
    held, judgement: CircuitJudgement
) -> None:  # type: ignore[no-untyped-def]
    """By hand: the same number of nodes at their mean, or as they are, drawn three times, the embedding always as it is."""
    workspace, test = held
    model = workspace.teacher.model()
    found = judge_circuit(model, workspace, test, reference=True)
    calibration = workspace.train_examples[: workspace.profile.circuits.calibration]
    means, split = placed_means(model, encode(workspace.tokenizer, calibration)), encode(workspace.tokenizer, test)
    graph, whole, hits, alone = Graph.of(model), int(exact_match(model, split).sum()), [], []
    out = len(set(found.circuit) - {"input"})
    for draw in range(3):
        order = torch.randperm(
            len(graph.nodes) - 1, generator=generator_for("judge-ablated", len(graph.nodes), draw)
        ).tolist()
        exchanged = {1 + i for i in order[len(order) - out :]}
        assert len(exchanged) == out and 0 not in exchanged
        kept = torch.tensor([i not in exchanged for i in range(len(graph.nodes))])
        hits.append(int(circuit_hits(model, split, [Circuit(graph, kept)], means.at).sum()))
        among = {0, *(1 + i for i in order[: len(found.circuit) - 1])}
        assert len(among) == len(found.circuit)
        some = torch.tensor([i in among for i in range(len(graph.nodes))])
        alone.append(int(circuit_hits(model, split, [Circuit(graph, some)], means.at).sum()))
    assert found.random_alone_share == pytest.approx(sum(alone) / 3 / whole)
    assert found.alone_share is not None and found.random_alone_share is not None
    assert found.suffices_beyond_chance == pytest.approx(found.alone_share - found.random_alone_share)
    assert found.random_ablated_share == pytest.approx(sum(hits) / 3 / whole)
    assert found.ablated_share is not None and found.random_ablated_share is not None
    assert found.needed_beyond_chance == pytest.approx(found.random_ablated_share - found.ablated_share)


def test_what_one_node_is_needed_for_is_held_against_each_other_node(held) -> None:  # type: ignore[no-untyped-def]
    """By hand: every node but the embedding at its mean by itself, as a circuit of all the others."""
    workspace, test = held
    model = workspace.teacher.model()
    found = judge_circuit(model, workspace, test, reference=True).one_by_one
    assert found is not None
    calibration = workspace.train_examples[: workspace.profile.circuits.calibration]
    means, split = placed_means(model, encode(workspace.tokenizer, calibration)), encode(workspace.tokenizer, test)
    graph, whole, hits = Graph.of(model), int(exact_match(model, split).sum()), {}
    for i, name in enumerate(graph.nodes[1:], start=1):
        kept = torch.arange(len(graph.nodes)) != i
        hits[name] = int(circuit_hits(model, split, [Circuit(graph, kept)], means.at).sum())
    scores = attribute(model, workspace.contrasts).mean
    first = graph.nodes[1 + int(scores[1:].argmax())]
    assert found.node == first and found.accuracy.k == hits[first] and found.whole.k == whole
    assert found.shares == pytest.approx({name: k / whole for name, k in hits.items()})
    others = [k / whole for name, k in hits.items() if name != first]
    assert len(set(hits.values())) > 1
    assert found.others_share == pytest.approx(sum(others) / len(others))
    assert found.needed_beyond_chance == pytest.approx(found.others_share - found.share)


def test_the_heads_that_matter_most_say_what_they_look_at(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    told = judgement.attention
    assert told is not None and len(told.heads) == 4
    sizes = dict(zip(judgement.nodes, map(abs, judgement.importance), strict=True))
    heads = sorted((name for name in sizes if name.startswith("a")), key=lambda name: -sizes[name])
    assert list(told.heads) == heads[:4]
    pattern = attention_pattern(workspace.student.model(), workspace.tokenizer, test)
    assert (told.roles, told.problems) == (list(pattern.roles), pattern.prompts)
    layer, head = (int(part) for part in heads[0][1:].split(".h"))
    assert told.heads[heads[0]] == pattern.weights[layer, head].tolist()


def test_the_pairs_are_the_same_for_every_student(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    """Functional pairs of the models before training; CKA by hand for one of them."""
    workspace, test = held
    other = workspace.student.model()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(2.0)
    found = judge_circuit(other, workspace, test, reference=False)
    assert found is not None and found.cka is not None and judgement.cka is not None
    assert found.cka.pairs == judgement.cka.pairs
    student, teacher = judgement.cka.pairs[0]
    split, rows = encode(workspace.tokenizer, test), torch.arange(len(test))
    read = []
    for model, site in ((workspace.student.model(), student), (workspace.teacher.model(), teacher)):
        with torch.no_grad(), captured(model, [site]) as caught:
            model.model(input_ids=split.ids)
        read.append(caught[site][rows, split.last_prompt])
    expected = linear_cka(read[0].double(), read[1].double(), debiased=True).item()
    assert judgement.cka.debiased[0] == pytest.approx(expected, abs=1e-4)
    support = judgement.cka.support
    assert support == found.cka.support and support is not None
    assert len(support.correlations) == len(support.kept) == len(judgement.cka.pairs)
    both = (workspace.components(name, "attribution") for name in ("student", "teacher"))
    assert support == PairingSupport(**asdict(pairing_support(*both, SHARE)))
    assert judgement.cka.debiased_mean == pytest.approx(sum(judgement.cka.debiased) / len(judgement.cka.debiased))


def test_a_component_that_is_constant_has_no_cka(held) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    model = workspace.student.model()
    own = components(Graph.of(model), attribute(model, workspace.contrasts))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.v_proj.weight.zero_()
    with pytest.raises(ValueError, match=r"student (attn|mlp)\.\d.* and teacher .* is constant over the samples"):
        component_cka(model, workspace, test, own, SHARE)


def test_models_whose_components_have_no_kind_in_common_are_judged_without_cka(
    held, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    monkeypatch.setattr("cdbench.component_cka.pair_components", lambda *args: ())
    found = judge_circuit(workspace.student.model(), workspace, test, reference=False)
    assert found.cka is None and "no two components of one kind" in found.not_judged["cka"]
    assert found.faithfulness is not None


def test_the_top_of_the_ranking_is_held_against_exact_patching(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    workspace, _ = held
    model, checked = workspace.student.model(), judgement.exact
    assert checked is not None and len(checked.items) == 10 and checked.problems == len(workspace.contrasts)
    sizes = dict(zip(judgement.nodes, map(abs, judgement.importance), strict=True))
    assert set(checked.items) == set(sorted(sizes, key=lambda name: -sizes[name])[:10])
    exact = dict(zip(judgement.nodes, patch_exactly(model, workspace.contrasts).mean(0).tolist(), strict=True))
    assert checked.exact == pytest.approx([exact[name] for name in checked.items], abs=1e-5)
    signs = [(a > 0) == (b > 0) for a, b in zip(checked.attribution, checked.exact, strict=True)]
    assert checked.same_sign == sum(signs)


def test_the_strongest_edges_are_held_against_exact_patching(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    workspace, _ = held
    model, edges = workspace.student.model(), judgement.edges
    assert edges is not None and edges.exact is not None
    assert edges.exact.items == list(edges.top)[:10]
    assert edges.exact.attribution == pytest.approx(list(edges.top.values())[:10], abs=1e-5)
    # Independently: each edge cut alone, one circuit at a time.
    graph, whole = Graph.of(model), torch.ones(len(judgement.nodes), dtype=torch.bool)
    for name, told in zip(edges.exact.items[:3], edges.exact.exact, strict=False):
        kept = graph.edge_mask.clone()
        kept[tuple(graph.edge_mask.nonzero()[list(graph.edges).index(name)].tolist())] = False
        cut, full = circuit_metric(
            model, workspace.contrasts, [Circuit(graph, whole, edges=kept), Circuit.whole(graph)]
        )
        assert told == pytest.approx((full - cut).double().mean().item(), abs=1e-5)


def test_both_estimators_of_the_pairs_are_told(judgement: CircuitJudgement) -> None:
    assert judgement.cka is not None and judgement.cka.biased_mean is not None
    assert judgement.cka.biased_mean > judgement.cka.debiased_mean


def test_problems_that_say_nothing_are_counted(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    calibration = workspace.train_examples[: workspace.profile.circuits.calibration]
    assert judgement.found_on == len(workspace.contrasts)
    assert judgement.left_out == len(calibration) - len(workspace.contrasts) + len(test) - judgement.problems
    for clean, corrupt in workspace.contrasts.pairs:
        assert [len(str(n)) for n in clean.operands] == [len(str(n)) for n in corrupt.operands]


def test_importances_that_are_no_numbers_are_a_reason_and_no_crash(held) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    model = workspace.student.model()
    with torch.no_grad():
        model.lm_head.weight.mul_(float("inf"))
    with pytest.raises(NotJudged, match=r"cannot be ranked: \d+ of \d+ node scores are not finite"):
        judge_circuit(model, workspace, test, reference=False)


def test_edges_are_judged_beside_circuits_that_attribution_did_not_choose(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    workspace, test = held
    model, graph = workspace.student.model(), Graph.of(workspace.student.model())
    edges = judgement.edges
    assert edges is not None and edges.faithfulness is not None and judgement.faithfulness is not None
    assert edges.edges == graph.items("edge") and edges.faithfulness.items[-1] == edges.edges
    # The held-out problems and their counterfactuals are those of the nodes.
    rng = rng_for("judge", workspace.task, workspace.profile.data.seed)
    pairs, _ = make_pairs(test[:500], "random", lambda text: prompt_ids(workspace.tokenizer, text), rng)
    contrasts = make_contrasts(workspace.tokenizer, pairs)
    assert edges.faithfulness.problems == len(contrasts) == judgement.problems
    scores = attribute(model, workspace.contrasts, "edge")
    by_name = dict(zip(graph.edges, scores.mean[graph.edge_mask].tolist(), strict=True))
    assert list(edges.top) == sorted(by_name, key=lambda name: -abs(by_name[name]))[:40]
    assert edges.top == pytest.approx({name: by_name[name] for name in edges.top}, rel=1e-4)
    assert edges.faithfulness.cpr == pytest.approx(float(cpr(curve(model, contrasts, scores).faithfulness())), abs=1e-5)
    f = curve(model, contrasts, scores, absolute=True).faithfulness()
    assert edges.faithfulness.cmd == pytest.approx(float(cmd(f)), abs=1e-5)
    walks = [greedy_order(s, graph) for s in (scores.mean, scores.mean.abs())]
    signed, absolute = (curve(model, contrasts, single("edge", w)).faithfulness() for w in walks)
    assert edges.faithfulness.walked == pytest.approx(
        {"cpr": float(cpr(signed)), "cmd": float(cmd(absolute))}, abs=1e-5
    )
    assert judgement.faithfulness.walked == {key: getattr(judgement.faithfulness, key) for key in ("cpr", "cmd")}
    for level, found in (("node", judgement.faithfulness), ("edge", edges.faithfulness)):
        by_size = curve(model, contrasts, magnitude(model, workspace.contrasts, level)).faithfulness()
        assert found.magnitude is not None and found.random is not None
        assert found.magnitude.cpr == pytest.approx(float(cpr(by_size)), abs=1e-5)
        at_random = [curve(model, contrasts, random_scores(graph, level, i)).faithfulness() for i in range(3)]
        assert found.random.cmd == pytest.approx(sum(float(cmd(f)) for f in at_random) / 3, abs=1e-5)
        for rival in (found.magnitude, found.random):
            assert rival.cpr_difference == pytest.approx(found.walked["cpr"] - rival.cpr, abs=1e-6)
            assert rival.cmd_difference == pytest.approx(found.walked["cmd"] - rival.cmd, abs=1e-6)
            low, high = rival.cpr_difference_95
            assert low <= high
    assert judgement.stability == pytest.approx(
        attribute(model, workspace.contrasts).stability(torch.ones(len(graph.nodes), dtype=torch.bool)), abs=1e-3
    )
    assert edges.stability == pytest.approx(scores.stability(graph.edge_mask), abs=1e-2)


def test_the_best_match_asks_nobody_for_partners(held, judgement: CircuitJudgement) -> None:  # type: ignore[no-untyped-def]
    """By hand: the largest debiased CKA with a teacher's component of its kind, for each of the student's circuit."""
    workspace, test = held
    model, teacher = workspace.student.model(), workspace.teacher.model()
    own = components(Graph.of(model), attribute(model, workspace.contrasts))
    mine, theirs = top_components(own, SHARE), top_components(workspace.components("teacher", "attribution"), SHARE)
    split, rows = encode(workspace.tokenizer, test), torch.arange(len(test))
    found = []
    for each, sites in ((model, mine), (teacher, theirs)):
        with torch.no_grad(), captured(each, list(sites)) as caught:
            each.model(input_ids=split.ids)
        found.append({site: caught[site][rows, split.last_prompt].double() for site in sites})
    assert judgement.cka is not None and judgement.cka.best_mean is not None
    free = {s: [t for t in theirs if is_head(s) == is_head(t) and (s, t) not in judgement.cka.pairs] for s in mine}
    assert sum(map(len, free.values())) > 0 and any(s in mine and t in theirs for s, t in judgement.cka.pairs)
    best = [
        max(linear_cka(found[0][s], found[1][t], debiased=True).item() for t in candidates)
        for s, candidates in free.items()
        if candidates
    ]
    assert judgement.cka.best_mean == pytest.approx(sum(best) / len(best), abs=1e-4)


def test_whoever_learns_its_given_pairs_alone_has_no_better_matches() -> None:
    """Four components copy their partners and nothing else becomes alike: the mean of best matches stays where it was."""
    g = torch.Generator().manual_seed(0)
    sites = [f"mlp.{i}.out" for i in range(4)]
    teacher = {site: torch.randn(400, 6, generator=g) for site in sites}
    student = {site: torch.randn(400, 6, generator=g) for site in sites}
    pairs = tuple(zip(sites, sites, strict=True))
    before, after = _best_matches(student, teacher, pairs), _best_matches(dict(teacher), teacher, pairs)
    assert before is not None and after is not None
    assert abs(before) < 0.05 and abs(after) < 0.05
    assert _best_matches(dict(teacher), teacher, ()) == pytest.approx(1.0)
    assert _best_matches({"mlp.0.out": student[sites[0]]}, {"mlp.0.out": teacher[sites[0]]}, pairs) is None


def test_interchange_is_over_pairs_whose_problems_the_model_solves(held, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The pairs are drawn from all problems, so that every row has the same ones; here half of the problems count as solved."""
    workspace, test = held
    seen: list[int] = []

    def hits(model, problems, nodes):  # type: ignore[no-untyped-def]
        seen.append(len(problems))
        return torch.ones(len(problems), len(nodes), dtype=torch.bool)

    monkeypatch.setattr("cdbench.judge.interchange_hits", hits)
    monkeypatch.setattr("cdbench.judge.solved", lambda model, tokenizer, split: list(split))
    judge_circuit(workspace.student.model(), workspace, test, reference=False)
    every, seen[:] = list(seen), []
    monkeypatch.setattr("cdbench.judge.solved", lambda model, tokenizer, split: list(split)[::2])
    found = judge_circuit(workspace.student.model(), workspace, test, reference=False)
    assert found is not None and found.interchange is not None
    assert all(0 < some < 0.5 * of for some, of in zip(seen, every, strict=True))  # no others are run at all
    assert found.interchange.chosen is not None and found.interchange.control is not None
    assert [j.n for j in (found.interchange.chosen, found.interchange.accuracy, found.interchange.control)] == seen[:3]
    marks = found.interchange.marks
    assert len(marks) == every[1]  # a letter for each pair that any row is asked, whatever this one solves
    assert (marks.count("1"), marks.count("0")) == (seen[1], 0)
    assert list(found.interchange_digits) == ["ones_op1", "ones_op2", "tens_op1", "tens_op2"]
    for judged, pairs in zip(found.interchange_digits.values(), every[4::3], strict=True):
        assert len(judged.marks) == pairs and judged.accuracy.value == 1
        assert judged.chosen is not None and judged.chosen.value == 1
    monkeypatch.setattr("cdbench.judge.solved", lambda model, tokenizer, split: [])
    found = judge_circuit(workspace.student.model(), workspace, test, reference=False)
    assert found.interchange is None and "solves none of the problems" in found.not_judged["interchange"]
    assert not found.interchange_digits and "solves none of the problems" in found.not_judged["interchange of tens_op2"]


def test_tied_parameters_are_counted_once() -> None:
    base, other = llama(tie_word_embeddings=True), llama(tie_word_embeddings=True)
    with torch.no_grad():
        other.model.embed_tokens.weight[0, 0] += 1
    assert changed(other, base) == (1, sum(p.numel() for p in base.parameters()))


def test_perplexity_is_the_exponential_of_the_mean_loss_of_answer_tokens() -> None:
    model = llama(vocab_size=len(make_tokenizer()))
    split = encode(make_tokenizer(), [Example("12+34=", "46", (12, 34)), Example("1+2=", "3", (1, 2))])
    with torch.no_grad():
        logits = model(input_ids=split.ids).logits
    losses = []
    for row in range(2):
        for position, token in zip(split.answer_positions[row], split.answer_tokens[row], strict=True):
            if token != -100:
                losses.append(F.cross_entropy(logits[row, position], token).item())
    assert len(losses) == 5  # 4, 6, end; 3, end
    assert perplexity(model, split) == pytest.approx(math.exp(sum(losses) / 5), rel=1e-5)


def test_changed_parameters_are_counted_one_by_one() -> None:
    base, other = llama(), llama()
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[0, :3] += 1
        other.lm_head.weight[2, 2] += 1
    assert changed(other, base) == (4, sum(p.numel() for p in base.parameters()))


def test_a_record_tells_it_all(world: World, tmp_path: Path) -> None:
    spec = world.spec("circuit_finetune")
    for step in ("train", "evaluate"):
        code, folder = world.step(step, spec, tmp_path)
        assert code == 0, (folder / f"failure-{step}.json").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    extras = json.loads((folder / "outcome.json").read_text())["extras"]
    assert 0 < metrics["parameters_changed"] < metrics["parameters"]
    assert set(metrics["perplexity"]) == {
        "test",
        "shift_addition_3digit",
        "shift_addition_4digit",
        "shift_addition_5digit",
    }
    assert metrics["circuit"]["faithfulness"]["cpr"] is not None
    assert len(extras["circuit"]) == 5  # half of ten heads and MLPs


def test_whole_answers_are_right_or_not() -> None:
    from cdbench.circuits.forward import Forward

    model = llama(vocab_size=len(make_tokenizer()))
    split = encode(make_tokenizer(), [Example("12+34=", "46", (12, 34)), Example("1+2=", "3", (1, 2))])
    split = half_right(model, split)
    forward = Forward(model)
    with torch.no_grad():
        end = forward.trace(forward.embed(split.ids)).end
        at = end[torch.arange(2)[:, None], split.answer_positions]
        assert hits_at(forward, at, split).tolist() == exact_match(model, split).tolist() == [True, False]


def heads_with(importance: dict[str, float], heads: int = 4) -> CircuitJudgement:
    graph = Graph(4, heads, 8)
    values = [importance.get(name, 0.0) for name in graph.nodes]
    blank = {"k": 0, "n": 1, "value": 0.0, "low": 0.0, "high": 1.0}
    return CircuitJudgement(
        problems=1, nodes=list(graph.nodes), importance=values, importance_low=values, importance_high=values, circuit=[],
        faithfulness=None, accuracy=blank, interchange=None, cka=None,  # type: ignore[arg-type]
    )  # fmt: skip


def test_even_heads_of_the_later_layers_are_told_from_shuffled_ones() -> None:
    """Two of four heads of a layer are even: they have all of its importance in 1 of 6 shuffles, in two layers in 1 of 36."""
    planted = even_heads(heads_with({"a2.h0": 1.0, "a2.h2": 1.0, "a3.h0": -1.0, "a3.h2": 1.0, "m3": 50.0}))
    assert planted is not None
    assert planted.share == planted.late == 1.0
    assert planted.expected == pytest.approx(0.5, abs=0.01)
    assert planted.p == pytest.approx(1 / 36, abs=0.005)
    odd = even_heads(heads_with({"a2.h1": 1.0, "a3.h3": 1.0}))
    assert odd is not None and odd.share == 0 and odd.p == 1.0 and odd.low == -odd.expected
    even = even_heads(heads_with({f"a{i}.h{j}": 1.0 for i in range(4) for j in range(4)}))
    assert even is not None and even.share == pytest.approx(even.expected) and even.p_two_sided == 1.0
    assert even_heads(heads_with({"m0": 3.0})) is None


@pytest.mark.parametrize("later", [1.0, 10.0])
def test_the_test_of_even_heads_errs_as_often_as_it_says_however_late_the_heads(later: float) -> None:
    """With random importance, ten times larger in the later layers or not, p < 0.05 in about 5 of 100 models."""
    draw, rejected = np.random.default_rng(0), 0
    for _ in range(300):
        sizes = draw.exponential(size=(4, 4)) * np.array([[1.0], [1.0], [later], [later]])
        found = even_heads(heads_with({f"a{i}.h{j}": float(sizes[i, j]) for i in range(4) for j in range(4)}))
        assert found is not None
        rejected += found.p < 0.05
    assert 5 <= rejected <= 27


def test_stability_over_seeds_is_the_mean_rank_correlation_of_every_two() -> None:
    """Three heads: 1 2 3 against 2 4 8 is 1, against 3 2 1 it is −1: (1 − 1 − 1) / 3."""
    rankings = [{"a0.h0": 1.0, "a0.h1": 2.0, "a0.h2": 3.0}, {"a0.h0": 2.0, "a0.h1": 4.0, "a0.h2": 8.0}]
    same = [heads_with(each) for each in rankings]
    assert stability_over_seeds(same) == pytest.approx(1.0)
    assert stability_over_seeds(same[:1]) is None and stability_over_seeds([heads_with({}), same[0]]) is None
    turned = [heads_with({name: -value for name, value in rankings[0].items()})]
    alone = [each.model_copy(update={"importance": each.importance[1:4]}) for each in [*same, *turned]]
    assert stability_over_seeds(alone) == pytest.approx(-1 / 3)
