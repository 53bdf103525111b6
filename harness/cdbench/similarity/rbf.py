"""RBF-kernel CKA (Kornblith et al. 2019, section 3): similarity of neighbourhoods rather than of directions."""

import torch
from torch import Tensor

from cdbench.similarity.hsic import cka_of_grams
from cdbench.similarity.inputs import WIDE, centred, require_pair


def rbf_cka(x: Tensor, y: Tensor, *, bandwidth: float = 1.0, debiased: bool = False) -> Tensor:
    """CKA under the kernel exp(−|a − b|² / (2 σ²)).

    Args:
        x: [n, d1], one row a sample; rows must be independent samples.
        y: [n, d2], the same samples in the same order.
        bandwidth: σ as a fraction of the root of the median squared distance, taken over all n² pairs of rows as in the
            authors' published notebook. Relative, so the value is invariant to isotropic scaling.
        debiased: the estimator that one reports; needs n >= 4.

    Returns:
        A scalar with gradient to both, float32 (float64 when either input is).

    Raises:
        ValueError: as `linear_cka`; more than half of the pairs of rows equal; or a bandwidth that is not positive, or so
            narrow or wide that no two samples, or all of them, are alike.
    """
    require_pair(x, y, debiased)
    if not isinstance(bandwidth, int | float) or not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be a positive fraction of the median distance, got {bandwidth}")
    result = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        grams = [rbf_gram(value, name, bandwidth) for value, name in ((x, "x"), (y, "y"))]
        return cka_of_grams(grams[0], grams[1], (x.shape, y.shape), debiased=debiased).to(result)


def rbf_gram(value: Tensor, name: str, bandwidth: float) -> Tensor:
    """Kernel values between all pairs of samples, [n, n], float64.

    Raises:
        ValueError: NaN, infinity, a constant representation, a median distance of zero, or a kernel without contrast.
    """
    # float64 throughout: near samples have a squared distance that is a difference of two large numbers.
    rows = centred(value, name, WIDE)
    norms = rows.square().sum(1)
    off = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    squared = (norms[:, None] + norms[None] - 2 * rows @ rows.T) * off
    median = _median(squared)
    # Equal rows leave a rounding residue of either sign.
    if median.item() <= 1e-12 * squared.mean().item():
        raise ValueError(f"{name} of shape {tuple(value.shape)} has a median distance of 0: most of its rows are equal")
    kernel = torch.exp(-squared / median / 2 / bandwidth / bandwidth)
    others = kernel.detach()[off]
    if others.max().item() < 1e-6 or others.min().item() > 1 - 1e-9:
        what = "all samples unlike" if others.max().item() < 1e-6 else "all samples alike"
        raise ValueError(
            f"bandwidth {bandwidth:g} makes {what} for {name} of shape {tuple(value.shape)}: take one nearer to 1"
        )
    return kernel


def _median(values: Tensor) -> Tensor:
    """The mean of the two middle values, as NumPy has it; `torch.median` takes the lower one."""
    ordered = values.flatten().sort().values
    middle = len(ordered) // 2
    return (ordered[(len(ordered) - 1) // 2] + ordered[middle]) / 2
