"""All pairs at once: the same values as pair by pair, whatever the route, the offset, the scale and the neighbours."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdbench.similarity import cka_matrices, cka_matrix, linear_cka


def layers(widths: list[int], n: int, seed: int, offset: float = 0.0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    return [
        base @ torch.randn(4, d, generator=draw, dtype=torch.float64)
        + torch.randn(n, d, generator=draw, dtype=torch.float64)
        + offset * torch.randn(d, generator=draw, dtype=torch.float64)
        for d in widths
    ]


@given(st.integers(5, 40), st.integers(0, 999), st.sampled_from([0.0, 1.0, 20.0]), st.booleans())
def test_the_matrix_holds_the_pairs_on_either_route(n: int, seed: int, offset: float, debiased: bool) -> None:
    xs, ys = layers([3, 8, 20], n, seed, offset), layers([5, 2], n, seed + 1, offset)
    matrix = cka_matrix(xs, ys, debiased=debiased)
    assert matrix.shape == (3, 2) and matrix.dtype == torch.float64
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            assert matrix[i, j].item() == pytest.approx(linear_cka(x, y, debiased=debiased).item(), abs=1e-8)


@pytest.mark.parametrize("n", [8, 70, 130, 260, 400])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_float32_of_every_size_is_near_float64(n: int, offset: float) -> None:
    # Every branch: raw or centred, whole product or half, Grams or products of features.
    xs, ys = layers([150, 90], n, 1, offset), layers([120, 30], n, 2, offset)
    small = cka_matrices([x.float() for x in xs], [y.float() for y in ys])
    for got, debiased in zip(small, (False, True), strict=True):
        want = torch.tensor([[linear_cka(x, y, debiased=debiased) for y in ys] for x in xs], dtype=torch.float64)
        torch.testing.assert_close(got, want, atol=5e-6, rtol=0)


def test_both_estimators_of_one_pass_are_those_of_one_each() -> None:
    xs, ys = layers([30, 40], 20, 3), layers([50], 20, 4)
    biased, debiased = cka_matrices(xs, ys)
    assert torch.equal(biased, cka_matrix(xs, ys))
    assert torch.equal(debiased, cka_matrix(xs, ys, debiased=True))


def test_a_layer_that_stands_in_both_lists_is_itself() -> None:
    xs = layers([30, 40, 50], 20, 5)
    matrix = cka_matrix(xs, [xs[2], xs[0]])
    assert matrix[2, 0].item() == pytest.approx(1, abs=1e-12)
    assert matrix[0, 1].item() == pytest.approx(1, abs=1e-12)
    assert matrix[1, 0].item() == pytest.approx(linear_cka(xs[1], xs[2]).item(), abs=1e-12)


@pytest.mark.parametrize("n", [6, 300])
@pytest.mark.parametrize("powers", [(100, -100), (-120, 0), (0, 60)])
def test_layers_of_any_size_stand_side_by_side(n: int, powers: tuple[int, int]) -> None:
    xs = [x.float() for x in layers([200, 300], n, 6)]
    ys = [y.float() for y in layers([400], n, 7)]
    moved = [x * 2.0**p for x, p in zip(xs, powers, strict=True)]
    for got, want in zip(cka_matrices(moved, ys), cka_matrices(xs, ys), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_mixed_types_are_read_at_the_widest() -> None:
    x, y = layers([30], 16, 8)[0], layers([40], 16, 9)[0]
    mixed = cka_matrix([x.to(torch.bfloat16), x.float()], [y])
    assert mixed[0, 0].item() == pytest.approx(linear_cka(x.to(torch.bfloat16).double(), y).item(), abs=1e-10)
    assert mixed[1, 0].item() == pytest.approx(linear_cka(x.float().double(), y).item(), abs=1e-10)


@pytest.mark.parametrize("n", [20, 100, 300])
def test_layers_that_require_a_gradient_are_read_without_one(n: int) -> None:
    x, y = (v.float().requires_grad_() for v in layers([400, 350], n, 14))
    matrix = cka_matrix([x], [y])
    assert not matrix.requires_grad
    assert matrix[0, 0].item() == pytest.approx(linear_cka(x, y).item(), abs=1e-6)


def test_inputs_are_left_as_they_are_and_two_calls_agree() -> None:
    xs, ys = layers([200, 300], 70, 10, 3.0), layers([100], 70, 11)
    kept = [v.clone() for v in (*xs, *ys)]
    assert torch.equal(cka_matrix(xs, ys), cka_matrix(xs, ys))
    assert all(torch.equal(a, b) for a, b in zip(kept, (*xs, *ys), strict=True))


def test_more_layers_than_are_held_at_a_time_give_what_each_gives_alone() -> None:
    # 2 kept and 36 others: three blocks, in the last of which one layer is out of range and one stands on both sides.
    xs, ys = ([v.float() for v in layers([150] * count, 300, seed, 2.0)] for count, seed in ((2, 15), (36, 16)))
    ys[33] = ys[33] * 2.0**110
    ys[35] = xs[1]
    together = cka_matrices(xs, ys)
    for i, y in enumerate(ys):
        for matrix, alone in zip(together, cka_matrices(xs, [y]), strict=True):
            torch.testing.assert_close(matrix[:, i : i + 1], alone, atol=1e-12, rtol=0)
    assert together.debiased[1, 35].item() == pytest.approx(1, abs=1e-12)
    ys[34] = torch.ones_like(ys[34])
    with pytest.raises(ValueError, match=r"ys\[34\] of shape .* is constant"):
        cka_matrices(xs, ys)


@pytest.mark.parametrize("n", [6, 70, 300])
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda v: torch.full_like(v, 0.1), r"ys\[1\] of shape \(\d+, 350\) is constant"),
        (lambda v: torch.zeros_like(v), r"ys\[1\] of shape \(\d+, 350\) is constant"),
        (lambda v: v.index_fill(0, torch.tensor([1]), float("nan")), r"ys\[1\] of shape .* NaN or infinity"),
        (lambda v: v.index_fill(0, torch.tensor([1]), float("inf")), r"ys\[1\] of shape .* NaN or infinity"),
        (lambda v: v[:-1], r"ys\[1\] of shape .* must hold the same samples"),
        (lambda v: v[None], r"ys\[1\] must be \[samples, features\].*one row a prompt"),
        (lambda v: v.long(), r"ys\[1\] of shape .* floating-point"),
    ],
)
def test_a_bad_layer_is_named(n: int, spoil, complaint: str) -> None:
    xs, ys = ([v.float() for v in layers([300, 350], n, seed)] for seed in (12, 13))
    ys[1] = spoil(ys[1])
    with pytest.raises(ValueError, match=complaint):
        cka_matrix(xs, ys)


def test_samples_equally_far_apart_have_no_debiased_cka() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for wide in (torch.eye(6), torch.eye(6).repeat(1, 40)):
        with pytest.raises(ValueError, match=r"ys\[0\] .*no debiased CKA"):
            cka_matrix([x], [wide], debiased=True)
        assert 0 < cka_matrix([x], [wide]).item() < 1


def test_lists_are_asked_for() -> None:
    x = torch.rand(5, 3)
    with pytest.raises(ValueError, match=r"write \[ys\] for a single one"):
        cka_matrix([x], x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="xs is empty"):
        cka_matrix([], [x])
    with pytest.raises(ValueError, match="at least 4"):
        cka_matrices([x[:3]], [x[:3]])
