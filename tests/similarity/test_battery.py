"""The conformance battery holds for ours, refuses every mutant, and names what is wrong with it."""

import math
import re

import numpy as np
import pytest
import torch
from mutants import MUTANTS, Mutant

from cdbench.errors import UserError
from cdbench.similarity import linear_cka
from cdbench.similarity.conformance.battery import Asked, Report, chosen, examine
from cdbench.similarity.conformance.causes import Cause
from cdbench.similarity.conformance.libraries import LIBRARIES
from cdbench.similarity.conformance.reference import WRONG_FORMS, textbook
from cdbench.similarity.conformance.subject import Stream, Subject, load, ours, streaming
from cdbench.similarity.counterexample import stretched


def silent(finding: object) -> None:
    pass


@pytest.mark.parametrize("subject", ours(), ids=lambda s: s.name.split(":")[1])
def test_ours_obeys_every_law_and_agrees_with_every_library(subject: Subject) -> None:
    report = examine(subject, Asked(examples=25), silent)
    assert [f for f in report.findings if f.verdict == "broken"] == []
    assert report.holds and report.diagnoses == ()
    skipped = {f.law for f in report.findings if f.verdict == "not tested"}
    # All four libraries are installed here.
    assert skipped <= {"batch_boundaries", "many_batches", "gradient", "finite_differences", "half_gradient"}
    assert {f"agrees with {library.name}" for library in LIBRARIES} <= {f.law for f in report.findings}


def as_subject(mutant: Mutant) -> Subject:
    if mutant.kind == "stream":
        return streaming(mutant.name, Stream(mutant.call), (mutant.debiased,))
    return Subject(mutant.name, lambda x, y, debiased: mutant.call(x, y), (mutant.debiased,))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_every_mutant_is_refused_and_its_cause_named_first(mutant: Mutant) -> None:
    report = examine(as_subject(mutant), Asked(examples=6), silent)
    assert report.count("broken") > 0
    (diagnosis,) = report.diagnoses
    assert diagnosis.causes[0] is mutant.cause, [cause.name for cause in diagnosis.causes]
    assert all(f.causes and f.seen for f in report.findings if f.verdict == "broken" and not f.law.startswith("agrees"))


def test_there_are_more_than_twenty_mutants_and_every_cause_has_one() -> None:
    assert len(MUTANTS) >= 20
    assert {mutant.cause for mutant in MUTANTS} | {Cause.GRADIENT} == set(Cause)


