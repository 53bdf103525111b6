"""The laws of linear CKA, each a check that raises `Broken` with what was seen.

A law that compares needs only the implementation itself; `definition`, `golden`, `gradient` compare with `reference`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from cdbench.similarity.conformance.broken import Broken, told
from cdbench.similarity.conformance.cases import Case, cases, orthogonal, tolerance
from cdbench.similarity.conformance.causes import Cause
from cdbench.similarity.conformance.reference import textbook
from cdbench.similarity.conformance.subject import Subject, batches, number_of
from cdbench.similarity.counterexample import stretched

F32, F64 = torch.float32, torch.float64
HALF_BOUND = 0.01
"""Largest error on float16 and bfloat16 input, which may return its value in the same type (eps 2^-8)."""
Check = Callable[[Subject, Case, bool, torch.dtype], None]


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        name: for --only and --skip.
        statement: what holds.
        check: raises `Broken`.
        causes: what usually breaks it, the likeliest first.
        estimators: for which it holds.
        dtypes: in which it is tested.
        drawn: the cases; None for a law that brings its own input.
        kinds: functions, streams or both.
        torch_only: about gradients, half precision or autocast.
        gradient: about gradients.
    """

    name: str
    statement: str
    check: Check = field(repr=False)
    causes: tuple[Cause, ...] = ()
    estimators: tuple[bool, ...] = (False, True)
    dtypes: tuple[torch.dtype, ...] = (F64, F32)
    drawn: st.SearchStrategy[Case] | None = field(default=None, repr=False)
    kinds: tuple[str, ...] = ("function", "stream")
    torch_only: bool = False
    gradient: bool = False


def _same(seen: float, expected: float, bound: float, what: str) -> None:
    if not abs(seen - expected) <= bound:
        raise Broken(f"{what}: {seen:.12g}, expected {expected:.12g} within {bound:.1e}")


def _as_defined(subject: Subject, x: Tensor, y: Tensor, debiased: bool, bound: float, what: str = "value") -> None:
    _same(subject.value(x, y, debiased), float(textbook(x, y, debiased)), bound, what)


