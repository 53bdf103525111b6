"""The ledger's verdicts on rows whose truth is known, and the ledger's own file."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats as distributions

from cdbench import discover
from cdbench.errors import UserError
from cdbench.inference import Z95, seed_interval
from cdbench.record import Faithfulness, PairingSupport
from cdbench.report import ledger as forms
from cdbench.report.circuits import _band, _nodes, _of_pairing, circuit_notes, measured
from cdbench.report.claims import Verdict, counts_apart, judge
from cdbench.report.collect import Group, StudyData
from cdbench.report.context import ledger_row, verdict_row
from cdbench.report.formats import over_seeds, percent
from cdbench.report.ledger import Claim, Difference, Equivalence, Ledger, Order, read_ledger
from cdbench.report.sampled import spread_of
from cdbench.stats import wilson

TASK = "addition_2digit"


def row(method: str, accuracy: float, *, seeds: int = 5, n: int = 1000, luck: float = 0.0, point: Any = None) -> Group:
    """A row whose runs solve each of the same problems with this probability, more or less by the luck of the seed."""
    rng = np.random.default_rng(sum(map(ord, method)))
    chances = np.clip(accuracy + luck * rng.standard_normal((seeds, 1)), 0, 1)
    hits = (np.random.default_rng(0).random(n)[None] + 0.02 * rng.standard_normal((seeds, n)) < chances).astype(float)
    if method in ("teacher", "base"):
        hits = np.repeat(hits[:1], 1 if method == "teacher" else seeds, axis=0)
    made = [
        SimpleNamespace(
            run_id=f"{method}{i}",
            spec=SimpleNamespace(seed=i),
            metrics=None,
            params={},
            extras={},
            code=SimpleNamespace(evaluation="e"),
        )
        for i in range(len(hits))
    ]
    return Group(method, method, TASK, point or {}, cast(Any, tuple(made)), (), hits, tuple(Path() for _ in made))


def study(*rows: Group, profile: str = "tiny") -> StudyData:
    record = SimpleNamespace(spec=SimpleNamespace(profile=SimpleNamespace(name=profile, teacher=None, student=None)))
    return StudyData(cast(Any, None), rows, (), cast(Any, (record,)))


def difference(high: str, low: str, margin: float = 0.02) -> Difference:
    return Difference(
        id="T.d", says="", source="", decided_by="difference", task=TASK, high=high, low=low, margin=margin
    )


def one(claim: Claim, *rows: Group, profile: str = "tiny") -> Verdict:
    return judge([claim], study(*rows, profile=profile))[0]


def test_a_difference_is_supported_refuted_or_inconclusive_by_its_interval() -> None:
    kl = row("kl", 0.6)
    assert one(difference("cka_cd", "kl"), row("cka_cd", 0.9), kl).outcome == "supported"
    worse = one(difference("cka_cd", "kl"), row("cka_cd", 0.3), kl)
    assert worse.outcome == "refuted" and worse.evidence and worse.evidence.effect == pytest.approx(-0.3, abs=0.01)
    # Half a point, well measured: the claim of two points or more is refuted, that of any is supported.
    small = row("cka_cd", 0.605)
    assert one(difference("cka_cd", "kl"), small, kl).outcome == "refuted"
    wild = one(difference("cka_cd", "kl"), row("cka_cd", 0.65, seeds=3, luck=0.2), row("kl", 0.6, seeds=3))
    assert wild.outcome == "inconclusive" and "the interval holds both" in wild.why
    assert "seeds would decide it (four times in five" in wild.why or "not even 200 seeds would decide it" in wild.why


def test_a_difference_may_be_of_the_problems_that_the_teacher_gets_wrong() -> None:
    """The teacher misses the last 100 of 1,000; there one row solves half, the other none, and elsewhere it is worse."""
    claim = difference("cka_cd", "kl").model_copy(update={"where_teacher_errs": True})

    def solving(method: str, elsewhere: float, there: float) -> Group:
        hits = np.concatenate([np.arange(900) % 10 < 10 * elsewhere, np.arange(100) % 10 < 10 * there]).astype(float)
        made = row(method, 0.5)
        return replace(made, hits=np.repeat(hits[None], len(made.records), axis=0))

    rows = solving("teacher", 1, 0), solving("cka_cd", 0.2, 0.5), solving("kl", 0.9, 0.0)
    found = one(claim, *rows)
    assert found.outcome == "supported" and found.evidence and found.evidence.effect == pytest.approx(0.5)
    assert "of the 100 problems that the teacher gets wrong" in found.why
    assert "cka_cd beats kl in 25 of 25 pairs" in found.why
    assert found.evidence.run_ids[-1] == "teacher0"
    assert one(difference("cka_cd", "kl"), *rows).outcome == "refuted"
    few = replace(rows[0], hits=np.concatenate([np.ones((1, 981)), np.zeros((1, 19))], axis=1))
    assert "the teacher gets 19 of 1,000 problems wrong" in one(claim, few, *rows[1:]).why
    assert "no row teacher" in one(claim, *rows[1:]).why


def test_at_the_floor_nothing_is_compared() -> None:
    """Two rows that solve nothing are no refutation of one being better, nor a proof of their being as good."""
    for claim in (
        difference("cka_cd", "kl"),
        Order(id="T.o", says="", source="", task=TASK, decided_by="order", rows=["cka_cd", "kl"], margin=0.0),
        Equivalence(
            id="T.e", says="", source="", task=TASK, decided_by="equivalence", one="cka_cd", other="kl", margin=0.02
        ),
    ):
        floor = one(claim, row("cka_cd", -0.04), row("kl", -0.05))
        assert floor.outcome == "not tested here" and "at the floor no difference could show" in floor.why
        assert one(claim, row("cka_cd", 0.05), row("kl", -0.05)).outcome != "not tested here"


def test_one_seed_decides_nothing_about_what_seeds_change() -> None:
    lone = one(difference("cka_cd", "kl"), row("cka_cd", 0.9, seeds=1), row("kl", 0.6, seeds=1))
    assert lone.outcome == "inconclusive" and "one seed only" in lone.why
    # No seed changes the teacher or the student before training.
    assert one(difference("teacher", "base"), row("teacher", 0.96), row("base", 0.5, seeds=1)).outcome == "supported"


def test_the_teacher_stands_for_every_seed_on_either_side() -> None:
    for high, low, outcome in (("teacher", "kl", "supported"), ("kl", "teacher", "refuted")):
        found = one(difference(high, low), row("teacher", 0.96), row("kl", 0.6))
        assert found.outcome == outcome and found.evidence and found.evidence.seeds == 5


def test_an_equivalence_needs_the_whole_interval_inside_the_margin() -> None:
    same = Equivalence(
        id="T.e", says="", source="", decided_by="equivalence", task=TASK, one="cka_cd", other="teacher", margin=0.02
    )
    assert one(same, row("cka_cd", 0.961), row("teacher", 0.96)).outcome == "supported"
    assert one(same, row("cka_cd", 0.9), row("teacher", 0.96)).outcome == "refuted"
    assert one(same, row("cka_cd", 0.94, n=100), row("teacher", 0.96, n=100)).outcome == "inconclusive"


def test_an_order_is_as_good_as_its_weakest_step() -> None:
    order = Order(id="T.o", says="", source="", decided_by="order", task=TASK, rows=["a", "b", "c"])
    assert one(order, row("a", 0.9), row("b", 0.7), row("c", 0.5)).outcome == "supported"
    broken = one(order, row("a", 0.9), row("b", 0.5), row("c", 0.7))
    assert broken.outcome == "refuted" and "b − c −20" in broken.why


def test_what_a_study_does_not_have_is_not_tested_and_says_why() -> None:
    assert "no row atp_cd" in one(difference("atp_cd", "kl"), row("kl", 0.6)).why
    smoke = one(difference("cka_cd", "kl"), row("cka_cd", 0.9), row("kl", 0.6), profile="smoke")
    assert smoke.outcome == "not tested here" and "numbers mean nothing" in smoke.why
    theirs = difference("cka_cd", "kl").model_copy(update={"only_with": "paper"})
    assert one(theirs, row("cka_cd", 0.9), row("kl", 0.6)).outcome == "not tested here"
    swept = row("cka_cd", 0.9, point={"training.lr": 2e-4})
    assert one(difference("cka_cd", "kl"), swept, row("kl", 0.6)).outcome == "not tested here"
    empty = Group("cka_cd", "cka_cd", TASK, {}, (), (), np.zeros((0, 0)), ())
    assert "came to a result" in one(difference("cka_cd", "kl"), empty, row("kl", 0.6)).why


def test_many_claims_at_once_ask_more_of_each() -> None:
    rows = [row("cka_cd", 0.615, seeds=3, luck=0.002), row("kl", 0.6, seeds=3, luck=0.002)]
    alone = judge([difference("cka_cd", "kl", 0.0)], study(*rows))[0]
    assert alone.outcome == "supported" and alone.p_holm
    crowd = [difference("cka_cd", "kl", 0.0).model_copy(update={"id": f"T.x{i}"}) for i in range(40)]
    found = judge(crowd, study(*rows))[0]
    assert found.p_holm == pytest.approx(min(1, 40 * alone.p_holm))
    assert found.outcome == "inconclusive" and "corrected for the number of claims" in found.why


def test_the_ledger_names_methods_and_tasks_that_exist() -> None:
    ledger = read_ledger()
    methods, tasks = {*discover.find("methods"), "teacher"}, set(discover.find("tasks"))
    for claim in ledger.claim:
        table = claim.model_dump()
        named = {table[key] for key in ("high", "low", "one", "other", "row") if key in table}
        assert named | set(table.get("rows", ())) <= methods, claim.id
        assert {table[key] for key in ("task", "split") if key in table} <= tasks | {"test"}, claim.id
    assert {row.method for row in ledger.table1} <= methods
    assert len({claim.id for claim in ledger.claim}) == len(ledger.claim)


def test_a_method_that_was_taken_away_leaves_its_claims_untested() -> None:
    """One file out, one row less: the ledger's claims about it say so, and a slip of the pen is named."""
    gone = one(difference("cka_cd", "kll"), row("cka_cd", 0.9))
    assert gone.outcome == "not tested here"
    assert gone.why == "there is no method 'kll' here; did the ledger mean 'kl'?"