def test_a_wrong_backward_pass_is_told_by_its_gradient() -> None:
    def doubled(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> torch.Tensor:
        value = linear_cka(x, y)
        return 2 * value - value.detach()

    report = examine(Subject("doubled", doubled, (False,)), Asked(examples=10), silent)
    assert {f.law for f in report.findings if f.verdict == "broken"} == {
        "gradient",
        "half_gradient",
        "finite_differences",
    }
    assert report.diagnoses[0].causes[0] is Cause.GRADIENT


def test_the_known_wrong_forms_are_wrong_and_differ_from_one_another() -> None:
    draw = np.random.default_rng(0)
    x = torch.from_numpy(draw.normal(1.0, 1, (11, 4)) @ draw.normal(0, 1, (4, 5)))
    y = torch.from_numpy(draw.normal(0.5, 1, (11, 9))) + torch.nn.functional.pad(x, (0, 4))
    for debiased in (False, True):
        values = [form(x, y, debiased) for _, form, estimators in WRONG_FORMS if debiased in estimators]
        right = float(textbook(x, y, debiased))
        clamped = [max(0.0, min(1.0, right))] if debiased else []
        for value in values:
            assert not abs(value - right) < 1e-6 or value in clamped
        finite = [round(value, 9) for value in values if math.isfinite(value)]
        assert len(set(finite)) == len(finite)


def test_the_smallest_counterexample_is_small_and_reproduces() -> None:
    report = examine(as_subject(MUTANTS[0]), chosen(["translation"], [], 25), silent)
    finding = next(f for f in report.findings if f.verdict == "broken")
    assert finding.counterexample.startswith("n=5, d1=1")
    numbers: dict[str, list[list[float]]] = {}
    exec(finding.counterexample.split(": ", 1)[1].replace(", y = ", "\ny = "), numbers)
    x, y = (torch.tensor(numbers[k], dtype=torch.float64) for k in "xy")
    move, seen, expected = re.fullmatch(
        r"CKA\(x \+ (.*), y\) against CKA\(x, y\): (.*), expected (.*) within .*", finding.seen
    ).groups()
    assert float(MUTANTS[0].call(x + torch.tensor(eval(move), dtype=torch.float64), y)) == pytest.approx(float(seen))
    assert float(MUTANTS[0].call(x, y)) == pytest.approx(float(expected))


def numpy_cka(x: np.ndarray, y: np.ndarray) -> float:
    def prepared(value: np.ndarray) -> np.ndarray:
        value = value.astype(np.float64)
        if value.ndim != 2 or len(value) < 3 or value.size == 0 or not np.isfinite(value).all():
            raise ValueError("no CKA")
        value = value / 2.0 ** np.frexp(np.abs(value).max())[1]
        centred = value - value.mean(0)
        if np.abs(centred).max() < 1e-12:
            raise ValueError("constant")
        return centred

    if len(x) != len(y):
        raise ValueError("rows")
    x, y = prepared(x), prepared(y)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_a_right_implementation_in_numpy_passes_and_what_it_cannot_be_asked_is_counted() -> None:
    call = lambda x, y, debiased: numpy_cka(x.numpy(), y.numpy())  # noqa: E731
    report = examine(Subject("numpy", call, (False,), arrays="numpy"), Asked(examples=15), silent)
    assert [f"{f.law}: {f.seen}" for f in report.findings if f.verdict == "broken"] == []
    reasons = {f.law: f.seen for f in report.findings if f.verdict == "not tested" and f.estimator == "biased"}
    assert reasons["gradient"] == "needs torch tensors"
    assert reasons["half_precision"] == "needs torch tensors"


def test_what_is_meant_for_float32_alone_passes_when_that_is_said() -> None:
    def call(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> torch.Tensor:
        if x.dtype == torch.float64 or y.dtype == torch.float64:
            raise TypeError("float32 only")
        return linear_cka(x, y)

    subject = Subject("single", call, (False,))
    report = examine(subject, Asked(examples=10, dtype="float32"), silent)
    assert [f"{f.law}: {f.seen}" for f in report.findings if f.verdict == "broken"] == []
    assert "said to be for float32 alone" in {f.seen for f in report.findings if f.verdict == "not tested"}
    assert examine(subject, chosen(["symmetry"], [], 10), silent).diagnoses[0].causes == (Cause.NO_NUMBER,)


def test_an_implementation_that_exits_is_broken_not_done() -> None:
    def leaves(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> float:
        raise SystemExit(0)

    report = examine(Subject("leaves", leaves, (False,)), chosen(["symmetry", "refusals"], [], 5), silent)
    seen = [f.seen for f in report.findings if f.verdict == "broken"]
    assert len(seen) == 4 and all("SystemExit" in text for text in seen)


def test_two_runs_of_the_battery_agree() -> None:
    def run() -> Report:
        return examine(as_subject(MUTANTS[2]), chosen(["symmetry", "definition"], [], 10), silent)

    assert run() == run()


def test_the_counterexample_to_invariance_under_invertible_maps_has_its_closed_form() -> None:
    value, expected = stretched(lambda x, y: linear_cka(x, y).item())
    assert value == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.203111, abs=1e-6)


@pytest.mark.parametrize(
    ("place", "estimator", "complaint"),
    [
        ("mypkg", "auto", "write package.module:function"),
        ("no.such.module:f", "auto", "cannot import it"),
        ("math:nothing", "auto", "cannot import it"),
        ("math:pi", "auto", "is of type float"),
        ("decimal:Decimal", "auto", "needs update"),
        ("math:hypot", "both", "parameter named 'debiased'"),
        ("fractions:gcd", "auto", "cannot import it"),
        ("os.path:basename", "auto", r"cannot be called as \(x, y\)"),
    ],
)
def test_an_implementation_that_cannot_be_used_is_named(place: str, estimator: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load(place, estimator, "torch", True)


def test_auto_takes_both_estimators_when_there_is_a_switch() -> None:
    assert load("cdbench.similarity:linear_cka", "auto", "torch", True).estimators == (False, True)
    assert load("math:hypot", "auto", "torch", True).estimators == (False,)
