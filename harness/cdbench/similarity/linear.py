"""Linear CKA (Kornblith et al. 2019, eq. 4), biased and debiased (Song et al. 2012, eq. 5), differentiable.

Laws: symmetric; CKA(x, x) = 1; invariant to orthogonal maps, isotropic scaling, translation and so to permutation of
features; **not** invariant to a general invertible map (errata A1). The biased form lies in [0, 1] and is strongly
biased upward when n is small against the width (errata A8); the debiased one is near 0 for independent features and can
be negative.

With a centred Gram matrix K (zero row sums) both estimators come from three numbers: H0 = Σ_{i≠j} K_ij L_ij, the diagonals
and the traces:

    biased     H0 + diag(K)·diag(L)
    debiased   H0 − 2/(n−2) diag(K)·diag(L) + tr(K) tr(L) / ((n−1)(n−2))

up to factors that cancel in the ratio.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    """Linear CKA of two representations of the same n samples.

    Args:
        x: [n, d1], one row a sample; rows must be independent samples.
        y: [n, d2], the same samples in the same order.
        debiased: the estimator that one reports; needs n >= 4.

    Returns:
        A scalar with gradient to both, float32 (float64 when either input is).

    Raises:
        ValueError: not 2-D, different n, too few rows, no features, an integer tensor, NaN or infinity, or a constant
            representation: CKA is 0/0 there, and no number would be true.
    """
    _require_rows(x, y, debiased)
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    # n^2 numbers in float64 cost nothing beside the products, and float32 sums over them lose four digits.
    k, m = (_centred_gram(value, name, dtype).double() for value, name in ((x, "x"), (y, "y")))
    cross, own_x, own_y = _hsic(k, m, debiased), _hsic(k, k, debiased), _hsic(m, m, debiased)
    value: Tensor = (cross / (own_x.sqrt() * own_y.sqrt())).to(dtype)
    return value


@torch.no_grad()
def cka_matrix(xs: Sequence[Tensor], ys: Sequence[Tensor], *, debiased: bool = False) -> Tensor:
    """CKA of every layer of one model with every layer of another, [len(xs), len(ys)], float64.

    Each Gram matrix is formed once; the pairs are one product of the flattened Grams.

    Raises:
        ValueError: as `linear_cka`, naming the layer.
    """
    if not xs or not ys:
        raise ValueError("cka_matrix needs at least one layer on each side")
    for x in xs:
        _require_rows(x, ys[0], debiased)
    for y in ys:
        _require_rows(xs[0], y, debiased)
    grams = [
        [
            _centred_gram(x, f"{side}[{i}]", torch.promote_types(x.dtype, torch.float32)).double()
            for i, x in enumerate(v)
        ]
        for side, v in (("xs", xs), ("ys", ys))
    ]
    left, right = (torch.stack([_project(k, debiased) for k in side]) for side in grams)
    norms = left.norm(dim=1)[:, None] * right.norm(dim=1)[None]
    matrix: Tensor = left @ right.T / norms
    return matrix


def _hsic(k: Tensor, m: Tensor, debiased: bool) -> Tensor:
    """HSIC of two centred Grams up to a factor that cancels in CKA."""
    total = (k * m).sum()
    if not debiased:
        return total
    n = len(k)
    dk, dm = k.diagonal(), m.diagonal()
    # total = H0 + dk·dm, so H0 − 2/(n−2) dk·dm = total − n/(n−2) dk·dm.
    return total - n / (n - 2) * (dk @ dm) + dk.sum() * dm.sum() / ((n - 1) * (n - 2))


def _project(k: Tensor, debiased: bool) -> Tensor:
    """A centred Gram as a vector whose inner products are the HSICs: K itself, or its U-centring (Székely & Rizzo)."""
    if not debiased:
        return k.flatten()
    n = len(k)
    off = ~torch.eye(n, dtype=torch.bool)
    hollow = k * off
    means = hollow.sum(1) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    return ((hollow - means[:, None] - means[None]) * off).flatten()


def _centred_gram(x: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """The Gram matrix of the centred features, [n, n].

    Scaled by a power of two (exact, and it cancels) so that fourth powers neither overflow nor vanish.
    """
    x = x.to(dtype)
    largest = x.detach().abs().max().item()
    if not math.isfinite(largest):
        raise ValueError(f"{name} of shape {tuple(x.shape)} holds NaN or infinity")
    if largest > 0:
        exponent = math.frexp(largest)[1]
        half = exponent // 2  # in two steps: 2^-exponent itself may not be representable
        x = x * 2.0**-half * 2.0 ** -(exponent - half)
    mean = x.mean(0)
    centred = x - mean
    # A constant column leaves rounding residue of size eps·|mean|: judge spread relative to the mean, not to zero.
    spread, offset = centred.detach().square().sum().item(), len(x) * mean.detach().square().sum().item()
    if spread <= (8 * torch.finfo(dtype).eps) ** 2 * (spread + offset):
        raise ValueError(f"{name} of shape {tuple(x.shape)} is constant over the samples: its CKA is 0/0")
    return centred @ centred.T


def _require_rows(x: Tensor, y: Tensor, debiased: bool) -> None:
    for name, value in (("x", x), ("y", y)):
        if value.ndim != 2 or value.shape[1] == 0:
            raise ValueError(f"{name} must be [samples, features], got shape {tuple(value.shape)}")
        if not value.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if len(x) != len(y):
        raise ValueError(f"x and y must hold the same samples, got {len(x)} and {len(y)} rows")
    least = 4 if debiased else 3
    if len(x) < least:
        kind = "debiased" if debiased else "biased"
        raise ValueError(f"{kind} CKA needs at least {least} samples, got {len(x)}")
