"""Runs the laws on an implementation, shrinks what breaks to the smallest counterexample, and says what usually causes it."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Literal

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky
from torch import Tensor

from cdbench.errors import UserError
from cdbench.similarity.conformance.broken import Broken
from cdbench.similarity.conformance.cases import Case, tolerance
from cdbench.similarity.conformance.causes import Cause
from cdbench.similarity.conformance.laws import F32, F64, HALF_BOUND, LAWS, Law
from cdbench.similarity.conformance.libraries import LIBRARIES, Library
from cdbench.similarity.conformance.reference import WRONG_FORMS, textbook
from cdbench.similarity.conformance.subject import Subject

Verdict = Literal["held", "broken", "not tested"]
_NO_CASE = Case(n=5, dx=2, dy=2)
_PROBES = (
    Case(n=12, dx=5, dy=7, seed=1, mix=1.0, offset=1.0),
    Case(n=9, dx=20, dy=30, seed=2, offset=1.0),
    Case(n=30, dx=3, dy=4, seed=3, mix=0.3, offset=1.0),
    Case(n=30, dx=40, dy=6, seed=4, offset=1.0),
    Case(n=21, dx=30, dy=40, seed=6),
)
"""Of either shape, and with debiased values of either sign."""


@dataclass(frozen=True)
class Finding:
    """What became of one law.

    Attributes:
        law: its name; "agrees with NAME" for a reference library.
        statement: what should hold.
        estimator: biased or debiased.
        dtype: in which it was tested.
        verdict: held, broken or not tested.
        seen: what broke it, or why it was not tested.
        counterexample: the smallest input found that breaks it.
        causes: what usually causes this, the likeliest first.
        exact: whether the law itself tells the cause.
    """

    law: str
    statement: str
    estimator: str
    dtype: str
    verdict: Verdict
    seen: str = ""
    counterexample: str = ""
    causes: tuple[Cause, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with one estimator.

    Attributes:
        estimator: biased or debiased.
        causes: the likeliest first.
        recognised: its values are those of a known mistake.
    """

    estimator: str
    causes: tuple[Cause, ...]
    recognised: bool


