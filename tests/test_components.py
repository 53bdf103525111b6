"""Heads and MLPs as what is trained and aligned: ranking, pairing, subnetworks, the state of a whole circuit."""

import json
import shutil
from itertools import permutations
from pathlib import Path
from random import Random

import pytest
import torch

from cdbench.api import CkaAlignment, Components, CrossEntropy, GlobalCka, Kl
from cdbench.circuits.attribution import attribute
from cdbench.circuits.components import (
    components,
    other_components,
    pair_components,
    pairing_support,
    random_partners,
    site_of,
    top_components,
)
from cdbench.circuits.graph import Graph
from cdbench.circuits.subnetwork import parameter_masks, shared_parameters
from cdbench.errors import RunFailed, UserError
from cdbench.files import write_json
from cdbench.objectives.global_cka import global_cka, make_probe
from cdbench.seeds import generator_for
from cdbench.similarity import linear_cka
from cdbench.store import MANIFEST, Store
from cdbench.workspace import Workspace
from circuit_models import contrasts, llama
from conftest import World, history_of
from test_train import problem as make_problem


def of(**means: list[float]) -> Components:
    """Two problems a component: sites are written a0h1, m0."""
    return Components(tuple(site_of(name.replace("h", ".h")) for name in means), torch.tensor(list(means.values())).T)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, 7.0, float("nan")])
def test_a_share_of_none_or_of_more_than_all_is_refused(share: float) -> None:
    found = Components(("mlp.0.out", "mlp.1.out"), torch.ones(3, 2))
    with pytest.raises(UserError, match="share = .*above 0 and at most 1"):
        top_components(found, share)
    with pytest.raises(UserError, match="share = "):
        pair_components(found, found, share)


def test_nodes_are_named_as_terms_read_them() -> None:
    assert site_of("a3.h12") == "attn.3.head.12"
    assert site_of("m10") == "mlp.10.out"
    model, pairs = llama(), contrasts()
    found = components(Graph.of(model), attribute(model, pairs))
    assert found.sites[:6] == (
        "attn.0.head.0",
        "attn.0.head.1",
        "attn.0.head.2",
        "attn.0.head.3",
        "mlp.0.out",
        "attn.1.head.0",
    )
    assert found.scores.shape == (8, 15)  # without the embedding
    assert len(found.heads.sites) == 12
    assert torch.equal(found.heads.mean[4], found.mean[5])


def test_the_top_share_is_by_size_and_never_empty() -> None:
    found = of(a0h0=[1.0, 1.0], a0h1=[-3.0, -3.0], m0=[2.0, 2.0], m1=[0.0, 0.0])
    assert top_components(found, 0.5) == ("attn.0.head.1", "mlp.0.out")
    assert top_components(found, 0.01) == ("attn.0.head.1",)
    assert len(top_components(found, 1.0)) == 4


def test_pairing_by_profile_puts_together_what_matters_on_the_same_problems() -> None:
    """By hand: the student's a0.h0 matters on the first problem, a0.h1 on the second; in the teacher it is the other way."""
    student = of(a0h0=[4.0, 0.0], a0h1=[0.0, 3.0], m0=[1.0, 1.0])
    teacher = of(a0h0=[0.0, 9.0], a0h1=[5.0, 1.0], m0=[2.0, 1.0])
    assert pair_components(student, teacher, 1.0) == (
        ("attn.0.head.0", "attn.0.head.1"), ("attn.0.head.1", "attn.0.head.0"), ("mlp.0.out", "mlp.0.out"),
    )  # fmt: skip


def test_pairing_by_importance_is_the_papers_rule_for_layers() -> None:
    student = of(a0h0=[1.0, 1.0], a1h0=[0.4, 0.4])
    teacher = of(a0h0=[0.5, 0.5], a1h0=[2.0, 2.0], a2h0=[0.8, 0.8], a3h0=[0.9, 0.9])
    # Normalised: student 1, .4; teacher .25, 1, .4, .45.
    assert pair_components(student, teacher, 1.0, "importance") == (
        ("attn.0.head.0", "attn.1.head.0"), ("attn.1.head.0", "attn.2.head.0"),
    )  # fmt: skip