def test_an_inconclusive_claim_says_how_many_seeds_the_corrected_test_needs() -> None:
    rows = [row("cka_cd", 0.615, seeds=3, luck=0.002), row("kl", 0.6, seeds=3, luck=0.002)]
    crowd = [difference("cka_cd", "kl", 0.0).model_copy(update={"id": f"T.x{i}"}) for i in range(40)]
    found = judge(crowd, study(*rows))[0]
    assert isinstance(found.seeds_to_decide, int) and found.seeds_to_decide > 3
    assert f"about {found.seeds_to_decide} seeds would decide it" in found.why
    # More than the uncorrected interval needs; and with plenty of seeds it is decided indeed.
    needed = found.evidence.seeds_needed if found.evidence else None
    assert needed and (needed(0.95) or 0) < found.seeds_to_decide == needed(1 - 0.05 / 40)
    many = [row(m, a, seeds=4 * found.seeds_to_decide, luck=0.002) for m, a in (("cka_cd", 0.615), ("kl", 0.6))]
    assert judge(crowd, study(*many))[0].outcome == "supported"
    assert judge(crowd[:1], study(*rows))[0].seeds_to_decide is None


def test_rows_of_two_evaluations_are_neither_compared_nor_pooled() -> None:
    old, new = row("cka_cd", 0.9), row("kl", 0.6)
    apart = one(difference("cka_cd", "kl"), replace(old, judged_by="a"), replace(new, judged_by="b"))
    assert apart.outcome == "not tested here" and "judged by different evaluations" in apart.why
    split = replace(old, judged_by="a"), replace(old, judged_by="b")
    torn = one(difference("cka_cd", "kl"), *split, replace(new, judged_by="a"))
    assert torn.outcome == "not tested here" and "judged by 2 evaluations" in torn.why
    number = one(more(), replace(numbered("atp_cd", {0: 0.9, 1: 0.8}), judged_by="a"), numbered("kl", {0: 0.1, 1: 0.2}))
    assert number.outcome == "not tested here"