@dataclass(frozen=True)
class Report:
    """The findings on one implementation.

    Attributes:
        subject: its name.
        findings: of every law asked for.
        diagnoses: of each estimator that breaks a law.
    """

    subject: str
    findings: tuple[Finding, ...]
    diagnoses: tuple[Diagnosis, ...]

    def count(self, verdict: Verdict) -> int:
        """Findings of a verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    @property
    def holds(self) -> bool:
        """Nothing is broken and something was tested."""
        return self.count("broken") == 0 and self.count("held") > 0


@dataclass(frozen=True)
class Asked:
    """What is to be tested.

    Attributes:
        laws: which; the reference libraries are asked when it is all of them.
        examples: drawn for each law, estimator and type.
        dtype: float32 or float64 when the implementation is meant for that alone.
        skip: laws that are left out, and counted as not tested.
    """

    laws: tuple[Law, ...] = LAWS
    examples: int = 25
    dtype: str = ""
    skip: tuple[str, ...] = ()


def chosen(only: Sequence[str], skip: Sequence[str], examples: int = 25, dtype: str = "") -> Asked:
    """What the names ask for.

    Raises:
        UserError: an unknown name, or no law left.
    """
    names = [law.name for law in LAWS]
    for name in (*only, *skip):
        if name not in names:
            raise UserError(f"no law is called '{name}'; there are {', '.join(names)}")
    laws = tuple(law for law in LAWS if not only or law.name in only)
    if all(law.name in skip for law in laws):
        raise UserError("--only and --skip leave no law to test")
    return Asked(laws, examples, dtype, tuple(skip))


def examine(subject: Subject, asked: Asked, tell: Callable[[Finding], None]) -> Report:
    """Tests an implementation.

    Args:
        subject: what to test.
        asked: the laws, and how.
        tell: called with each finding as it is made.
    """
    findings = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an implementation's warnings would drown what the laws say of it
        for finding in _findings(subject, asked):
            tell(finding)
            findings.append(finding)
        diagnoses = [
            _diagnose(subject, debiased, findings, asked.dtype == "float32") for debiased in subject.estimators
        ]
    return Report(subject.name, tuple(findings), tuple(each for each in diagnoses if each.causes))


def _diagnose(subject: Subject, debiased: bool, findings: Sequence[Finding], only_single: bool) -> Diagnosis:
    name = _estimator(debiased)
    broken = [finding for finding in findings if finding.verdict == "broken" and finding.estimator == name]
    recognised = recognise(subject, debiased, F32 if only_single else F64) if broken else []
    streamed = [finding for finding in broken if finding.law == "many_batches" and finding.exact]
    if streamed:  # batches of ten tell more of a stream than the uneven ones that the other laws feed
        recognised = list(streamed[0].causes)
    causes = recognised or _ranked(broken)
    if (
        not recognised
        and any(finding.law == "large_mean" for finding in broken)
        and _right_in_double(subject, debiased)
    ):
        causes = [Cause.SONG_UNCENTRED, *causes]  # the formula is right, digits are lost
    return Diagnosis(name, tuple(dict.fromkeys(causes)), bool(recognised))


_SPOTS = (
    "determinism", "batch_boundaries", "many_batches", "gradient", "finite_differences", "half_gradient", "independent",
)  # fmt: skip
"""Where these know the cause, it comes before what others suggest."""
_TELLING = (
    *_SPOTS,
    "small_activations", "power_of_two", "scaling", "many_samples", "either_route", "large_mean", "wide_half", "extremes",
    "autocast", "half_precision", "refusals", "translation",
)  # fmt: skip
"""Which broken law tells most about the cause, where the values are those of no known mistake. A value that is wrong breaks
most laws; these point at one spot."""


_AGAINST_THE_DEFINITION = ("large_mean", "far_sample", "wide_half", "extremes", "autocast", "half_precision")
"""These compare with the definition: a value that is wrong anyway breaks them, and then they tell nothing."""


def _ranked(broken: Sequence[Finding]) -> list[Cause]:
    names = {finding.law for finding in broken}
    wrong = any(finding.law == "definition" and finding.dtype == "float64" for finding in broken)
    if wrong and "small_activations" not in names and "power_of_two" not in names:
        broken = [finding for finding in broken if finding.law not in _AGAINST_THE_DEFINITION]
    if "orthogonal_map" in names:  # which leaves the shape: it is no matter of the route
        broken = [finding for finding in broken if finding.law != "either_route"]
    exact = [finding for finding in broken if finding.exact and finding.law in _SPOTS]
    rest = sorted(
        (finding for finding in broken if finding not in exact),
        key=lambda f: _TELLING.index(f.law) if f.law in _TELLING else len(_TELLING),
    )
    if "definition" in names:  # a wrong value has a wrong gradient: nothing follows from that
        rest = [f for f in rest if f.law not in ("gradient", "finite_differences", "half_gradient")]
    causes = [cause for finding in exact for cause in finding.causes]
    return causes + [cause for finding in rest for cause in finding.causes]


def _findings(subject: Subject, asked: Asked) -> Iterator[Finding]:
    for law in asked.laws:
        for debiased in law.estimators:
            for dtype in law.dtypes:
                reason = "left out by --skip" if law.name in asked.skip else _why_not(law, subject, debiased)
                reason = reason or _why_not_in(dtype, asked.dtype)
                if reason:
                    yield _finding(law, debiased, dtype, "not tested", reason)
                else:
                    yield _test(law, subject, debiased, dtype, asked.examples)
    if asked.laws == LAWS and asked.dtype != "float32":
        for library in LIBRARIES:
            for debiased in library.estimators:
                yield _compare(library, subject, debiased)


def _why_not(law: Law, subject: Subject, debiased: bool) -> str:
    if subject.kind not in law.kinds:
        return f"not for a {subject.kind}"
    if debiased not in subject.estimators:
        return _no_claim(debiased)
    if law.gradient and not subject.gradient:
        return "it is not meant to be differentiated"
    if law.torch_only and subject.arrays != "torch":
        return "needs torch tensors"
    return ""


def _why_not_in(dtype: torch.dtype, only: str) -> str:
    other = {"float32": F64, "float64": torch.float32}.get(only)
    return f"said to be for {only} alone" if dtype is other else ""


def _test(law: Law, subject: Subject, debiased: bool, dtype: torch.dtype, examples: int) -> Finding:
    last: list[tuple[Case, Broken]] = []

    def check(case: Case) -> None:
        try:
            law.check(subject, case, debiased, dtype)
        except Broken as broken:
            last.append((case, broken))
            raise

    try:
        if law.drawn is None:
            check(_NO_CASE)
        else:
            # Hypothesis runs the smallest failing case last, so that is what `last` ends with.
            run: Any = settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                report_multiple_bugs=False,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )(given(law.drawn)(check))
            run()
    except (Broken, Flaky):
        case, broken = last[-1]
        text = case.text() if law.drawn is not None else ""
        finding = _finding(law, debiased, dtype, "broken", broken.seen)
        causes = broken.causes or law.causes
        if broken.failed and law.name not in (*_AGAINST_THE_DEFINITION, "small_activations", "refusals"):
            causes = (Cause.FAILS,)  # on ordinary input; it says nothing of what the law is about
        return replace(finding, counterexample=text, causes=causes, exact=bool(broken.causes))
    return _finding(law, debiased, dtype, "held")


def _finding(law: Law, debiased: bool, dtype: torch.dtype, verdict: Verdict, seen: str = "") -> Finding:
    name = str(dtype).removeprefix("torch.")
    return Finding(law.name, law.statement, _estimator(debiased), name, verdict, seen)


def _estimator(debiased: bool) -> str:
    return "debiased" if debiased else "biased"


def _compare(library: Library, subject: Subject, debiased: bool) -> Finding:
    statement = "agrees with a library that we did not write"
    finding = Finding(f"agrees with {library.name}", statement, _estimator(debiased), "float64", "held")
    if not library.installed:
        return replace(finding, verdict="not tested", seen=f"pip install {library.name}")
    if debiased not in subject.estimators:
        return replace(finding, verdict="not tested", seen=_no_claim(debiased))
    for case in _PROBES:
        x, y = case.tensors(F64)
        try:
            expected = library.value(x, y, debiased)
        except Exception as error:  # theirs, not the implementation's
            reason = f"{library.name} {metadata.version(library.name)} raised {type(error).__name__}: {error}"
            return replace(finding, verdict="not tested", seen=reason)
        if expected <= 0 and not library.negative:
            continue
        broken = replace(finding, verdict="broken", counterexample=case.text())
        try:
            value = subject.value(x, y, debiased)
        except Broken as error:
            return replace(broken, seen=error.seen, causes=error.causes)
        if abs(value - expected) > 1e-9:
            return replace(broken, seen=f"value {value:.12g}, {library.name} has {expected:.12g}")
    return finding


def _no_claim(debiased: bool) -> str:
    return f"the implementation does not claim to be {_estimator(debiased)}"


def recognise(subject: Subject, debiased: bool, dtype: torch.dtype = F64) -> list[Cause]:
    """The known mistakes whose values an implementation returns on every probe; empty where its values are right.

    `dtype`: float32 for what is meant for that alone.
    """
    inputs = [case.tensors(F64) for case in _PROBES]
    bounds = [tolerance(x, y, debiased, torch.float32) for x, y in inputs]
    right = [float(textbook(x, y, debiased)) for x, y in inputs]
    seen = [_value_or_nan(subject, x, y, debiased, dtype) for x, y in inputs]
    if all(math.isnan(value) for value in seen):
        return [Cause.NO_NUMBER]
    if all(abs(a - b) <= c for a, b, c in zip(seen, right, bounds, strict=True)):
        narrowed = [_value_or_nan(subject, x, y, debiased, F32) for x, y in inputs]
        exact = all(abs(a - b) <= 1e-12 for a, b in zip(seen, right, strict=True))
        return [Cause.NARROWED] if dtype is F64 and seen == narrowed and not exact else []
    found = [
        cause
        for cause, form, estimators in WRONG_FORMS
        if debiased in estimators and _same(seen, [form(x, y, debiased) for x, y in inputs], bounds)
    ]
    if not found and all(abs(a - b) <= HALF_BOUND for a, b in zip(seen, right, strict=True)):
        scaled = [_value_or_nan(subject, x * 2.0**-12, y * 2.0**-12, debiased, dtype) for x, y in inputs]
        # Near, and as near at any scale: not an eps. And it moves in jumps: digits, not a wrong formula.
        if scaled == seen and not _moves_as_it_should(subject, debiased, dtype, seen, right):
            found.append(Cause.HALF_PRECISION)
    return found


def _moves_as_it_should(
    subject: Subject, debiased: bool, dtype: torch.dtype, seen: Sequence[float], right: Sequence[float]
) -> bool:
    """Whether a small change of the features changes the values as much as it changes the definition's."""
    step = 1e-4 if dtype is F64 else 1e-3
    for case, before, known in zip(_PROBES, seen, right, strict=True):
        (x, y), draw = case.tensors(F64), case.generator()
        x = x * (1 + step * torch.from_numpy(draw.standard_normal(x.shape)))
        moved = _value_or_nan(subject, x, y, debiased, dtype) - before
        expected = float(textbook(x, y, debiased)) - known
        if not abs(moved - expected) <= 0.2 * abs(expected):
            return False
    return True


def _right_in_double(subject: Subject, debiased: bool) -> bool:
    inputs = [case.tensors(F64) for case in _PROBES]
    return all(abs(_value_or_nan(subject, x, y, debiased) - float(textbook(x, y, debiased))) <= 1e-9 for x, y in inputs)


def _same(seen: Sequence[float], wrong: Sequence[float], bounds: Sequence[float]) -> bool:
    """Whether two series agree, NaN for NaN, with two numbers at least."""
    pairs = list(zip(seen, wrong, bounds, strict=True))
    finite = [math.isfinite(a) and math.isfinite(b) for a, b, _ in pairs]
    agree = [
        abs(a - b) <= c if ok else math.isfinite(a) == math.isfinite(b)
        for (a, b, c), ok in zip(pairs, finite, strict=True)
    ]
    return sum(finite) >= 2 and all(agree)


def _value_or_nan(subject: Subject, x: Tensor, y: Tensor, debiased: bool, dtype: torch.dtype = F64) -> float:
    try:
        return subject.value(x.to(dtype), y.to(dtype), debiased)
    except Broken:
        return math.nan