def definition(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    _as_defined(subject, x, y, debiased, tolerance(x, y, debiased, dtype))


def symmetry(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    one, two = subject.value(x, y, debiased), subject.value(y, x, debiased)
    _same(two, one, tolerance(x, y, debiased, dtype), "CKA(y, x) against CKA(x, y)")


def self_similarity(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, _ = case.tensors(dtype)
    _same(subject.value(x, x.clone(), debiased), 1.0, tolerance(x, x, debiased, dtype), "CKA(x, x)")


def value_range(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    value, bound = subject.value(x, y, debiased), tolerance(x, y, debiased, dtype)
    low = -1.0 if debiased else 0.0
    if not low - bound <= value <= 1 + bound:
        raise Broken(f"value {value:.9g} outside [{low:g}, 1]")


Move = Callable[[Tensor], Tensor]


def _unchanged(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype, move: Move, text: str) -> None:
    x, y = case.tensors(dtype)
    moved = move(x.double()).to(dtype)
    bound = tolerance(x, y, debiased, dtype) + tolerance(moved, y, debiased, dtype)
    _same(subject.value(moved, y, debiased), subject.value(x, y, debiased), bound, f"CKA({text}, y) against CKA(x, y)")
    _same(subject.value(y, moved, debiased), subject.value(y, x, debiased), bound, f"CKA(y, {text}) against CKA(y, x)")


def _few(values: Tensor) -> str:
    """The numbers where they are few; else the shape."""
    return str(values.tolist()) if values.numel() <= 12 else f"{list(values.shape)} drawn for this case"


def orthogonal_map(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    rotation = orthogonal(case.generator(), case.dx, case.dx)
    _unchanged(subject, case, debiased, dtype, lambda x: x @ rotation, f"x Q, Q = {_few(rotation)}")


def isotropic_scaling(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    factor = -(10 ** case.generator().uniform(-3, 3))
    _unchanged(subject, case, debiased, dtype, lambda x: x * factor, f"{factor:.6g} x")


def translation(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    shift = torch.from_numpy(case.generator().normal(0, 3, case.dx))
    _unchanged(subject, case, debiased, dtype, lambda x: x + shift, f"x + {_few(shift)}")


def feature_permutation(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    order = torch.from_numpy(case.generator().permutation(case.dx))
    _unchanged(subject, case, debiased, dtype, lambda x: x[:, order], f"x[:, {_few(order)}]")


def zero_padding(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    _unchanged(subject, case, debiased, dtype, lambda x: torch.cat([x, x.new_zeros(len(x), 5)], 1), "[x, 0]")


def either_route(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """The same samples in a space wider than n: Gram and feature form must agree (Kornblith et al. 2019, eq. 4)."""
    turned = orthogonal(case.generator(), case.dx, case.dx + case.n)
    _unchanged(subject, case, debiased, dtype, lambda x: x @ turned, f"x Q, Q = {_few(turned)} of orthonormal rows")


def sample_permutation(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    order = torch.from_numpy(case.generator().permutation(case.n))
    value = subject.value(x[order], y[order], debiased)
    _same(value, subject.value(x, y, debiased), tolerance(x, y, debiased, dtype), f"samples in the order {_few(order)}")


def power_of_two(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    a, b = (2.0 ** int(k) for k in case.generator().integers(-12, 13, 2))
    before, after = subject.value(x, y, debiased), subject.value(x * a, y * -b, debiased)
    if before != after:
        # An eps is nothing beside ordinary features, and all beside tiny ones.
        tiny = 2.0 ** (-60 if dtype == F64 else -28)
        moved = abs(_quiet(subject, x * tiny, y * tiny, debiased) - before)
        cause = Cause.ROUNDED if moved <= tolerance(x, y, debiased, dtype) else Cause.EPSILON
        raise Broken(f"x · {a:g}, y · {-b:g} changes bits: {before!r} to {after!r}", cause)


def extremes(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    expected, bound = float(textbook(x, y, debiased)), tolerance(x, y, debiased, dtype)
    reach = 100 if dtype == F32 else 900
    for power in (-reach, reach):
        try:
            value = subject.value(x * 2.0**power, y * 2.0**power, debiased)
            _same(value, expected, bound, "value")
        except Broken as broken:
            tiny_only = power < 0 and abs(_quiet(subject, x * 2.0**reach, y * 2.0**reach, debiased) - expected) <= bound
            seen = f"x · 2^{power}, y · 2^{power}: {broken.seen}"
            raise Broken(seen, Cause.EPSILON if tiny_only else Cause.OVERFLOW) from broken


def small_activations(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """Activations of 10⁻³ and below are common; an eps of 1e-8 is large beside their fourth power."""
    x, y = case.tensors(dtype)
    value = subject.value(x * 2.0**-12, y * 2.0**-12, debiased)
    _same(value, subject.value(x, y, debiased), tolerance(x, y, debiased, dtype), "x · 2^-12, y · 2^-12")


def _quiet(subject: Subject, x: Tensor, y: Tensor, debiased: bool) -> float:
    try:
        return subject.value(x, y, debiased)
    except Broken:
        return math.nan


def large_mean(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """Last-token activations of language models have means of several standard deviations.

    4 eps times the offset, which centring first keeps with room to spare; centring the Gram matrix costs its square.
    """
    x, y = case.tensors(dtype)
    _as_defined(subject, x, y, debiased, tolerance(x, y, debiased, dtype) / 16)


def far_sample(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    x[2], y[2] = x[2] * 128, y[2] * 128
    bound = tolerance(x, y, debiased, dtype)
    _same(
        subject.value(x, y, debiased), float(textbook(x, y, debiased)), bound, "value with sample 2 of both times 128"
    )


def invertible_map(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    value, expected = stretched(lambda x, y: subject.value(x.to(dtype), y.to(dtype), debiased))
    _same(value, expected, 1e-4, "CKA(X, XA) for an invertible A of condition number 10, d = 64")


def independent(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """Unrelated Gaussian features at the paper's batch and a wide layer: n = 32, d = 2048."""
    n, d, rounds = 32, 2048, 6
    draw = np.random.default_rng(7)
    pairs = [[torch.from_numpy(draw.standard_normal((n, d))).to(dtype) for _ in "xy"] for _ in range(rounds)]
    mean = sum(subject.value(x, y, debiased) for x, y in pairs) / rounds
    if not debiased:
        _same(mean, d / (n + d), 0.01, "mean over independent features, n = 32, d = 2048")
        return
    bound = 6 * math.sqrt(2 / (n * (n - 3))) / math.sqrt(rounds)
    if abs(mean) > bound:
        cause = (Cause.BIASED,) if mean > 0.9 else ()
        raise Broken(
            f"mean over independent features is {mean:.3f}, expected 0 within {bound:.3f} (n = 32, d = 2048)", *cause
        )


def golden(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    for entry in golden_values():
        x, y = (torch.tensor(entry[k], dtype=dtype) for k in "xy")
        expected = entry["debiased" if debiased else "biased"]
        value = subject.value(x, y, debiased)
        _same(value, expected, tolerance(x, y, debiased, dtype), f"golden value '{entry['name']}'")


@cache
def golden_values() -> list[dict[str, Any]]:
    """Pairs with their exact values; the file says how they were computed."""
    values: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden.json").read_text())["values"]
    return values


def many_samples(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """As many as papers use, the last third unlike the first two: whoever cuts, or goes another way for many, is seen."""
    x, y = _many(120 if subject.kind == "stream" else 1000, dtype)
    expected, other, bound = _known_of_many(len(x), debiased, dtype)
    value = subject.value(x, y, debiased)
    if abs(value - expected) <= bound:
        return
    biased = debiased and abs(value - other) <= bound
    raise Broken(
        f"value {value:.9g} of {len(x)} samples, expected {expected:.9g} within {bound:.1e}",
        Cause.BIASED if biased else Cause.SUBSET,
    )


def _many(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(5)
    x, y = (torch.from_numpy(draw.standard_normal((n, d))) for d in (12, 9))
    y[2 * n // 3 :, :9] += 2 * x[2 * n // 3 :, :9]
    return x.to(dtype), y.to(dtype)


@cache
def _known_of_many(n: int, debiased: bool, dtype: torch.dtype) -> tuple[float, float, float]:
    """The value, the other estimator's, and the tolerance: with Gram matrices of this size the definition takes a second."""
    x, y = _many(n, dtype)
    return float(textbook(x, y, debiased)), float(textbook(x, y, not debiased)), tolerance(x, y, debiased, dtype)


def wide(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """4,096 and 3,000 features, as teacher and student have; what they share is in the last ones."""
    draw = np.random.default_rng(9)
    x, y = (torch.from_numpy(draw.standard_normal((24, d))) for d in (4096, 3000))
    y[:, -900:] += 3 * x[:, -900:]
    x, y = x.to(dtype), y.to(dtype)
    _as_defined(subject, x, y, debiased, tolerance(x, y, debiased, dtype), "n = 24, d = 4096 and 3000")


_PLAIN = Case(n=12, dx=5, dy=7, seed=1, mix=1.0)
"""An ordinary one, for laws about types."""
_REFUSED = object()


def _unless_refused(subject: Subject, x: Tensor, y: Tensor, debiased: bool, what: str) -> object:
    """What it returns, or `_REFUSED` where it raises, as it may here.

    Raises:
        Broken: it ends the whole program.
    """
    try:
        return subject.call(x, y, debiased)
    except Exception:
        return _REFUSED
    except SystemExit as exits:
        seen = f"{what}: the implementation ends the whole program (SystemExit {exits.code})"
        raise Broken(seen, failed=True) from exits


def mixed_types(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """A student in bfloat16 beside a teacher in float32. Refusing that is no wrong number."""
    what = "x in bfloat16, y in float32"
    x, y = _PLAIN.tensors(F64)
    x, y = x.to(torch.bfloat16), y.to(F32)
    result = _unless_refused(subject, x, y, debiased, what)
    if result is _REFUSED:
        return
    number = number_of(result)
    if number is None:
        raise Broken(f"{what}: returned {told(result, repr)}, expected one number or an error", failed=True)
    _same(number, float(textbook(x, y, debiased)), HALF_BOUND, what)


def half_precision(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    _as_defined(subject, x, y, debiased, HALF_BOUND)


def wide_half(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """A layer of ordinary width and size: its Gram entries exceed float16's 65,504."""
    draw = np.random.default_rng(3)
    x = torch.from_numpy(draw.standard_normal((16, 2048)) * 8).to(dtype)
    y = x + torch.from_numpy(draw.standard_normal((16, 2048)) * 4).to(dtype)
    _as_defined(subject, x, y, debiased, HALF_BOUND, "n = 16, d = 2048, entries of size 8")


def autocast(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    expected = float(textbook(x, y, debiased))
    with torch.autocast("cpu", torch.bfloat16):
        value = subject.value(x, y, debiased)
    _same(value, expected, 16 * tolerance(x, y, debiased, dtype), "under autocast to bfloat16")


def gradient(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    found = subject.gradients(x, y, debiased)
    a, b = (value.double().clone().requires_grad_() for value in (x, y))
    value = textbook(a, b, debiased)
    expected = torch.autograd.grad(value, (a, b))
    for name, seen, right, given in zip("xy", found, expected, (x, y), strict=True):
        largest = float(right.abs().max())
        # What rounding leaves of the value, a gradient has too, at the scale of value / size.
        bound = 16 * tolerance(x, y, debiased, dtype) * max(largest, 1 / float(given.norm()))
        if seen is None or (largest > bound and not bool(seen.any())):
            clamped = debiased and value < 0
            raise Broken(
                f"no gradient reaches {name} (value {float(value):.3g})", Cause.CLAMP if clamped else Cause.DETACHED
            )
        worst = float((seen.double() - right).abs().max())
        if not worst <= bound:
            raise Broken(f"gradient of {name} is off by {worst:.2e} (largest entry {largest:.2e}, bound {bound:.1e})")


def half_gradient(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """Within a twentieth of the largest entry: the type has two or three digits."""
    x, y = _PLAIN.tensors(dtype)
    found = subject.gradients(x, y, debiased)
    a, b = (value.double().requires_grad_() for value in (x, y))
    expected = torch.autograd.grad(textbook(a, b, debiased), (a, b))
    for name, seen, right in zip("xy", found, expected, strict=True):
        if seen is None or not bool(seen.any()):
            raise Broken(f"no gradient reaches {name}", Cause.DETACHED)
        worst, largest = float((seen.double() - right).abs().max()), float(right.abs().max())
        if not worst <= 0.05 * largest:
            raise Broken(f"gradient of {name} is off by {worst:.2e} (largest entry {largest:.2e})")


def finite_differences(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    found = subject.gradients(x, y, debiased)
    draw, h = case.generator(), 1e-5
    for which, name in enumerate("xy"):
        inputs = [x, y]
        direction = torch.from_numpy(draw.standard_normal(inputs[which].shape))
        ends = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[which] = inputs[which] + sign * h * direction
            ends.append(subject.value(moved[0], moved[1], debiased))
        slope, got = (ends[0] - ends[1]) / (2 * h), found[which]
        along = 0.0 if got is None else float((got * direction).sum())
        bound = 1e-5 + 1e-4 * abs(slope) + tolerance(inputs[0], inputs[1], debiased, dtype) / h
        if abs(slope) > 100 * bound and along == 0:
            raise Broken(f"no gradient reaches {name}, finite differences have {slope:.3g}", Cause.DETACHED)
        _same(along, slope, bound, f"gradient of {name} along a direction, against finite differences")


def determinism(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    x, y = case.tensors(dtype)
    first = subject.value(x, y, debiased)
    given = x.clone(), y.clone()
    subject.result(*given, debiased)
    if not (torch.equal(x, given[0]) and torch.equal(y, given[1])):
        raise Broken("the call changed its input", Cause.IN_PLACE)
    second = subject.value(x, y, debiased)
    if first != second:
        raise Broken(f"two calls on the same input: {first!r} and {second!r}", Cause.RANDOM)


def batch_boundaries(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """All samples against the last batch and against the mean over batches: whose value is it?"""
    x, y = case.tensors(dtype)
    value, bound = subject.value(x, y, debiased), tolerance(x, y, debiased, dtype)
    expected = float(textbook(x, y, debiased))
    if abs(value - expected) <= bound:
        return
    parts = [float(textbook(x[rows], y[rows], debiased)) for rows in batches(case.n) if rows.stop - rows.start >= 4]
    causes: tuple[Cause, ...] = ()
    if abs(value - parts[-1]) <= bound:
        causes = (Cause.LAST_BATCH,)
    elif abs(value - sum(parts) / len(parts)) <= bound:
        causes = (Cause.MEAN_OF_BATCHES,)
    raise Broken(f"value {value:.9g} from batches, {expected:.9g} from all samples", *causes)


def many_batches(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """Twelve batches of ten, looked at after six and twice at the end."""
    x, y = _many(120, dtype)
    parts = [slice(i, i + 10) for i in range(0, 120, 10)]
    middle, end, again = subject.fed(x, y, debiased, parts)
    expected, _, bound = _known_of_many(len(x), debiased, dtype)
    half = float(textbook(x[:60], y[:60], debiased))
    if abs(end - expected) > bound:
        means = [float(textbook(x[rows], y[rows], debiased)) for rows in parts]
        last = [float(textbook(x[-10 * k :], y[-10 * k :], debiased)) for k in range(1, 12)]
        causes: tuple[Cause, ...] = ()
        if abs(end - last[5]) <= bound and abs(middle - half) <= bound:
            causes = (Cause.CONSUMED, Cause.LAST_BATCH)  # what came after the look, or a window of just that many
        elif any(abs(end - value) <= bound for value in last):
            causes = (Cause.LAST_BATCH,)
        elif abs(end - sum(means) / len(means)) <= bound:
            causes = (Cause.MEAN_OF_BATCHES,)
        raise Broken(f"value {end:.9g} from twelve batches, {expected:.9g} from all samples", *causes)
    if end != again:
        raise Broken(f"compute() twice: {end!r} and {again!r}", Cause.CONSUMED)
    _same(middle, half, tolerance(x[:60], y[:60], debiased, dtype), "value after six of twelve batches")


def _bad_inputs(debiased: bool) -> list[tuple[str, Tensor, Tensor, tuple[Cause, ...]]]:
    draw = np.random.default_rng(11)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(draw.standard_normal(shape))

    least = 3 if debiased else 2
    broken = normal(6, 3)
    holed, endless = broken.clone(), broken.clone()
    holed[2, 1], endless[2, 1] = math.nan, math.inf
    inputs = [
        (
            f"n = {least}, which has no {'debiased' if debiased else 'biased'} CKA",
            normal(least, 3),
            normal(least, 2),
            (),
        ),
        ("a constant representation", torch.full((6, 3), 0.1, dtype=F64), normal(6, 2), ()),
        ("a constant representation far from zero", normal(6, 2), torch.full((6, 3), 1e6 + 0.1, dtype=F64), ()),
        ("NaN", holed, normal(6, 2), ()),
        ("infinity", normal(6, 2), endless, ()),
        ("different numbers of samples", normal(6, 3), normal(7, 2), (Cause.PAIRING,)),
        ("[prompts, positions, features]", normal(6, 4, 3), normal(6, 4, 2), (Cause.ROWS,)),
        ("a vector", normal(6), normal(6), ()),
        ("no features", normal(6, 0), normal(6, 2), ()),
        ("no samples", normal(0, 3), normal(0, 2), ()),
        ("integers", torch.arange(18).view(6, 3), normal(6, 2), ()),
    ]
    if debiased:
        inputs.append(
            ("samples that are all equally far apart (an identity matrix)", torch.eye(6, dtype=F64), normal(6, 2), ())
        )
    return inputs


def refusals(subject: Subject, case: Case, debiased: bool, dtype: torch.dtype) -> None:
    """Never a number, never NaN. Integers may be refused or widened, as long as nothing is lost."""
    for what, x, y, causes in _bad_inputs(debiased):
        x, y = (value.to(dtype) if value.is_floating_point() else value for value in (x, y))
        if subject.kind == "stream" and what.startswith("different"):
            continue  # a batch is cut from both sides alike
        result = _unless_refused(subject, x, y, debiased, what)
        if result is _REFUSED:
            continue
        if what == "integers" and _right(result, x, y, debiased):
            continue
        raise Broken(f"{what}: returned {told(result, repr)}, expected an error", *causes, Cause.SILENT)


def _right(result: object, x: Tensor, y: Tensor, debiased: bool) -> bool:
    try:
        number = number_of(result)
    except Broken:
        return False
    return number is not None and abs(number - float(textbook(x.double(), y, debiased))) < 1e-5


_STRUCTURE = cases()
_CENTRING = (Cause.NOT_CENTRED, Cause.HALF_CENTRED, Cause.CENTRING_MATRIX)
LAWS: tuple[Law, ...] = (
    Law("definition", "equals the definition in float64, n < d and n > d", definition, (Cause.NORMALISATION,), drawn=_STRUCTURE),
    Law("golden", "equals the golden values", golden, (Cause.NORMALISATION,)),
    Law("symmetry", "CKA(x, y) = CKA(y, x)", symmetry, (Cause.HALF_CENTRED, Cause.PAIRING), drawn=_STRUCTURE),
    Law("self_similarity", "CKA(x, x) = 1", self_similarity, (Cause.NORMALISATION, Cause.EPSILON), drawn=_STRUCTURE),
    Law("range", "biased in [0, 1]; debiased at most 1, negative allowed", value_range, (Cause.POWER,), drawn=_STRUCTURE),
    Law("orthogonal_map", "an orthogonal map changes nothing", orthogonal_map, (Cause.STANDARDISED,), drawn=_STRUCTURE),
    Law("scaling", "isotropic scaling changes nothing", isotropic_scaling, (Cause.EPSILON,), drawn=_STRUCTURE),
    Law("translation", "adding a constant vector changes nothing", translation, _CENTRING, drawn=_STRUCTURE),
    Law("feature_permutation", "permuting features changes nothing", feature_permutation, (Cause.TRUNCATED,), drawn=_STRUCTURE),
    Law("sample_permutation", "permuting the samples of both changes nothing", sample_permutation, (Cause.PAIRING, Cause.ROWS), drawn=_STRUCTURE),  # noqa: E501
    Law("zero_padding", "features that are zero change nothing", zero_padding, (Cause.WRONG_AXIS, Cause.STANDARDISED), drawn=_STRUCTURE),  # noqa: E501
    Law("either_route", "Gram form and feature form agree: the same samples in a wider space", either_route, (Cause.ROUTE,), drawn=_STRUCTURE),  # noqa: E501
    Law("invertible_map", "a general invertible map changes it (closed form)", invertible_map, (Cause.WHITENED,), estimators=(False,)),  # noqa: E501
    Law("independent", "unrelated features, n = 32, d = 2048: biased 0.98, debiased 0 in mean", independent, (Cause.NORMALISATION,)),  # noqa: E501
    Law("many_samples", "many samples (1,000; of a stream 120) are all used", many_samples, (Cause.SUBSET,)),
    Law("wide", "4,096 and 3,000 features are all used", wide, (Cause.TRUNCATED,)),
    Law("power_of_two", "scaling by 2^k changes no bit", power_of_two, (Cause.EPSILON,), drawn=_STRUCTURE),
    Law("small_activations", "activations of size 2^-12 change nothing", small_activations, (Cause.EPSILON,), drawn=_STRUCTURE),
    Law("extremes", "no overflow, no underflow: 2^±100 in float32, 2^±900 in float64", extremes, (Cause.OVERFLOW,), drawn=_STRUCTURE),  # noqa: E501
    Law("large_mean", "a mean of 30 σ costs no more digits than it must", large_mean, (Cause.SONG_UNCENTRED,), dtypes=(F32,), drawn=cases(30.0)),  # noqa: E501
    Law("far_sample", "one sample far from the others costs no more digits than it must", far_sample, (Cause.SONG_UNCENTRED,), drawn=_STRUCTURE),  # noqa: E501
    Law("half_precision", "bfloat16 and float16 input within 0.01 of float64", half_precision, (Cause.HALF_PRECISION,), dtypes=(torch.bfloat16, torch.float16), drawn=cases(0.0), torch_only=True),  # noqa: E501
    Law("wide_half", "float16 and bfloat16 layers of ordinary width do not overflow", wide_half, (Cause.HALF_PRECISION,), dtypes=(torch.bfloat16, torch.float16), torch_only=True),  # noqa: E501
    Law("mixed_types", "bfloat16 beside float32: the value of both, or an error", mixed_types, (Cause.HALF_PRECISION,), dtypes=(torch.bfloat16,), torch_only=True),  # noqa: E501
    Law("autocast", "the same under autocast", autocast, (Cause.HALF_PRECISION,), dtypes=(F32,), drawn=_STRUCTURE, torch_only=True),  # noqa: E501
    Law("gradient", "the gradient of the definition, in both arguments", gradient, (Cause.GRADIENT,), drawn=_STRUCTURE, kinds=("function",), torch_only=True, gradient=True),  # noqa: E501
    Law("finite_differences", "the gradient is that of finite differences", finite_differences, (Cause.GRADIENT,), dtypes=(F64,), drawn=_STRUCTURE, kinds=("function",), torch_only=True, gradient=True),  # noqa: E501
    Law("half_gradient", "a gradient reaches bfloat16 and float16 input", half_gradient, (Cause.GRADIENT,), dtypes=(torch.bfloat16, torch.float16), kinds=("function",), torch_only=True, gradient=True),  # noqa: E501
    Law("determinism", "two calls agree bit for bit and leave their input alone", determinism, (Cause.RANDOM,), drawn=_STRUCTURE),
    Law("batch_boundaries", "batches give the value of all samples", batch_boundaries, (Cause.MEAN_OF_BATCHES, Cause.LAST_BATCH), drawn=cases(least=14), kinds=("stream",)),  # noqa: E501
    Law("many_batches", "twelve batches, looked at in between and twice at the end", many_batches, (Cause.LAST_BATCH,), kinds=("stream",)),  # noqa: E501
    Law("refusals", "input that has no CKA is refused, never answered", refusals, (Cause.SILENT,)),
)  # fmt: skip