def test_values_that_are_all_the_same_are_left_to_the_sign_test() -> None:
    """Three equal gaps have no spread that a t test could use; three signs decide nothing, eight do."""
    claim = more()
    few = one(claim, numbered("atp_cd", dict.fromkeys(range(3), 0.7)), numbered("kl", dict.fromkeys(range(3), 0.5)))
    assert few.outcome == "inconclusive" and few.p_holm == pytest.approx(0.25)
    shown = verdict_row(few)
    assert (shown["effect"], shown["interval"], ledger_row(few)["low"]) == ("+20.0", "–", None)
    assert few.why.startswith("all runs lie on one side of the edge") and "all runs gave the same number" in few.why
    assert few.seeds_to_decide == 6  # 2 · 0.5^6 = 0.031, 2 · 0.5^5 = 0.063
    rounded = {0: 0.1 + 0.7999999999999999, 1: 0.1 + 0.8, 2: 0.1 + 0.7999999999999999}
    assert one(
        claim, numbered("atp_cd", rounded), numbered("kl", dict.fromkeys(range(3), 0.1))
    ).p_holm == pytest.approx(0.25)
    many = one(claim, numbered("atp_cd", dict.fromkeys(range(8), 0.7)), numbered("kl", dict.fromkeys(range(8), 0.5)))
    assert many.outcome == "supported" and many.p_holm == pytest.approx(2 / 2**8)


def test_a_broken_order_pays_for_being_the_worst_of_its_steps() -> None:
    order = Order(id="T.o", says="", source="", decided_by="order", task=TASK, rows=["a", "b", "c"])
    rows = row("a", 0.7, luck=0.01), row("b", 0.52, luck=0.01), row("c", 0.56, luck=0.01)
    broken, step = one(order, *rows), one(difference("b", "c", 0.0), *rows)
    assert broken.p_holm == pytest.approx(2 * (step.p_holm or 0)) and broken.p_holm
    assert "McNemar’s exact p, seed by seed" in broken.why


def test_an_order_needs_the_seeds_of_its_weakest_step() -> None:
    order = Order(id="T.o", says="", source="", decided_by="order", task=TASK, rows=["a", "b", "c"])
    rows = [row(m, x, seeds=3, luck=0.01) for m, x in (("a", 0.9), ("b", 0.62), ("c", 0.6))]
    whole, sure, unsure = (one(claim, *rows) for claim in (order, difference("a", "b", 0.0), difference("b", "c", 0.0)))
    assert sure.outcome == "supported" and unsure.outcome == whole.outcome == "inconclusive"
    assert whole.seeds_to_decide == unsure.seeds_to_decide


def test_an_accuracy_near_one_is_tested_with_the_variance_at_the_claimed_edge() -> None:
    """998 of 1,000 against 99 %: three standard errors of the estimate more, but the exact binomial p is 0.006."""
    near = forms.AtPoint(id="T.n", says="", source="", decided_by="at_point", task=TASK, row="base", at_least=0.99)
    hits = (np.arange(1000) < 998).astype(float)[None]
    found = one(near, replace(row("base", 0.9, seeds=1), hits=hits))
    assert found.p_holm == pytest.approx(2 * distributions.norm.sf(0.008 / (0.99 * 0.01 / 1000) ** 0.5))
    assert 0.005 < found.p_holm < 0.02 and found.outcome == "supported"


def test_what_is_lost_from_two_digits_to_more_is_told_seed_by_seed() -> None:
    lost = forms.Drop(
        id="T.l",
        says="",
        source="",
        decided_by="drop",
        task=TASK,
        split="addition_5digit",
        row="kl",
        at_least=0.15,
        home_at_least=0.5,
    )
    group = row("kl", 0.9, luck=0.01)
    far = np.repeat(np.random.default_rng(1).random((1, 400)) < 0.4, 5, axis=0)
    answers = tuple({"shift_addition_5digit": [SimpleNamespace(correct=bool(x)) for x in seed]} for seed in far)
    found = one(lost, replace(group, answers=cast(Any, answers)))
    assert found.outcome == "supported" and found.evidence
    assert found.evidence.effect == pytest.approx(group.hits.mean() - far.mean())
    assert (
        found.evidence.interval.high - found.evidence.interval.low > 2 * 1.96 * (0.6 * 0.4 / 400) ** 0.5
    )  # of problems, too
    poor = one(lost, replace(row("kl", 0.3), answers=cast(Any, answers)))
    assert poor.outcome == "not tested here" and "there is little to lose" in poor.why
    kept = lost.model_copy(update={"at_least": None, "at_most": 0.15})
    assert one(kept, replace(group, answers=cast(Any, answers))).outcome == "refuted"
    assert "not evaluated on" in one(lost, group).why


def test_points_of_a_sweep_are_compared_by_name() -> None:
    low, high = {"training.lr": 1e-4}, {"training.lr": 2e-4}
    claim = difference("cka_cd", "kl", 0.0).model_copy(update={"low": "cka_cd", "high_at": low, "low_at": high})
    rows = row("cka_cd", 0.9, point=low), replace(row("cka_cd", 0.5, point=high))
    assert one(claim, *rows).outcome == "supported"
    least = forms.AtPoint(
        id="T.p", says="", source="", decided_by="at_point", task=TASK, row="cka_cd", at=low, at_least=0.8
    )
    assert one(least, *rows).outcome == "supported"
    assert one(least.model_copy(update={"at": high}), *rows).outcome == "refuted"
    assert (
        "no row cka_cd on addition_2digit at training.lr = 0.5"
        in one(least.model_copy(update={"at": {"training.lr": 0.5}}), *rows).why
    )


def test_a_number_is_known_by_its_path_in_a_record() -> None:
    for name in ("circuit.edges.faithfulness.cpr", "masks.student.binary", "perplexity.test", "accuracy.value",
                 "parameters_changed", "circuit.edges.faithfulness.smallest_faithful"):  # fmt: skip
        assert forms.is_number(name), name
    for name in ("circuit.edges.faithfulnes.cpr", "circuit", "accuracy", "first_prompt", "masks", ""):
        assert not forms.is_number(name), name