def test_pairing_by_importance_takes_the_nearest_of_all_the_teachers_and_what_harms_last() -> None:
    """By hand: 1 goes with 1 and .2 with .2, though the teacher's own better half is 1 and .9."""
    student = of(a0h0=[1.0, 1.0], a0h1=[0.2, 0.2], a1h0=[0.1, 0.1], a1h1=[-0.9, -0.9])
    teacher = of(a0h0=[1.0, 1.0], a0h1=[0.9, 0.9], a1h0=[0.2, 0.2], a1h1=[0.0, 0.0])
    assert pair_components(student, teacher, 0.5, "importance") == (
        ("attn.0.head.0", "attn.0.head.0"), ("attn.0.head.1", "attn.1.head.0"),
    )  # fmt: skip
    assert top_components(student, 0.5, signed=True) == ("attn.0.head.0", "attn.0.head.1")
    assert top_components(student, 0.5) == ("attn.0.head.0", "attn.1.head.1")


def test_heads_of_a_teacher_without_any_stay_alone() -> None:
    student, teacher = of(a0h0=[1.0, 2.0], m0=[3.0, 1.0]), of(m0=[1.0, 2.0])
    assert pair_components(student, teacher, 1.0, "importance") == (("mlp.0.out", "mlp.0.out"),)


def test_heads_go_with_heads_and_what_has_no_kind_stays_alone() -> None:
    student, teacher = of(a0h0=[1.0, 2.0], m0=[3.0, 1.0]), of(a0h0=[1.0, 2.0], a0h1=[2.0, 5.0])
    assert [s for s, _ in pair_components(student, teacher, 1.0)] == ["attn.0.head.0"]


def random_scores(
    n: int, own: float, seed: int, *, counts: tuple[int, int] = (6, 6), difficulty: float = 0.0
) -> tuple[Components, Components]:
    """Heads and two MLPs of either model. Those of one name have a correlation of `own`; all share a problem's `difficulty`."""
    draw = torch.Generator().manual_seed(seed)
    shared, noise = (torch.randn(n, 2 + max(counts), generator=draw) for _ in range(2))
    hard = difficulty * torch.randn(n, 1, generator=draw)
    found = []
    for count, scores in zip(counts, (shared, own * shared + (1 - own**2) ** 0.5 * noise), strict=True):
        names = (*(f"attn.0.head.{i}" for i in range(count)), "mlp.0.out", "mlp.1.out")
        found.append(Components(names, hard + torch.cat([scores[:, :count], scores[:, -2:]], dim=1)))
    return found[0], found[1]


def correlation(student: Components, teacher: Components, pair: tuple[str, str]) -> float:
    both = [found.scores[:, found.sites.index(site)] for found, site in zip((student, teacher), pair, strict=True)]
    return float(torch.corrcoef(torch.stack(both).double())[0, 1])


def test_a_pairing_that_the_problems_bear_out_comes_back_and_holds_on_other_problems() -> None:
    student, teacher = random_scores(400, 0.8, 0)
    pairs = pair_components(student, teacher, 1.0)
    assert all(s == t for s, t in pairs)
    found = pairing_support(student, teacher, 1.0)
    by_hand = [correlation(student, teacher, pair) for pair in pairs]
    assert found.correlations == pytest.approx(by_hand, abs=1e-6)
    assert min(found.kept) > 0.99
    assert found.held_out == pytest.approx(sum(by_hand) / len(pairs), abs=0.02)  # both halves find these pairs
    own, any_one = sum(by_hand), sum(correlation(student, teacher, (s, t)) for s, _ in pairs for _, t in pairs)
    assert own > 6 and any_one < 8
    assert found.others < 0.4  # MLPs have one other, heads five
    assert found.p < 0.005
    assert found == pairing_support(student, teacher, 1.0)


