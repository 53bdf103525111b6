"""Laws of linear CKA. The full battery (conformance of other people's CKA, oracles, mutants) is its own piece of work."""

import math

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


@given(st.integers(0, 1000), st.booleans())
def test_the_matrix_holds_the_pairs(seed: int, debiased: bool) -> None:
    xs = [draw(12, d, seed + d) for d in (3, 8, 20)]
    ys = [draw(12, d, seed + 50 + d) for d in (5, 9)]
    matrix = cka_matrix(xs, ys, debiased=debiased)
    assert matrix.shape == (3, 2)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            assert matrix[i, j].item() == pytest.approx(linear_cka(x, y, debiased=debiased).item(), abs=1e-9)


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
        (torch.ones(5, 0), torch.ones(5, 2), r"x must be \[samples, features\]"),
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