def read_changed(change: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of the ledger after a change."""
    text = (forms.reports_folder() / "claims.toml").read_text()
    assert change(text) != text
    (folder / "claims.toml").write_text(change(text))
    monkeypatch.setattr(forms, "reports_folder", lambda: folder)
    with pytest.raises(UserError) as caught:
        read_ledger()
    assert str(folder / "claims.toml") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('id = "A.cka-over-kl"', 'id = "A.cka-over-base"', "two claims are called A.cka-over-base"),
        ("\n[[claim]]\n", "\n[[claim\n", "cannot be read"),
        ('metric = "masks.student.sparsity"', 'metric = "masks.student.sparse"',
         "claim A.masks-sparse, metric: a record has no number 'masks.student.sparse'"),
        ('law = "invertible_map"', 'law = "invertible_maps"', "claim A.cka-invariant, law: there is no 'invertible_maps'"),
        ('control = "circuit.random_ablated_share"', 'control = "circuit.random_ablated"',
         "claim B.circuit-needed, control: a record has no number 'circuit.random_ablated'"),
        ('marks = "circuit.interchange.marks"', 'marks = "circuit.interchange.mark"',
         "claim C.component-interventions, marks: a record has no text 'circuit.interchange.mark'"),
        ("paper = 0.516\n", "paper = 51.6\n", "table1 number 2, paper = 51.6: "),
        ('method = "base"\npaper', 'method = "teacher"\npaper', "table1 has two rows of addition_2digit / teacher"),
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_an_error_that_names_file_and_key(
    old: str, new: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in read_changed(lambda text: text.replace(old, new, 1), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("claim", "old", "new", "words"),
    [
        ("A.cka-over-kl", "margin = ", "margn = ", "unknown key 'claim A.cka-over-kl, margn'"),
        ("A.cka-over-kl", 'decided_by = "difference"', 'decided_by = "taste"', "claim A.cka-over-kl: Input tag 'taste'"),
        ("A.cka-over-kl", 'low = "kl"\n', "", "key 'claim A.cka-over-kl, low' is missing"),
        ("A.cka-over-kl", 'low = "kl"', 'low = "cka_cd"', "claim A.cka-over-kl: high and low are both cka_cd"),
        ("A.cka-over-kl", "margin = ", "margin = -", "claim A.cka-over-kl, margin = -0.02: "),
        ("A.cka-equals-teacher", 'other = "teacher"', 'other = "cka_cd"', "A.cka-equals-teacher: one and other are both cka_cd"),
        ("A.masks-near-prior", "at_most = 0.15", "at_most = 0.01", "A.masks-near-prior: nothing lies between at_least"),
        ("A.masks-near-prior", "at_most = 0.15", "at_most = 15", "claim A.masks-near-prior, at_most = 15: "),
        ("A.masks-near-prior", "at_least = 0.05\nat_most = 0.15", "", "claim A.masks-near-prior: at_least, at_most or both"),
        ("B.circuit-needed", 'control = "circuit.random_ablated_share"\n', "", "B.circuit-needed: control and control_at_least"),
        ("B.maintained3", 'split = "addition_3digit"', 'split = "test"', "B.maintained3: split must name a length-shift set"),
        ("A.cka-invariant", "law_says = false", 'law_says = "no"', "claim A.cka-invariant, law_says = 'no': "),
        ("B.circuit-sparse", "at_most", 'split = "test"\nat_most', "unknown key 'claim B.circuit-sparse, split'"),
    ],
)  # fmt: skip
def test_a_claim_that_says_nothing_or_something_else_than_it_seems_is_named_by_its_id(
    claim: str, old: str, new: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(text: str) -> str:
        before, marker, after = text.partition(f'id = "{claim}"\n')
        return before + marker + after.replace(old, new, 1)

    assert words in read_changed(change, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["missing", "a folder", "not text"])
def test_a_ledger_that_is_no_file_of_text_is_a_users_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claims.toml"
    if kind == "a folder":
        path.mkdir()
    if kind == "not text":
        path.write_bytes(b"\xff\xfe")
    monkeypatch.setattr(forms, "reports_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"claims\.toml cannot be read"):
        read_ledger()


def test_the_ledgers_schema_is_closed() -> None:
    assert Ledger.model_config["extra"] == "forbid"


def judged(method: str, by_seed: Mapping[int, object]) -> Group:
    """A row of runs with this judgement of their circuits each, by seed."""
    made = [
        SimpleNamespace(
            run_id=f"{method}{seed}",
            spec=SimpleNamespace(seed=seed),
            params={},
            metrics=SimpleNamespace(circuit=judgement),
            extras={},
        )
        for seed, judgement in by_seed.items()
    ]
    return Group(method, method, TASK, {}, cast(Any, tuple(made)), (), np.zeros((len(made), 2)), ())


def numbered(method: str, values: Mapping[int, float | str]) -> Group:
    """A row whose runs each have one value of the evaluator, by seed."""
    return judged(
        method, {seed: SimpleNamespace(faithfulness=SimpleNamespace(cpr=value)) for seed, value in values.items()}
    )


def measure(metric: str, at_least: float) -> forms.Metric:
    return forms.Metric(
        id="T.c", says="", source="", decided_by="metric", task=TASK, row="atp_cd", metric=f"circuit.{metric}",
        at_least=at_least,
    )  # fmt: skip


def more(margin: float = 0.0) -> forms.MetricDifference:
    return forms.MetricDifference(
        id="T.m", says="", source="", decided_by="metric_difference", task=TASK, high="atp_cd", low="kl",
        metric="circuit.faithfulness.cpr", margin=margin,
    )  # fmt: skip


def test_a_number_of_the_evaluator_is_compared_seed_by_seed() -> None:
    """0.2 more on each seed, whose own level differs by far more than that: pairing sees it. Seed 9 has no partner."""
    low = numbered("kl", {0: 0.1, 1: 0.5, 2: 0.9})
    high = numbered("atp_cd", {0: 0.31, 1: 0.7, 2: 1.09, 9: 0.0})
    found = one(more(), high, low)
    assert found.outcome == "supported" and found.evidence
    assert found.evidence.effect == pytest.approx(0.2, abs=1e-9)
    assert found.evidence.seeds == 3
    assert {"atp_cd0", "kl2"} <= set(found.evidence.run_ids)
    assert one(more(margin=0.3), high, low).outcome == "refuted"
    lone = one(more(), numbered("atp_cd", {0: 0.9}), low)
    assert lone.outcome == "inconclusive" and "one seed only" in lone.why
    assert one(more(), numbered("atp_cd", {7: 0.9}), low).outcome == "not tested here"


def marked(high: dict[int, str], low: dict[int, str]) -> Verdict:
    claim = more().model_copy(update={"marks": "circuit.faithfulness.cpr"})
    return one(claim, numbered("atp_cd", high), numbered("kl", low))


def test_shares_of_other_problems_are_compared_on_the_common_ones() -> None:
    """By hand: 3 of 4 against 2 of 3 is more; on the two pairs that both are asked, the first and the fourth, 1 against 2."""
    found = marked(dict.fromkeys(range(3), "1-101"), dict.fromkeys(range(3), "10-1-"))
    assert found.evidence and found.evidence.effect == pytest.approx(-0.5)
    assert "on the 2 pairs of problems that both rows solve on every seed" in found.why
    more_seeds = marked({0: "110", 1: "111", 2: "-11"}, {0: "010", 1: "0-1", 3: "111"})
    assert more_seeds.evidence and more_seeds.evidence.seeds == 2
    # The second pair is left out by kl's seed 1.
    assert more_seeds.evidence.effect == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_seeds_that_share_their_problems_are_no_samples_of_their_own() -> None:
    """Ten problems of which atp_cd solves five and kl two others, alike on all seeds: by seeds alone 0.3 more without spread."""
    high, low = "1111100000", "0000011000"
    alike = marked(dict.fromkeys(range(5), high), dict.fromkeys(range(5), low))
    assert alike.outcome == "inconclusive" and alike.evidence
    assert alike.evidence.interval.low < 0 < alike.evidence.effect < alike.evidence.interval.high
    many = marked(dict.fromkeys(range(5), high * 20), dict.fromkeys(range(5), low * 20))
    assert many.outcome == "supported"


def test_rows_without_a_common_problem_are_not_compared() -> None:
    for high, low in (("1-", "-1"), ("", "11"), ("--", "11")):
        found = marked({0: high, 1: high}, {0: low, 1: low})
        assert (
            found.outcome == "not tested here"
            and "have no 2 pairs of problems that both solve on every seed" in found.why
        )
    other = marked({0: "11"}, {0: "111"})
    assert other.outcome == "not tested here" and "were asked 2 and 3 pairs" in other.why


def even(importance: dict[str, float], heads: int = 4) -> Verdict:
    from test_judge import heads_with

    group = judged("teacher", {0: heads_with(importance, heads)})
    claim = forms.EvenHeads(id="T.e", says="", source="", decided_by="even_heads", task=TASK, row="teacher")
    return one(claim, group)


def test_even_heads_are_decided_by_shuffling_heads() -> None:
    planted = even({f"a{i}.h{j}": 1.0 for i in (2, 3) for j in (0, 2, 4, 6)}, heads=8)
    assert (
        planted.outcome == "supported" and planted.evidence and planted.evidence.effect == pytest.approx(0.5, abs=0.01)
    )
    assert "one model of 32 heads" in planted.why
    odd = even({f"a{i}.h{j}": 1.0 for i in (2, 3) for j in (1, 3, 5, 7)}, heads=8)
    assert odd.outcome == "refuted"
    # All importance in the later layers, whatever the number of the head: late, not even.
    for layers in ((2, 3), range(4)):
        even_by_chance = even({f"a{i}.h{j}": 1.0 + 0.1 * (j // 2) for i in layers for j in range(8)}, heads=8)
        assert even_by_chance.outcome == "inconclusive"
    # Four heads a layer, two late layers: 36 arrangements.
    few = even({f"a{i}.h{j}": 1.0 for i in (2, 3) for j in (0, 2)})
    assert (
        few.outcome == "not tested here"
        and "16 heads of teacher are too few: no arrangement has a p below 0.056" in few.why
    )
    assert even({"m0": 1.0}).outcome == "not tested here"


def test_a_claim_about_what_the_teacher_cannot_do_is_not_tested() -> None:
    claim = difference("atp_cd", "kl").model_copy(update={"teacher_at_least": 0.1})
    rows = row("atp_cd", 0.9), row("kl", 0.5)
    assert one(claim, *rows, row("teacher", 0.9)).outcome == "supported"
    floor = one(claim, *rows, row("teacher", 0.0))
    assert floor.outcome == "not tested here" and "there is nothing to transfer" in floor.why
    kept = difference("atp_cd", "kl").model_copy(update={"base_at_least": 0.1})
    assert one(kept, *rows, row("base", 0.5)).outcome == "supported"
    blank = one(kept, *rows, row("base", 0.0))
    assert blank.outcome == "not tested here" and "there: there is nothing to forget" in blank.why
    assert one(claim, *rows).outcome == "not tested here"


@pytest.mark.parametrize("last", [[20.0, 19.0], [19.0, 20.0]])
def test_trends_are_decided_by_their_signs_however_perfect_they_are(last: list[float]) -> None:
    """Three correlations of exactly 1, or just below: Student's t would decide the latter and not the former."""
    claim = forms.Trend(id="T.t", says="", source="", decided_by="trend", task=TASK, row="kl", series="loss/kl", sign=1)
    group = row("kl", 0.9, seeds=3)
    logged = [{"step": float(i), "loss/kl": v} for i, v in enumerate([*map(float, range(1, 19)), *last], 1)]
    vars(group)["histories"] = [
        logged,
        logged,
        [*logged[:-2], *[{**r_, "loss/kl": 30.0 + r_["step"]} for r_ in logged[-2:]]],
    ]
    found = one(claim, group)
    assert found.outcome == "inconclusive" and found.p_holm == pytest.approx(0.25)


def test_a_trend_throughout_the_training_must_show_in_each_part_of_it() -> None:
    """A loss that falls for two thirds and rises again falls on the whole, and not throughout."""
    claim = forms.Trend(
        id="T.t", says="", source="", decided_by="trend", task=TASK, row="kl", series="loss/kl", sign=-1, parts=3
    )
    group = row("kl", 0.9, seeds=12)

    def judged_with(values: list[float]) -> Verdict:
        vars(group)["histories"] = [[{"step": float(i), "loss/kl": v} for i, v in enumerate(values, 1)]] * 12
        return one(claim, group)

    falls = [300.0 - i for i in range(300)]
    throughout = judged_with(falls)
    assert throughout.outcome == "supported" and throughout.evidence and throughout.evidence.effect == pytest.approx(-1)
    turns = judged_with([*falls[:200], *falls[100:200][::-1]])
    assert turns.outcome == "refuted" and turns.evidence and turns.evidence.effect == pytest.approx(1)
    assert "of 3 parts of the training the weakest" in turns.why
    whole = one(claim.model_copy(update={"parts": 1}), group)
    assert whole.outcome == "supported" and whole.evidence and whole.evidence.effect < -0.5
    stays = judged_with([*falls[:200], *[101.0] * 100])  # what does not move in the end does not fall there
    assert (
        stays.outcome == "inconclusive" and stays.evidence and stays.evidence.effect == 0 and stays.evidence.seeds == 12
    )
    vars(group)["histories"] = [[{"step": float(i), "loss/kl": v} for i, v in enumerate(falls, 1)]] * 11 + [[]]
    assert "1 of 12 runs logged too little of it" in one(claim, group).why
    # In a part of which nothing was logged nothing can be said.
    assert judged_with(falls[:2]).outcome == "not tested here"


def test_how_much_an_alignment_term_can_do_is_told_beside_what_it_did() -> None:
    """By hand: 0.01 of gradients of 3 and 1 beside whole ones of 2 and 4: 0.015 and 0.0025, in the mean 0.9 %."""
    group = row("atp_cd", 0.9, seeds=3)
    for record in group.records:
        record.params["alignment_weight"] = 0.01
    logged = [{"grad/cka": 3.0, "grad/total": 2.0}, {"grad/total": 9.0}, {"grad/cka": 1.0, "grad/total": 4.0}]
    vars(group)["histories"] = [logged] * 3
    assert group.alignment_share == pytest.approx(0.00875)
    assert row("kl", 0.6).alignment_share is None
    found = one(difference("atp_cd", "kl"), group, row("kl", 0.6, seeds=3))
    assert "the alignment term is 0.9 % of the gradient of atp_cd" in found.why and "of kl" not in found.why


def test_rows_that_train_other_parts_of_the_student_are_told() -> None:
    def part(method: str, accuracy: float, changed: int) -> Group:
        group = row(method, accuracy)
        for record in group.records:
            cast(Any, record).metrics = SimpleNamespace(parameters_changed=changed, parameters=100)
        return group

    told = one(difference("atp_cd", "kl"), part("atp_cd", 0.9, 85), part("kl", 0.6, 100))
    assert "atp_cd changes 85.0 % of the parameters, kl 100.0 %" in told.why
    assert (
        "of the parameters" not in one(difference("atp_cd", "kl"), part("atp_cd", 0.9, 100), part("kl", 0.6, 100)).why
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.51, 1.0])
def test_a_control_that_is_mostly_the_circuit_itself_is_none(share: float) -> None:
    other = row("kl", 0.6)
    cast(Any, other.records[-1]).extras["part_of_circuit"] = share
    found = one(difference("atp_cd", "kl"), row("atp_cd", 0.9), other)
    if share > 0.5:
        assert found.outcome == "not tested here"
        assert f"{share * 100:.1f} % of the part of the model that kl takes instead of the circuit" in found.why
    else:
        assert found.outcome == "supported"
        assert ("of the part that kl takes is the circuit's, too" in found.why) == (share > 0)