@pytest.mark.parametrize("counts", [(4, 8), (8, 4), (6, 6)])
@pytest.mark.parametrize("difficulty", [0.0, 2.0])
def test_a_pairing_of_noise_is_told_from_none_in_one_of_twenty(counts: tuple[int, int], difficulty: float) -> None:
    """Whatever one model has more to choose from, and however hard some problems are for all that either has."""
    found = [
        pairing_support(*random_scores(60, 0.0, seed, counts=counts, difficulty=difficulty), 1.0) for seed in range(30)
    ]
    assert 0.3 < sum(each.p for each in found) / len(found) < 0.7
    assert sum(each.p <= 0.05 for each in found) <= 6  # 1.5 expected of 30; 7 or more in one of 2,000 tries
    difference = [each.held_out - each.others for each in found]
    assert abs(sum(difference) / len(found)) < 0.05  # what is chosen on the same problems is above 0.2
    assert all(sum(each.correlations) / len(each.correlations) > each.others for each in found)


def test_the_support_of_a_pairing_by_hand() -> None:
    """Two heads against three: every pairing tried out, on either half."""
    student, teacher = random_scores(80, 0.3, 3, counts=(2, 3), difficulty=0.5)
    found = pairing_support(student, teacher, 1.0)
    order = torch.randperm(80, generator=generator_for("pairing-support", 80))
    halves = [(of_rows(student, rows), of_rows(teacher, rows)) for rows in (order[:40], order[40:])]
    kinds = [("attn.0.head.{}", range(2), range(3)), ("mlp.{}.out", range(2), range(2))]
    held_out, others = [], []
    for name, mine, theirs in kinds:
        tables = [
            {(i, j): correlation(*half, (name.format(i), name.format(j))) for i in mine for j in theirs}
            for half in halves
        ]
        for one, other in (tables, tables[::-1]):
            best = max(permutations(theirs, 2), key=lambda to, one=one: sum(one[i, to[i]] for i in mine))  # type: ignore[misc]
            held_out += [other[i, best[i]] for i in mine]
            others += 2 * [sum(other.values()) / len(other)]
    assert found.held_out == pytest.approx(sum(held_out) / 8, abs=1e-6)
    assert found.others == pytest.approx(sum(others) / 8, abs=1e-6)
    with pytest.raises(ValueError, match="3 problems"):
        pairing_support(of_rows(student, order[:3]), of_rows(teacher, order[:3]), 1.0)


def of_rows(found: Components, rows: torch.Tensor) -> Components:
    return Components(found.sites, found.scores[rows])


def test_other_components_are_as_many_of_each_kind_and_outside_while_there_are_such() -> None:
    sites = ("attn.0.head.0", "attn.0.head.1", "attn.0.head.2", "attn.0.head.3", "mlp.0.out", "mlp.1.out")
    circuit = ("attn.0.head.1", "mlp.0.out", "mlp.1.out")
    drawn = {other_components(circuit, sites, Random(seed)) for seed in range(20)}
    for other in drawn:
        assert len(set(other)) == 3 and set(other) >= {"mlp.0.out", "mlp.1.out"}
        assert other[0] in {"attn.0.head.0", "attn.0.head.2", "attn.0.head.3"}
    assert len({other[0] for other in drawn}) == 3


def test_parameters_that_two_parts_of_a_model_share_are_counted_by_hand() -> None:
    """Hidden 16, 4 heads of 4 with 2 of keys and values: a head is 4·16·4 numbers, two that share keys and values 6·4·16; an MLP
    3·16·24."""
    model, head, mlp = llama(), 4 * 16, 3 * 16 * 24
    one, two, far, m = "attn.0.head.0", "attn.0.head.1", "attn.1.head.0", "mlp.1.out"
    assert shared_parameters(model, (one,), (one, m)) == 1
    assert shared_parameters(model, (one,), (far, m)) == 0
    assert shared_parameters(model, (one,), (two,)) == 0.5  # keys and values of 4 of its 8 matrices' worth
    assert shared_parameters(model, (far, m), (m,)) == pytest.approx(mlp / (mlp + 4 * head))
    with pytest.raises(ValueError, match="shares none"):
        shared_parameters(model, (), (m,))


