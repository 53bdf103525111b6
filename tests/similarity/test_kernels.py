"""HSIC of Gram matrices and RBF-kernel CKA, against libraries that nobody here wrote."""

import pytest
import torch
from ckatorch import cka_base, hsic0, hsic1

from cdbench.similarity import biased_hsic, debiased_hsic, linear_cka, rbf_cka


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(x: torch.Tensor) -> torch.Tensor:
    return x @ x.T


@pytest.mark.parametrize("seed", range(4))
def test_hsic_is_that_of_ckatorch_for_grams_that_are_not_centred(seed: int) -> None:
    k, m = gram(draw(9, 4, seed) + 2), gram(draw(9, 6, seed + 50) - 1)
    assert biased_hsic(k, m).item() == pytest.approx(hsic0(k, m).item(), rel=1e-10)
    assert debiased_hsic(k, m).item() == pytest.approx(hsic1(k[None], m[None]).item(), rel=1e-9)


def test_hsic_makes_cka() -> None:
    x, y = draw(12, 5, 1), draw(12, 3, 2)
    for hsic, debiased in ((biased_hsic, False), (debiased_hsic, True)):
        k, m = gram(x), gram(y)
        ratio = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
        assert ratio.item() == pytest.approx(linear_cka(x, y, debiased=debiased).item(), abs=1e-10)


def test_debiased_hsic_of_independent_samples_is_zero_in_mean_and_biased_is_not() -> None:
    values = [
        (biased_hsic(k, m), debiased_hsic(k, m))
        for s in range(200)
        for k, m in [(gram(draw(8, 20, s)), gram(draw(8, 20, 999 + s)))]
    ]
    biased, debiased = (torch.stack(v) for v in zip(*values, strict=True))
    assert debiased.mean().abs() < 4 * debiased.std() / 200**0.5
    assert biased.mean() > 20 * biased.std() / 200**0.5


@pytest.mark.parametrize("hsic", [biased_hsic, debiased_hsic])
def test_hsic_refuses_what_is_no_gram(hsic) -> None:
    good = gram(draw(6, 3, 1))
    for bad, complaint in [
        (draw(6, 3, 1), "square"),
        (good.long(), "floating-point"),
        (good[:5, :5], "same samples"),
        (good * float("inf"), "NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            hsic(good, bad)
    with pytest.raises(ValueError, match="larger than float64"):
        hsic(good * 1e200, good * 1e200)
    with pytest.raises(ValueError, match="at least"):
        hsic(good[:2, :2], good[:2, :2])


@pytest.mark.parametrize("bandwidth", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("debiased", [False, True])
def test_rbf_cka_is_that_of_ckatorch(bandwidth: float, debiased: bool) -> None:
    # 21 samples: with an odd number of pairs, its lower median is the median.
    x, y = draw(21, 7, 3), draw(21, 5, 4)
    y = y + x[:, :5]
    want = cka_base(x, y, "rbf", unbiased=debiased, threshold=bandwidth).item()
    assert rbf_cka(x, y, bandwidth=bandwidth, debiased=debiased).item() == pytest.approx(want, abs=1e-9)


def test_rbf_cka_has_the_invariances_of_distances() -> None:
    x, y = draw(20, 6, 5), draw(20, 4, 6)
    value = rbf_cka(x, y)
    rotation = torch.linalg.qr(draw(6, 6, 7))[0]
    torch.testing.assert_close(rbf_cka(300 * (x @ rotation) + 7, y), value, atol=1e-9, rtol=0)
    torch.testing.assert_close(rbf_cka(y, x), value)
    assert rbf_cka(x, x).item() == pytest.approx(1)
    assert rbf_cka(x.to(torch.bfloat16), y).item() == pytest.approx(value.item(), abs=0.01)


@pytest.mark.parametrize("debiased", [False, True])
def test_the_gradient_of_rbf_cka_is_that_of_finite_differences(debiased: bool) -> None:
    x, y = draw(7, 3, 8).requires_grad_(), draw(7, 4, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rbf_cka(a, b, debiased=debiased), (x, y))


def test_rbf_cka_refuses_what_it_cannot_compare() -> None:
    x, y = draw(8, 3, 10), draw(8, 2, 11)
    equal = x.clone()
    equal[:7] = x[0]
    with pytest.raises(ValueError, match="x of shape .* median distance of 0"):
        rbf_cka(equal, y)
    with pytest.raises(ValueError, match="positive fraction"):
        rbf_cka(x, y, bandwidth=0)
    for narrow in (1e-3, 5e-324):
        with pytest.raises(ValueError, match="all samples unlike for x"):
            rbf_cka(x, y, bandwidth=narrow)
    for wide in (1e8, 1e200):
        with pytest.raises(ValueError, match="all samples alike for x"):
            rbf_cka(x, y, bandwidth=wide)
    with pytest.raises(ValueError, match="positive fraction"):
        rbf_cka(x, y, bandwidth="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="constant"):
        rbf_cka(torch.ones(8, 3), y)
    with pytest.raises(ValueError, match="NaN"):
        rbf_cka(x, y * float("nan"))