def test_being_as_good_as_what_has_not_learned_the_task_says_nothing() -> None:
    claim = forms.Equivalence(
        id="T.e", says="", source="", decided_by="equivalence", task=TASK, one="atp_cd", other="cot", margin=0.02,
        other_at_least=0.5,
    )  # fmt: skip
    found = one(claim, row("atp_cd", 0.8), row("cot", 0.2))
    assert found.outcome == "not tested here" and "cot has" in found.why
    assert one(claim, row("atp_cd", 0.9), row("cot", 0.6)).outcome == "refuted"


def test_rows_below_the_margin_are_not_compared() -> None:
    claim = difference("atp_cd", "kl").model_copy(update={"margin": 0.05})
    assert "solves 5.0 %" in one(claim, row("atp_cd", 0.03), row("kl", 0.02)).why
    assert one(claim, row("atp_cd", 0.5), row("kl", 0.02)).outcome == "supported"


def test_a_metric_says_nothing_where_its_control_is_at_the_floor() -> None:
    claim = forms.Metric(
        id="T.m", says="", source="", decided_by="metric", task=TASK, row="atp_cd", metric="circuit.needed_beyond_chance",
        at_least=0.1, control="circuit.random_ablated_share", control_at_least=0.5,
    )  # fmt: skip

    with pytest.raises(ValueError, match=r"needed_beyond_chance is at most its control: .* above at_least \(0.1\)"):
        forms.Metric.model_validate(claim.model_dump() | {"control_at_least": 0.1})

    def found(left_by_others: float) -> Verdict:
        group = row("atp_cd", 0.9)
        for i, record in enumerate(group.records):
            circuit = SimpleNamespace(random_ablated_share=left_by_others, needed_beyond_chance=0.4 + 0.01 * i)
            cast(Any, record).metrics = SimpleNamespace(circuit=circuit)
        return one(claim, group)

    assert "at the floor" in found(0.01).why and found(0.01).outcome == "not tested here"
    assert found(0.8).outcome == "supported"