def test_random_partners_are_the_same_components_dealt_out_anew() -> None:
    teacher = of(a0h0=[1.0, 2.0], a0h1=[2.0, 5.0], a1h0=[1.0, 1.0], m0=[1.0, 3.0], m1=[0.0, 1.0])
    pairs = (("attn.0.head.0", "attn.0.head.1"), ("mlp.0.out", "mlp.1.out"), ("attn.1.head.0", "attn.1.head.0"),
             ("attn.1.head.1", "attn.0.head.0"))  # fmt: skip
    seen = set()
    for seed in range(20):
        drawn = random_partners(pairs, teacher, Random(seed))
        assert [s for s, _ in drawn] == [s for s, _ in pairs]
        assert all(new != old for (_, new), (_, old) in zip(drawn, pairs, strict=True))
        assert sorted(t for _, t in drawn if "head" in t) == ["attn.0.head.0", "attn.0.head.1", "attn.1.head.0"]
        assert drawn[1][1] == "mlp.0.out"  # the only MLP that has a pair: another of its kind
        seen.add(drawn)
    assert len(seen) == 2  # three heads have two derangements
    assert random_partners(pairs, teacher, Random(1)) == random_partners(pairs, teacher, Random(1))
    shared = (("attn.0.head.0", "attn.0.head.1"), ("attn.1.head.0", "attn.0.head.1"))
    assert all(t != "attn.0.head.1" for _, t in random_partners(shared, teacher, Random(0)))


@pytest.mark.parametrize("bias", [False, True])
def test_a_components_parameters_are_those_that_its_output_depends_on(bias: bool) -> None:
    """By gradients: of the sum of what a head writes, every entry of its own with a gradient; of no other head's."""
    from cdbench.circuits.forward import Forward

    model = llama(attention_bias=bias, mlp_bias=bias)
    forward = Forward(model)
    ids = contrasts().clean
    for site, layer, head in (("attn.1.head.2", 1, 2), ("mlp.1.out", 1, None)):
        masks = parameter_masks(model, [site])
        trace = forward.trace(forward.embed(ids))
        read = forward.heads(1, trace.before[1].detach(), forward.rotary(trace.before[1]))
        mlp = forward.mlp(1, trace.middle[1].detach())
        written = mlp if head is None else forward.write(1, read)[:, :, head]
        own = {n: p for n, p in model.named_parameters() if n.startswith(f"model.layers.{layer}.") and "norm" not in n}
        grads = torch.autograd.grad(written.square().sum(), list(own.values()), allow_unused=True)
        for (name, parameter), gradient in zip(own.items(), grads, strict=True):
            used = torch.zeros_like(parameter, dtype=torch.bool) if gradient is None else gradient.abs() > 1e-12
            mask = masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
            if "k_proj.bias" in name:
                continue  # a bias of the keys shifts all scores alike, but for the rotation
            assert torch.equal(used, mask), (site, name)


@pytest.mark.parametrize("site", ["mlp.3.out", "attn.0.head.4", "logits", "mlp.0.neurons", "attn.3.head.0"])
def test_sites_that_are_no_component_are_refused(site: str) -> None:
    with pytest.raises(UserError, match="no head and no MLP of this model"):
        parameter_masks(llama(), [site])


ONLY = ("attn.0.head.1", "attn.1.head.2", "mlp.1.out")


def test_training_a_subnetwork_changes_nothing_else_to_the_bit(world: World, tmp_path: Path) -> None:
    problem = make_problem(world, tmp_path, weight_decay=0.1)  # decay would move what has no gradient
    masks = parameter_masks(problem.student, ONLY)
    before = {name: value.clone() for name, value in problem.student.state_dict().items()}
    weights = problem.fit([CrossEntropy()], ONLY).weights
    assert weights is not None
    for name, value in weights.items():
        mask = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~mask], before[name][~mask]), name
        if mask.any():
            assert not torch.equal(value[mask], before[name][mask]), name
    assert all(p.requires_grad for p in problem.student.parameters())


