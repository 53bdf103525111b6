"""The Hilbert-Schmidt independence criterion of two Gram matrices, and CKA as its normalised form.

Any kernel. With H = I − 11ᵀ/n the biased estimate is tr(KHLH)/(n−1)² (Gretton et al. 2005). The unbiased one (Song et al.
2012, eq. 5; Nguyen et al. 2021, eq. 3) is an inner product too, of U-centred matrices (Székely & Rizzo 2014): so it is
never negative for a matrix with itself, and CKA is a cosine under either.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from cdbench.similarity.inputs import WIDE, require_debiased_spread, require_enough


def biased_hsic(gram_x: Float[Tensor, "n n"], gram_y: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Biased estimate of HSIC, tr(KHLH)/(n−1)² (Gretton et al. 2005, eq. 4; Kornblith et al. 2019, eq. 3).

    Args:
        gram_x: kernel values between all pairs of samples; need not be centred.
        gram_y: the same of another representation of the same samples.

    Returns:
        A float64 scalar >= 0 up to rounding, with gradient to both.

    Raises:
        ValueError: not square, different n, n < 3, or values that are not finite.
    """
    _require_grams(gram_x, gram_y, debiased=False)
    return _finite((h_centred(gram_x) * h_centred(gram_y)).sum() / (len(gram_x) - 1) ** 2)


def debiased_hsic(gram_x: Float[Tensor, "n n"], gram_y: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Unbiased estimate of HSIC (Song et al. 2012, eq. 5; as in Nguyen et al. 2021, eq. 3).

    Zero in mean for independent representations, hence sometimes negative. Arguments and errors as `biased_hsic`, with
    n >= 4.
    """
    _require_grams(gram_x, gram_y, debiased=True)
    n = len(gram_x)
    return _finite((u_centred(gram_x) * u_centred(gram_y)).sum() / (n * (n - 3)))


def cka_of_grams(
    gram_x: Float[Tensor, "n n"],
    gram_y: Float[Tensor, "n n"],
    shapes: tuple[torch.Size, torch.Size],
    *,
    debiased: bool,
    given: torch.dtype = WIDE,
) -> Float[Tensor, ""]:
    """HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)), float64; factors that depend on n alone cancel.

    Args:
        gram_x: kernel values between all pairs of samples of x.
        gram_y: of y.
        shapes: of x and y, for messages.
        debiased: which estimator.
        given: the type that x and y came in: distances that are equal up to its last digit are equal.

    Raises:
        ValueError: debiased, and the unbiased HSIC of one with itself is 0.
    """
    k, m = h_centred(gram_x), h_centred(gram_y)
    if debiased:
        own = [matrix.detach().square().sum().item() for matrix in (k, m)]
        # Centred twice: the diagonal of a wide representation is then not what the off-diagonal is read against.
        k, m = u_centred(k), u_centred(m)
        for name, matrix, shape, biased in zip("xy", (k, m), shapes, own, strict=True):
            norm = matrix.detach().square().sum().item()
            require_debiased_spread(norm, biased, name, tuple(shape), given)
    return (k * m).sum() / (k.square().sum().sqrt() * m.square().sum().sqrt())


def h_centred(gram: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """HKH in float64: rows and columns sum to zero."""
    gram = gram.to(WIDE)
    means = gram.mean(-1)
    return gram - means.unsqueeze(-1) - means.unsqueeze(-2) + means.mean(-1)[..., None, None]


def u_centred(gram: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """The U-centring of a Gram matrix in float64: zero diagonal, and rows that sum to zero without it."""
    gram = gram.to(WIDE)
    n = gram.shape[-1]
    off = ~torch.eye(n, dtype=torch.bool, device=gram.device)
    hollow = gram * off
    means = hollow.sum(-1) / (n - 2)
    means = means - means.sum(-1, keepdim=True) / (2 * (n - 1))
    return (hollow - means.unsqueeze(-1) - means.unsqueeze(-2)) * off


def _finite(value: Tensor) -> Tensor:
    if not bool(torch.isfinite(value.detach())):
        raise ValueError("the HSIC of these Gram matrices is larger than float64 holds; divide them by a power of two")
    return value


def _require_grams(gram_x: Tensor, gram_y: Tensor, debiased: bool) -> None:
    for name, gram in (("gram_x", gram_x), ("gram_y", gram_y)):
        if not isinstance(gram, Tensor):
            raise ValueError(f"{name} must be a torch tensor of kernel values, got {type(gram).__name__}")
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.is_floating_point():
            raise ValueError(
                f"{name} must be a square floating-point matrix of kernel values, got {gram.dtype} of shape {tuple(gram.shape)}"
            )
        if not bool(torch.isfinite(gram.detach()).all()):
            raise ValueError(f"{name} of shape {tuple(gram.shape)} holds NaN or infinity")
    if len(gram_x) != len(gram_y):
        raise ValueError(f"gram_x and gram_y must be of the same samples, got n = {len(gram_x)} and {len(gram_y)}")
    require_enough(len(gram_x), debiased, f"gram_x of shape {tuple(gram_x.shape)}")