def test_claims_are_counted_by_whose_they_are() -> None:
    mathematics = forms.Mathematics(id="A.m", says="", source="", decided_by="law", law="symmetry", law_says=True)
    nothing = forms.Undecidable(id="C.x", says="", source="", decided_by="nothing", why="no")
    apart = counts_apart(
        judge([mathematics, nothing, difference("atp_cd", "kl")], study(row("atp_cd", 0.9), row("kl", 0.5)))
    )
    assert {whose: some["supported"] for whose, some in apart.items()} == {"mathematics": 1, "T": 1}


def judged_alike(rng: np.random.Generator, seeds: int, n: int) -> Group:
    """Circuits of a model that solves everything: each problem has a difficulty of its own, the same for all seeds."""
    easy = rng.beta(2, 1, n)
    alone = [wilson(int((rng.random(n) < easy).sum()), n) for _ in range(seeds)]
    return judged("atp_cd", {i: SimpleNamespace(accuracy=each, alone_share=each.value) for i, each in enumerate(alone)})


def test_an_interval_of_what_all_runs_were_judged_on_knows_that_there_are_other_problems() -> None:
    """By simulation: of difficulties with mean 2/3 the truth must be held as often as is said; seeds alone hold it less often."""
    rng = np.random.default_rng(0)
    held, by_seeds, wider = 0, 0, 0
    for _ in range(400):
        group = judged_alike(rng, 3, 200)
        found = one(measure("alone_share", 0.9), group).evidence
        assert found
        held += found.interval.low <= 2 / 3 <= found.interval.high
        alone = seed_interval(group.values("circuit.alone_share"))
        assert alone and found.interval.high - found.interval.low >= alone.high - alone.low - 1e-12
        wider += found.interval.high - found.interval.low > (1 + 1e-9) * (alone.high - alone.low)
        by_seeds += alone.low <= 2 / 3 <= alone.high
    assert held >= 0.94 * 400 > by_seeds
    assert wider > 0.8 * 400  # the rest are as wide: where the seeds' part is nearly all, it reaches as far by itself