def test_a_subnetwork_resumed_is_a_subnetwork_trained_in_one_go(world: World, tmp_path: Path) -> None:
    whole = make_problem(world, tmp_path / "1").fit([CrossEntropy()], ONLY).weights
    broken = make_problem(world, tmp_path / "2")
    broken.checkpoint_seconds = 0.0
    told = broken.progress

    def stop(done: int, total: int, note: str) -> None:
        if done == total - 2:
            raise KeyboardInterrupt
        told(done, total, note)

    broken.progress = stop
    with pytest.raises(KeyboardInterrupt):
        broken.fit([CrossEntropy()], ONLY)
    assert broken.checkpoint.exists()
    again = make_problem(world, tmp_path / "2").fit([CrossEntropy()], ONLY).weights
    assert whole is not None and again is not None
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_training_that_fails_leaves_the_student_whole(world: World, tmp_path: Path) -> None:
    problem = make_problem(world, tmp_path)
    problem.student.lm_head.weight.requires_grad_(False)

    def fail(done: int, total: int, note: str) -> None:
        raise RunFailed("enough")

    problem.progress = fail
    with pytest.raises(RunFailed, match="enough"):
        problem.fit([CrossEntropy()], ONLY)
    assert [n for n, p in problem.student.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert not any(p._backward_hooks for p in problem.student.parameters())


def test_an_alignment_without_pairs_says_so(world: World, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="the alignment has no pairs"):
        make_problem(world, tmp_path).fit([Kl(), CkaAlignment(())])


def test_the_whole_model_as_a_subnetwork_is_not_the_whole_model(world: World, tmp_path: Path) -> None:
    """Embeddings and norms are no component's: they stay, and so the result differs from full training."""
    sites = [f"attn.{i}.head.{h}" for i in range(2) for h in range(4)] + ["mlp.0.out", "mlp.1.out"]
    one = make_problem(world, tmp_path / "1").fit([CrossEntropy()], sites).weights
    two = make_problem(world, tmp_path / "2").fit([CrossEntropy()]).weights
    base = make_problem(world, tmp_path / "3").student.state_dict()
    assert one is not None and two is not None
    assert torch.equal(one["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert not torch.equal(two["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_gradient_norms_of_a_subnetwork_are_its_own(world: World, tmp_path: Path) -> None:
    for name, only in (("1", ONLY), ("2", ())):
        made = make_problem(world, tmp_path / name)
        made.fit([CrossEntropy()], only)
        made.history.flush()
    part, whole = (history_of(tmp_path / name)[0] for name in ("1", "2"))
    assert part["loss/cross_entropy"] == whole["loss/cross_entropy"]
    assert 0 < part["grad/cross_entropy"] < whole["grad/cross_entropy"]
    assert part["grad/cross_entropy"] == pytest.approx(part["grad/total"], rel=1e-5)


def test_alignment_reads_heads_as_well_as_layers(world: World, tmp_path: Path) -> None:
    layers = CkaAlignment(((0, 1), (1, 2)))
    sites = CkaAlignment((("mlp.0.out", "mlp.1.out"), ("mlp.1.out", "mlp.2.out")))
    assert layers.student_sites == sites.student_sites
    assert layers.signals == sites.signals
    one = make_problem(world, tmp_path / "1").fit([Kl(), layers]).weights
    two = make_problem(world, tmp_path / "2").fit([Kl(), sites]).weights
    heads = make_problem(world, tmp_path / "3").fit([Kl(), CkaAlignment((("attn.0.head.1", "attn.2.head.3"),))]).weights
    assert one is not None and two is not None and heads is not None
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], heads[name]) for name in one)


