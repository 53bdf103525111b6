"""Linear CKA (Kornblith et al. 2019, eq. 4) of one pair, biased and debiased (Song et al. 2012, eq. 5), differentiable.

Laws: symmetric; CKA(x, x) = 1; invariant to orthogonal maps, isotropic scaling, translation and so to permutation of
features; **not** invariant to a general invertible map (errata A1). The biased form lies in [0, 1] and is strongly
biased upward when n is small against the width (errata A8); the debiased one is near 0 for independent features and can
be negative. `cdbench check cka` tests all of it.
"""

import torch
from torch import Tensor

from cdbench.similarity.hsic import cka_of_grams
from cdbench.similarity.inputs import WIDE, centred, require_debiased_spread, require_pair


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    """Linear CKA of two representations of the same n samples.

    Computed over Gram matrices, [n, n], or over feature products, [d1, d2], whichever costs less: the value is the same.
    In float64, whatever autocast or the matmul precision say.

    Args:
        x: [n, d1], one row a sample; rows must be independent samples.
        y: [n, d2], the same samples in the same order.
        debiased: the estimator that one reports; needs n >= 4.

    Returns:
        A scalar with gradient to both, float32 (float64 when either input is).

    Raises:
        ValueError: not 2-D, different n, too few rows, empty, an integer tensor, NaN or infinity, or a constant
            representation: CKA is 0/0 there, and no number would be true.
    """
    require_pair(x, y, debiased)
    result = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        # One pair in float64 costs little, and float32 loses all digits where one sample is far from the others.
        cx, cy = centred(x, "x", WIDE), centred(y, "y", WIDE)
        # A Gram pair costs n²(d1 + d2), a feature product n(d1 + d2)².
        if len(x) < x.shape[1] + y.shape[1]:
            value = cka_of_grams(cx @ cx.T, cy @ cy.T, (x.shape, y.shape), debiased=debiased, given=result)
        else:
            value = _feature_route(cx, cy, bool(debiased), result)
    return value.to(result)


def _feature_route(x: Tensor, y: Tensor, debiased: bool, given: torch.dtype) -> Tensor:
    """‖XᵀY‖² / (‖XᵀX‖·‖YᵀY‖) of centred features.

    A centred Gram has zero row sums, so what Song's formula takes off the inner product of two Grams comes from their
    diagonals and traces alone: −n/(n−2) a·b + Σa Σb / ((n−1)(n−2)), a and b the squared norms of the rows.
    """
    n = len(x)
    a, b = (v.square().sum(1) for v in (x, y))

    def hsic(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        full = (u.T @ v).square().sum()
        return full, full - n / (n - 2) * (p @ q) + p.sum() * q.sum() / ((n - 1) * (n - 2))

    pairs = [hsic(x, y, a, b), hsic(x, x, a, a), hsic(y, y, b, b)]
    if debiased:
        for name, value, (biased, unbiased) in zip("xy", (x, y), pairs[1:], strict=True):
            require_debiased_spread(unbiased.item(), biased.item(), name, tuple(value.shape), given)
    cross, own_x, own_y = (pair[debiased] for pair in pairs)
    ratio: Tensor = cross / (own_x.sqrt() * own_y.sqrt())
    return ratio