@pytest.mark.parametrize(
    ("accuracy", "ablated", "name", "rates", "share"),
    [
        (100, 20, "alone_share", [101 / 202], 1.0),
        (50, 0, "ablated_share", [1 / 202], 0.0),
        (50, 0, "needed_beyond_chance", [1 / 202, 51 / 202], -0.5),
        (0, 50, "ablated_share", [51 / 202], 0.5),
        (50, 50, "one_by_one.share", [31 / 202], 0.3),
        (0, 0, "one_by_one.needed_beyond_chance", [31 / 202, 41 / 202], -0.1),
    ],
)
def test_the_variance_of_shares_by_hand(
    accuracy: int, ablated: int, name: str, rates: list[float], share: float
) -> None:
    """Of a model that solves 100 of 200. (own − random) / whole: each accuracy p has p (1 − p) / n with two problems more, the
    whole's counts share² times."""
    judgement = SimpleNamespace(
        accuracy=wilson(accuracy, 200), alone_share=accuracy / 100, ablated=wilson(ablated, 200),
        ablated_share=ablated / 100, random_ablated_share=0.5, needed_beyond_chance=0.5 - ablated / 100,
        one_by_one=SimpleNamespace(
            whole=wilson(100, 200), accuracy=wilson(30, 200), share=0.3, others_share=0.4, needed_beyond_chance=0.1
        ),
    )  # fmt: skip
    found = spread_of([0.0, 0.0, 0.0], [judged("atp_cd", dict.fromkeys(range(3), judgement))], f"circuit.{name}")
    whole = 101 / 202
    expected = (sum(p * (1 - p) for p in rates) + share**2 * whole * (1 - whole)) / 200 / 0.5**2
    assert found and found.of_problems == pytest.approx(expected) and found.of_seeds == 0


def test_the_variance_of_an_accuracy_inside_a_circuit_by_hand() -> None:
    """30 of 40 pairs: p (1 − p) / n with two pairs more, one of them solved; where a run has one pair alone nothing is told."""
    pairs = SimpleNamespace(interchange=SimpleNamespace(accuracy=wilson(30, 40)))
    group = judged("atp_cd", dict.fromkeys(range(3), pairs))
    found = spread_of([0.75, 0.75, 0.75], [group], "circuit.interchange.accuracy.value")
    assert found and found.problems == 40
    assert found.of_problems == pytest.approx(31 / 42 * (11 / 42) / 40)
    lone = SimpleNamespace(interchange=SimpleNamespace(accuracy=wilson(1, 1)))
    mixed = judged("atp_cd", {0: pairs, 1: lone})
    assert spread_of([0.75, 1.0], [mixed], "circuit.interchange.accuracy.value") is None


def test_a_number_that_one_run_of_three_has_says_so_and_has_its_records_interval() -> None:
    having = SimpleNamespace(interchange=SimpleNamespace(accuracy=wilson(0, 2)))
    without = SimpleNamespace(interchange=None)
    found = measured(judged("cka_only", {0: without, 1: having, 2: without}), "circuit.interchange.accuracy.value")
    assert found and found.mean == 0 and found.of == "1 of 3 runs"
    assert found.interval == pytest.approx((0, 0.6576), abs=1e-3)  # Wilson's of 0 in 2
    assert over_seeds(found, percent) == "0.0 % [0.0 %, 65.8 %] (1 of 3 runs)"
    area = SimpleNamespace(faithfulness=SimpleNamespace(cpr=0.5, cpr_95=[0.3, 0.7], problems=200, on_noise=False))
    alone = measured(judged("teacher", {0: area}), "circuit.faithfulness.cpr")
    assert alone and (alone.interval, alone.of) == ((0.3, 0.7), "")


def test_nothing_is_shown_of_faithfulness_where_f_divides_by_chance() -> None:
    by_chance = SimpleNamespace(faithfulness=SimpleNamespace(cpr=0.5, cpr_95=[-4, 5], problems=200, on_noise=True))
    assert measured(judged("cot", dict.fromkeys(range(3), by_chance)), "circuit.faithfulness.cpr") is None


def test_no_interval_of_a_claim_leaves_what_is_possible() -> None:
    """Rank correlations 0.2, 0.9 and 0.99: Student's interval of their mean ends above 1."""
    found = {i: SimpleNamespace(exact=SimpleNamespace(spearman=value)) for i, value in enumerate((0.2, 0.9, 0.99))}
    evidence = one(measure("exact.spearman", 0.5), judged("atp_cd", found)).evidence
    assert evidence and evidence.interval.high == 1 and -1 < evidence.interval.low < 0.2
    sizes = {
        i: SimpleNamespace(faithfulness=SimpleNamespace(smallest_faithful=s)) for i, s in enumerate((0.01, 0.02, 0.5))
    }
    evidence = one(measure("faithfulness.smallest_faithful", 0.1), judged("atp_cd", sizes)).evidence
    assert evidence and evidence.interval.low == 0


@pytest.mark.parametrize(
    ("f", "smallest"),
    [
        ([0.1, 0.95, 1.05, 1.0], 0.2),
        ([0.95, 0.2, 0.95, 1.0], 0.5),  # the first was luck
        ([0.1, 1.9, 0.91, 1.0], 0.5),  # as far from the model as one that does worse
        ([0.1, 0.2, 0.3, 1.0], 1.0),
        ([0.0, 0.0, math.nan, 1.0], 1.0),
        ([1.0, 1.0, 1.0, 1.0], 0.1),
    ],
)
def test_the_smallest_faithful_size_is_that_from_which_on_all_are(f: list[float], smallest: float) -> None:
    made = Faithfulness(
        items=[1, 2, 5, 10], f=f, f_absolute=f, cpr=0, cpr_95=[], cmd=0, cmd_95=[], metric_whole=1, metric_empty=0
    )
    assert made.smallest_faithful == smallest
    assert made.model_copy(update={"on_noise": True}).smallest_faithful is None