def test_the_state_of_a_circuit_is_its_components_side_by_side() -> None:
    g = torch.Generator().manual_seed(0)
    xs, ys = ([torch.randn(20, d, generator=g) for d in widths] for widths in ((3, 5), (4, 2, 6)))
    expected = 1 - linear_cka(torch.cat(xs, 1), torch.cat(ys, 1))
    torch.testing.assert_close(global_cka(xs, ys, debiased=False), expected)
    assert global_cka(xs, xs, debiased=False).item() == pytest.approx(0, abs=1e-6)
    term = GlobalCka(("mlp.0.out",), ("mlp.1.out", "attn.0.head.1"))
    assert [signal.site for signal in term.signals] == ["mlp.1.out", "attn.0.head.1"]
    # Through a probe that turns and stretches the student's state, the value is that of the turned state.
    probe = torch.randn(8, 3, generator=g)
    turned = 1 - linear_cka(torch.cat(xs, 1) @ probe, torch.cat(ys, 1))
    torch.testing.assert_close(global_cka(xs, ys, debiased=False, probe=probe), turned)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_probe_is_drawn_from_the_seed_trained_along_and_left_out_of_the_student(
    world: World, tmp_path: Path, precision: str
) -> None:
    own, target = ("mlp.0.out", "attn.1.head.0"), ("mlp.1.out",)
    made = make_problem(world, tmp_path, precision=precision)
    probe, again = make_probe(made, own), make_probe(made, own)
    assert torch.equal(probe, again) and probe.shape == (32 + 8, 32 + 8)
    assert made.signal_stores["student"].made == []  # widths are known without a pass
    with_probe = made.fit([Kl(), GlobalCka(own, target, 1.0, probe=probe)]).weights
    assert not torch.equal(probe, again)
    without = make_problem(world, tmp_path, precision=precision).fit([Kl(), GlobalCka(own, target, 1.0)]).weights
    assert with_probe is not None and without is not None
    assert with_probe.keys() == without.keys()
    assert not all(torch.equal(with_probe[name], without[name]) for name in without)


def test_components_of_both_models_are_ranked_on_the_same_problems(world: World) -> None:
    # Attribution is made by the `circuits` step of the fixture; ablation, which takes long, when somebody asks for it.
    workspace = world.workspace(build=False)
    for by, asked in (("attribution", workspace), ("ablation", world.workspace())):
        student, teacher = (asked.components(role, by) for role in ("student", "teacher"))
        assert len(student.scores) == len(teacher.scores) > 100
        assert (len(student.sites), len(teacher.sites)) == (10, 15)
    model = workspace.teacher.model()
    expected = components(Graph.of(model), attribute(model, workspace.contrasts))
    assert torch.equal(workspace.components("teacher", "attribution").scores, expected.scores)


def test_a_task_without_contrasts_is_told_to_who_asks_for_components(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace = world.workspace()
    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "counterfactuals.jsonl").write_text("null\n" * 256)
    write_json(folder / MANIFEST, {"key": {}, "files": {}})
    alone = Workspace(workspace.profile, workspace.task, Store(tmp_path / "store"), workspace.progress)
    for name in ("training_data", "teacher", "student"):
        alone.__dict__[name] = getattr(workspace, name)
    alone.__dict__["counterfactuals"] = folder
    with pytest.raises(RunFailed, match="heads and MLPs cannot be ranked"):
        alone.components("student", "attribution")


def test_what_a_locked_in_method_had_to_make_is_made_once_for_those_after_it(world: World, tmp_path: Path) -> None:
    """As in a container: the store must not be written to. Ablation of every component is made when a method asks for it."""
    from cdbench import execute
    from cdbench.record import WANTED, lacked

    store = tmp_path / "store"
    shutil.copytree(world.store, store)
    for kind, name in (("circuits", "ablation.safetensors"), ("solutions", "solutions.jsonl")):
        for made in store.glob(f"{kind}/*/{name}"):
            shutil.rmtree(made.parent)

    def train(method: str, where: Path) -> Path:
        folder = world.folder(world.spec(method), where)
        assert execute.main(["train", str(folder), str(store), str(where / "own")]) == 0
        return folder

    seconds = []
    for method, name in (("head_cd", "ablation"), ("cot", "solutions")):
        first = train(method, tmp_path / f"{method}-1")
        wanted = lacked(first)
        assert wanted.artefacts == [name]
        prepare = world.folder(world.spec(method), tmp_path / f"{method}-2")
        (prepare / WANTED).write_text(wanted.model_dump_json())
        assert execute.main(["signals", str(prepare), str(store)]) == 0
        second = train(method, tmp_path / f"{method}-3")
        assert lacked(second).artefacts == []
        seconds += [
            json.loads((folder / "outcome.json").read_text())["cost"]["train_seconds"] for folder in (first, second)
        ]
        weights = [(folder / "student.safetensors").read_bytes() for folder in (first, second)]
        assert weights[0] == weights[1]
    assert lacked(train("atp_cd", tmp_path / "atp_cd")).artefacts == []
    assert all(value > 0 for value in seconds)
