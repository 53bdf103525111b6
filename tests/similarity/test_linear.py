"""Linear CKA of one pair beyond what the battery tests: written apart from it, and the gradient that training needs."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdbench.similarity import cka_matrix, linear_cka


def draw(n: int, d: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 1.0, (n, d)))


def reference(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> float:
    """Straight from the definitions, float64: Kornblith eq. 4 on Grams; Song et al. eq. 5 with explicit H-centring."""
    n = len(x)
    k, m = x @ x.T, y @ y.T

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        if not debiased:
            h = torch.eye(n, dtype=torch.float64) - 1 / n
            return float(torch.trace(a @ h @ b @ h))
        a, b = a - a.diag().diag(), b - b.diag().diag()
        one = torch.ones(n, dtype=torch.float64)
        return float(
            torch.trace(a @ b)
            + (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ a @ b @ one)
        ) / (n * (n - 3))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


SHAPES = st.tuples(st.integers(5, 24), st.integers(1, 30), st.integers(1, 30), st.integers(0, 10_000))


@given(SHAPES, st.booleans())
def test_equals_the_definition(shape: tuple[int, int, int, int], debiased: bool) -> None:
    n, d1, d2, seed = shape
    x, y = draw(n, d1, seed), draw(n, d2, seed + 1)
    want = reference(x, y, debiased)
    got = linear_cka(x, y, debiased=debiased).item()
    assert got == pytest.approx(want, abs=1e-9, rel=1e-7) or (debiased and math.isnan(want))


@given(SHAPES, st.floats(0.1, 50), st.floats(-20, 20), st.booleans())
def test_true_invariances(shape: tuple[int, int, int, int], scale: float, shift: float, debiased: bool) -> None:
    n, d1, d2, seed = shape
    x, y = draw(n, d1 + 1, seed), draw(n, d2 + 1, seed + 1)
    before = linear_cka(x, y, debiased=debiased)
    orthogonal = torch.linalg.qr(draw(d1 + 1, d1 + 1, seed + 2))[0]
    moved = scale * (x @ orthogonal) + shift
    torch.testing.assert_close(linear_cka(moved, y, debiased=debiased), before, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(linear_cka(y, x, debiased=debiased), before)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(linear_cka(x[order], y[order], debiased=debiased), before, atol=1e-9, rtol=1e-8)
    assert linear_cka(x, x, debiased=debiased).item() == pytest.approx(1)


def test_a_general_invertible_map_changes_it_the_papers_claim_is_refuted() -> None:
    # X with d orthonormal centred columns, A = diag(10, 1, ...): (κ²+d−1)/√(d(κ⁴+d−1)), errata A1 and facts.
    raw = draw(200, 64, 0)
    x = torch.linalg.qr(raw - raw.mean(0))[0]
    stretch = torch.ones(64, dtype=torch.float64)
    stretch[0] = 10
    assert linear_cka(x, x * stretch).item() == pytest.approx((100 + 63) / math.sqrt(64 * (10_000 + 63)), abs=1e-9)
    assert linear_cka(x, x * stretch).item() < 0.21


def test_kornblith_published_example() -> None:
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = rng.randn(100, 10) + x
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    assert linear_cka(a, b).item() == pytest.approx(0.5576132566117588, abs=1e-12)
    assert linear_cka(a, b, debiased=True).item() == pytest.approx(0.5134564895055259, abs=1e-12)


def test_at_the_papers_batch_the_biased_form_calls_unrelated_features_alike() -> None:
    x, y = draw(32, 2048, 1).float(), draw(32, 4096, 2).float()
    assert linear_cka(x, y).item() > 0.98
    assert abs(linear_cka(x, y, debiased=True).item()) < 0.1


@pytest.mark.parametrize("debiased", [False, True])
def test_the_gradient_is_that_of_finite_differences(debiased: bool) -> None:
    x, y = draw(7, 4, 3).requires_grad_(), draw(7, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: linear_cka(a, b, debiased=debiased), (x, y))


@pytest.mark.parametrize("power", [-400, -60, 60, 400])
def test_scaling_by_a_power_of_two_changes_no_bit_and_overflows_nothing(power: int) -> None:
    x, y = draw(20, 6, 5), draw(20, 7, 6)
    assert torch.equal(linear_cka(x * 2.0**power, y), linear_cka(x, y))


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        (torch.ones(5, 2, 2), torch.ones(5, 2), r"x must be \[samples, features\]"),
        (torch.ones(5, 0), torch.ones(5, 2), r"x of shape \(5, 0\) is empty"),
        (torch.ones(0, 3), torch.ones(0, 2), r"x of shape \(0, 3\) is empty"),
        (torch.rand(5, 2), [[1.0]], "y must be a torch tensor"),
        (torch.rand(5, 2), torch.rand(5, 2, device="meta"), "y of shape .* with values in memory"),
        (torch.rand(5, 2), torch.rand(5, 2).to_sparse(), "y of shape .* dense tensor"),
        (
            torch.rand(5, 2).to(torch.float8_e4m3fn),
            torch.rand(5, 2),
            "x of shape .*float16, bfloat16, float32, float64",
        ),
        (torch.ones(5, 2, dtype=torch.long), torch.ones(5, 2), "floating-point"),
        (torch.rand(5, 2), torch.rand(6, 2), "5 and 6 rows"),
        (torch.rand(2, 2), torch.rand(2, 2), "at least 3"),
        (torch.full((5, 2), 0.1), torch.rand(5, 2), "x of shape .* is constant"),
        (torch.rand(5, 2), torch.full((5, 2), 1e6 + 0.1), "y of shape .* is constant"),
        (torch.full((5, 2), float("nan")), torch.rand(5, 2), "NaN"),
    ],
)
def test_what_has_no_cka_is_an_error_never_a_number(x: torch.Tensor, y: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        linear_cka(x, y)


def test_debiased_needs_four_samples() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        linear_cka(torch.rand(3, 2), torch.rand(3, 2), debiased=True)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("n", [8, 60])
def test_the_gradient_is_what_training_needs(debiased: bool, n: int) -> None:
    # Invariances of the value are directions without gradient: nothing pulls towards larger, shifted or rotated features.
    x, y = draw(n, 12, 1, mean=2).requires_grad_(), draw(n, 15, 2)
    (gradient,) = torch.autograd.grad(linear_cka(x, y, debiased=debiased), x)
    size = gradient.norm() * x.detach().norm()
    assert gradient.abs().max() > 0
    assert gradient.sum(0).abs().max() < 1e-12 * size  # translation
    centred = x.detach() - x.detach().mean(0)
    assert (gradient * centred).sum().abs() < 1e-12 * size  # scale
    turn = centred.T @ gradient
    assert (turn - turn.T).abs().max() < 1e-12 * size  # rotation


def test_following_the_gradient_aligns_unrelated_features_even_from_below_zero() -> None:
    # The debiased value starts negative here: a clamp would leave it there.
    x, y = draw(16, 40, 8), draw(16, 30, 61)
    assert linear_cka(x, y, debiased=True) < 0
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (1 - linear_cka(x, y, debiased=True)).backward()
        optimizer.step()
    assert linear_cka(x, y, debiased=True).item() > 0.9


def test_the_gradient_vanishes_at_the_aligned_state_and_nowhere_explodes() -> None:
    y = draw(12, 9, 4)
    x = (3 * y + 1).requires_grad_()
    (gradient,) = torch.autograd.grad(linear_cka(x, y), x)
    assert gradient.abs().max() < 1e-14
    for power in (-300, 0, 300):
        x = (draw(12, 9, 5) * 2.0**power).requires_grad_()
        (gradient,) = torch.autograd.grad(linear_cka(x, y), x)
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("precision", ["medium", "high"])
@pytest.mark.parametrize("n", [12, 80])
def test_lowered_matmul_precision_changes_no_digit_that_matters(precision: str, n: int) -> None:
    x, y = draw(n, 30, 1).float(), draw(n, 20, 2).float()
    want = linear_cka(x.double(), y.double()).item()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        got = linear_cka(x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want, abs=1e-6)


def test_under_autocast_value_and_gradient_are_those_outside() -> None:
    values, gradients = [], []
    for enabled in (False, True):
        x, y = draw(8, 30, 1).float().requires_grad_(), draw(8, 20, 2).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = linear_cka(x, y)
        value.backward()
        values.append(value.detach())
        gradients.append(x.grad)
    assert torch.equal(*values) and torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_float32_and_its_gradient_in_its_own_type(dtype: torch.dtype) -> None:
    x, y = draw(8, 30, 1).to(dtype).requires_grad_(), draw(8, 20, 2).to(dtype)
    value = linear_cka(x, y)
    value.backward()
    assert value.dtype == torch.float32 and x.grad.dtype == dtype
    assert value.item() == pytest.approx(linear_cka(x.detach().double(), y.double()).item(), abs=1e-6)


@pytest.mark.parametrize(
    "x",
    [torch.eye(6), torch.eye(6).repeat(1, 7), torch.eye(9)[:, :1], torch.eye(40)[:, :1]],
    ids=["identity", "identity, wide", "one differs", "one differs, feature route"],
)
def test_an_unbiased_hsic_of_zero_is_refused(x: torch.Tensor) -> None:
    y = draw(len(x), 1, 3).float()
    shape = re.escape(str(tuple(x.shape)))
    with pytest.raises(ValueError, match=f"x of shape {shape} has no debiased CKA"):
        linear_cka(x, y, debiased=True)
    with pytest.raises(ValueError, match=rf"xs\[0\] of shape {shape} has no debiased CKA"):
        cka_matrix([x], [y], debiased=True)
    assert 0 < linear_cka(x, y).item() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [8, 100, 600])
def test_a_huge_constant_feature_changes_nothing(dtype: torch.dtype, n: int) -> None:
    x, y = draw(n, 300, 1).to(dtype), draw(n, 20, 2).to(dtype)
    want = linear_cka(x[:, 1:], y).item()
    for size in (1e5, 1e8, 1e20):
        x[:, 0] = size
        assert linear_cka(x, y).item() == pytest.approx(want, abs=1e-6)
        assert cka_matrix([x], [y])[0, 0].item() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("exponent", [-300, -100, 60, 100, 160, 200, 300])
@pytest.mark.parametrize("debiased", [False, True])
def test_a_constant_feature_of_any_size_drowns_no_other(exponent: int, debiased: bool) -> None:
    """Scaled by the largest entry, the others would vanish beside it: their squares are then 0, and CKA 0/0."""
    x, y = draw(12, 5, 1), draw(12, 4, 2)
    x[:, 3] = 0.0
    want = linear_cka(x, y, debiased=debiased).item()
    size = 10.0**exponent
    for scale in (1.0, 2.0**-40):
        told = torch.cat([torch.full((12, 1), size, dtype=torch.float64), x * scale], dim=1).requires_grad_()
        value = linear_cka(told, y, debiased=debiased)
        assert value.item() == pytest.approx(want, abs=1e-9)
        assert cka_matrix([told.detach()], [y], debiased=debiased)[0, 0].item() == pytest.approx(want, abs=1e-9)
        assert cka_matrix([y], [told.detach(), y], debiased=debiased)[0, 0].item() == pytest.approx(want, abs=1e-9)
        (gradient,) = torch.autograd.grad(value, told)
        assert bool(gradient.isfinite().all()) and bool((gradient[:, 0] == 0).all())
    constant = torch.full((12, 3), size, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x of shape \(12, 3\) is constant"):
        linear_cka(constant, y)


@pytest.mark.parametrize(("n", "d"), [(5, 2), (5, 20), (64, 8), (64, 100)])
def test_one_sample_far_from_the_others_costs_no_digits(n: int, d: int) -> None:
    x, y = draw(n, d, 3).float(), draw(n, d, 4).float()
    x[2], y[2] = x[2] * 1000, y[2] * 1000
    want = reference(x.double(), y.double(), True)
    assert linear_cka(x, y, debiased=True).item() == pytest.approx(want, abs=1e-6)
    assert cka_matrix([x], [y], debiased=True)[0, 0].item() == pytest.approx(want, abs=1e-5)


def test_closed_form_for_independent_features() -> None:
    # Biased: about √(d1·d2/((n+d1)(n+d2))); debiased: mean 0, standard deviation about √(2/(n(n−3))).
    n, d1, d2 = 24, 256, 512
    pairs = [(draw(n, d1, s), draw(n, d2, 500 + s)) for s in range(60)]
    biased = torch.stack([linear_cka(x, y) for x, y in pairs])
    debiased = torch.stack([linear_cka(x, y, debiased=True) for x, y in pairs])
    assert biased.mean().item() == pytest.approx(math.sqrt(d1 * d2 / ((n + d1) * (n + d2))), abs=0.01)
    assert abs(debiased.mean().item()) < 4 * math.sqrt(2 / (n * (n - 3))) / math.sqrt(60)
    assert debiased.std().item() == pytest.approx(math.sqrt(2 / (n * (n - 3))), rel=0.3)


def orthonormal(n: int, d: int) -> torch.Tensor:
    """[n, d] of orthonormal columns, each with mean 0."""
    x = draw(n, d, 7)
    columns: torch.Tensor = torch.linalg.qr(x - x.mean(0)).Q
    return columns


@pytest.mark.parametrize("n", [80, 2000])  # by Grams, and by features
def test_closed_forms_for_invertible_maps(n: int) -> None:
    """Of X with orthonormal centred columns CKA(X, XA) = |A|² / (√d |A'A|): what an invertible map may leave of 1."""
    d = 64
    x = orthonormal(n, d)

    def seen(a: torch.Tensor) -> float:
        return linear_cka(x, x @ a).item()

    for kappa in (1.0, 10.0, 1e3):  # one direction stretched; the further, the nearer to 1/√d
        stretch = torch.ones(d, dtype=torch.float64)
        stretch[0] = kappa
        expected = (kappa**2 + d - 1) / math.sqrt(d * (kappa**4 + d - 1))
        assert seen(stretch.diag()) == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(1 / math.sqrt(d), rel=1e-3)
    # A Gaussian A: E|A|² = d², E|A'A|² = 2d³ + d², so about 1/√2, whatever the model had learned.
    found = [seen(draw(d, d, s)) for s in range(40)]
    assert sum(found) / len(found) == pytest.approx(1 / math.sqrt(2 + 1 / d), abs=2e-3)
    assert sum(found) / len(found) == pytest.approx(1 / math.sqrt(2), abs=5e-3)


def test_a_column_that_varies_beside_a_large_mean_is_no_constant() -> None:
    """Eight different whole numbers around 1.6e7, each exact in float32: the other column is noise beside them."""
    steps = torch.arange(8.0)
    x = torch.stack([steps + 1.6e7, 0.01 * torch.randn(8, generator=torch.Generator().manual_seed(0))], 1)
    assert linear_cka(x, steps[:, None]).item() == pytest.approx(1, abs=1e-4)
    assert linear_cka(x[:, :1], steps[:, None]).item() == pytest.approx(1, abs=1e-6)
    assert cka_matrix([x], [steps[:, None]]).item() == pytest.approx(1, abs=1e-4)


def test_columns_of_large_means_and_small_spread_are_all_counted() -> None:
    x = 1e6 + torch.randn(40, 60, generator=torch.Generator().manual_seed(1))
    y = torch.randn(40, 9, generator=torch.Generator().manual_seed(2)) + (x - 1e6)[:, :9]
    exact = linear_cka(x.double(), y).item()
    assert linear_cka(x, y).item() == pytest.approx(exact, abs=1e-6)
    assert cka_matrix([x], [y]).item() == pytest.approx(exact, abs=1e-5)


def test_what_is_constant_but_for_its_last_digit_is_constant() -> None:
    noisy = torch.nextafter(torch.full((12, 1), 3.7), torch.full((12, 1), 4.0) * (torch.arange(12) % 2)[:, None])
    assert len(noisy.unique()) == 2
    with pytest.raises(ValueError, match="is constant over the samples"):
        linear_cka(noisy, torch.randn(12, 3, generator=torch.Generator().manual_seed(0)))


def test_samples_that_are_all_equally_far_apart_up_to_their_last_digit_have_no_debiased_cka() -> None:
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        square, y = torch.linalg.qr(torch.randn(8, 8, generator=draw))[0], torch.randn(8, 5, generator=draw)
        for refuses in (lambda: linear_cka(square, y, debiased=True), lambda: cka_matrix([square], [y], debiased=True)):  # noqa: B023
            with pytest.raises(ValueError, match="has no debiased CKA"):
                refuses()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_lazily_negated_and_nested_tensors() -> None:
    x, y = (torch.randn(100, 200, generator=torch.Generator().manual_seed(i)) for i in range(2))
    assert torch.equal(cka_matrix([torch._neg_view(x)], [y]), cka_matrix([-x], [y]))
    nested = torch.nested.nested_tensor([torch.randn(3), torch.randn(4)])
    with pytest.raises(ValueError, match="x must be .* got a nested tensor"):
        linear_cka(nested, y)


def test_too_few_samples_are_told_with_argument_and_shape() -> None:
    with pytest.raises(ValueError, match=r"biased CKA needs at least 3 samples: x of shape \(2, 3\) has 2"):
        linear_cka(torch.randn(2, 3), torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"debiased CKA needs at least 4 samples: xs\[0\] of shape \(3, 3\) has 3"):
        cka_matrix([torch.randn(3, 3)], [torch.randn(3, 3)], debiased=True)