def test_the_band_of_a_curve_by_hand() -> None:
    """Two seeds at 0.4 and 0.6, each ± 0.2 over 100 problems: Student's t of 1 and of 99 degrees, each for its part."""

    def curve(f: float) -> Faithfulness:
        return Faithfulness(
            items=[1], f=[f], f_absolute=[f], f_95=[(f - 0.2, f + 0.2)], cpr=f, cpr_95=[f, f], cmd=f, cmd_95=[f, f],
            metric_whole=1.0, metric_empty=0.0, problems=100,
        )  # fmt: skip

    (low,), (high,) = _band([curve(0.4), curve(0.6)])
    half = math.sqrt(12.7062**2 * 0.02 / 2 + 1.98422**2 * (0.2 / 1.95996) ** 2)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    assert _band([curve(0.4)]) == ([pytest.approx(0.2)], [pytest.approx(0.6)])


def test_runs_that_all_say_one_are_not_certain() -> None:
    """200 of 200 on three seeds: other problems could have said 199."""
    all_of_them = SimpleNamespace(accuracy=wilson(200, 200), alone_share=1.0)
    found = one(measure("alone_share", 0.995), judged("atp_cd", dict.fromkeys(range(3), all_of_them)))
    assert found.outcome == "inconclusive" and found.evidence and found.evidence.interval.low < 0.995 < 1


def test_an_area_brings_its_own_interval_over_problems() -> None:
    """By hand: three runs alike, [0.3, 0.7] each; Student's 95 % with 199 degrees is half a hundredth more than the normal's."""

    def area(value: float, low: float, high: float) -> Group:
        found = SimpleNamespace(faithfulness=SimpleNamespace(cpr=value, cpr_95=[low, high], problems=200))
        return judged("atp_cd", dict.fromkeys(range(3), found))

    found = one(measure("faithfulness.cpr", 0.2), area(0.5, 0.3, 0.7))
    assert found.evidence and found.outcome == "supported" and "over seeds and problems" in found.why
    assert found.evidence.interval.low == pytest.approx(0.5 - 0.2 * 1.97196 / 1.95996, abs=1e-4)
    assert one(measure("faithfulness.cpr", 0.2), area(0.25, 0.05, 0.45)).outcome == "inconclusive"


def test_a_difference_between_rankings_is_of_as_many_problems_as_the_areas() -> None:
    """95 % over problems of ± 0.1, two runs that agree: the problems' part alone, and of 200 of them."""
    rival = SimpleNamespace(cpr_difference=0.2, cpr_difference_95=[0.1, 0.3])
    area = SimpleNamespace(faithfulness=SimpleNamespace(magnitude=rival, problems=200, on_noise=False))
    name = "faithfulness.magnitude.cpr_difference"
    found = spread_of([0.2, 0.2], [judged("atp_cd", {0: area, 1: area})], f"circuit.{name}")
    assert found and found.problems == 200 and found.of_problems == pytest.approx((0.1 / Z95) ** 2)
    claim = measure(name, 0.0).model_copy(update={"unit": "number"})
    assert one(claim, judged("atp_cd", dict.fromkeys(range(3), area))).outcome == "supported"
    worse = SimpleNamespace(cpr_difference=-0.2, cpr_difference_95=[-0.3, -0.1])
    below = SimpleNamespace(faithfulness=SimpleNamespace(magnitude=worse, problems=200, on_noise=False))
    assert one(claim, judged("atp_cd", dict.fromkeys(range(3), below))).outcome == "refuted"
    by_chance = SimpleNamespace(faithfulness=SimpleNamespace(magnitude=rival, problems=200, on_noise=True))
    noisy = one(claim, judged("atp_cd", {0: area, 1: area, 2: by_chance}))
    assert noisy.outcome == "not tested here" and "f divides by chance" in noisy.why


def test_a_node_without_a_hit_where_it_was_chosen_is_none() -> None:
    def chosen(node: str, hits: int | None) -> Any:
        return SimpleNamespace(node=node, chosen=None if hits is None else wilson(hits, 40))

    assert _nodes([chosen("m1", 3), None, chosen("input", 0), chosen("m1", 1)]) == "m1, none"
    assert _nodes([chosen("m1", None)]) == "m1"  # a record from before it was kept


def test_of_several_tasks_each_ones_circuits_are_told_of_once() -> None:
    support = PairingSupport(correlations=[0.5], kept=[1.0], held_out=0.2, others=0.14, p=0.03)

    def of(task: str, found_on: int, support: PairingSupport | None) -> dict[str, Any]:
        row = {"name": "kl", "task": task, "found_on": found_on, "left_out": 0, "support": support}
        return row | {"kept": [], "on_noise": 0}

    none = cast(Any, SimpleNamespace(groups=[]))
    rows = [of("sums", 900, None), of("sums", 900, support), of("sums", 900, support), of("differences", 700, support)]
    one = circuit_notes(none, rows[:3])
    assert [each.split(" are ")[0] for each in one[:1]] == ["Circuits"] and len(one) == 2
    assert one[1].startswith("The functional pairs")
    told = circuit_notes(none, rows)
    assert [each.split(" training")[0] for each in told[::2]] == [
        "sums: circuits are found on 900", "differences: circuits are found on 700",
    ]  # fmt: skip
    assert told[1] == f"sums: t{one[1][1:]}" and told[3] == f"differences: t{one[1][1:]}" and len(told) == 4


def test_what_is_said_of_a_pairing_is_what_the_record_has() -> None:
    found = PairingSupport(correlations=[0.5, 0.1, 0.3], kept=[0.25, 1.0, 0.4], held_out=0.2, others=0.14, p=0.0312)
    said = _of_pairing(found)
    assert "before training (3)" in said and "correlate with 0.30 on average" in said and "comes back in 55 %" in said
    assert "with 0.20 on the other half" in said and "with 0.14 (p = 0.031 " in said
