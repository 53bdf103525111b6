"""What may enter a CKA, and how the features are prepared: every estimator starts here."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

WIDE = torch.float64
"""n² numbers in float64 cost nothing beside the products, and a float32 sum over them loses four digits."""


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_representation(value: Tensor, name: str) -> None:
    """Checks one representation without reading its values.

    Raises:
        ValueError: not a dense tensor, not 2-D, no samples or no features, not of a floating-point type, or on MPS.
    """
    fault = _fault(value)
    if fault:
        raise ValueError(f"{name} {fault}")


def _fault(value: object) -> str:
    """What is wrong with a representation, as the rest of a sentence; empty when nothing is."""
    if not isinstance(value, Tensor):
        return f"must be a torch tensor [samples, features], got {type(value).__name__}"
    if value.is_nested:
        return "must be [samples, features], got a nested tensor"
    if value.ndim != 2:
        hint = "; flattening positions makes rows that are not independent samples, take one row a prompt"
        return f"must be [samples, features], got shape {tuple(value.shape)}{hint if value.ndim > 2 else ''}"
    if value.numel() == 0:
        return f"of shape {tuple(value.shape)} is empty"
    if value.dtype not in _DTYPES:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        return f"of shape {tuple(value.shape)} must be a floating-point tensor ({kinds}), got {value.dtype}"
    if value.layout is not torch.strided or value.is_meta:
        return f"of shape {tuple(value.shape)} must be a dense tensor with values in memory"
    if value.is_mps:
        return "is on an MPS device, which has no float64: move it to the CPU"
    return ""


def require_pair(x: Tensor, y: Tensor, debiased: bool) -> None:
    """Checks two representations for one CKA without reading their values.

    Raises:
        ValueError: as `require_representation`, `require_same_samples` and `require_enough`.
    """
    require_representation(x, "x")
    require_representation(y, "y")
    require_same_samples(x, y)
    require_enough(len(x), debiased, f"x of shape {tuple(x.shape)}")


def require_same_samples(x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y")) -> None:
    """Checks that two representations hold the same number of samples on the same device.

    Raises:
        ValueError: they do not.
    """
    if len(x) != len(y):
        raise ValueError(
            f"{names[0]} of shape {tuple(x.shape)} and {names[1]} of shape {tuple(y.shape)} must hold the same samples "
            f"in the same order, got {len(x)} and {len(y)} rows"
        )
    if x.device != y.device:
        raise ValueError(f"{names[0]} is on {x.device} and {names[1]} on {y.device}; move one to the other's device")


def require_enough(n: int, debiased: bool, what: str) -> None:
    """Checks the number of samples of `what`: an argument with its shape, for the message.

    Raises:
        ValueError: n < 3, where the biased estimator is identically 1 (n = 2) or 0/0, or n < 4 debiased, where it is 0/0.
    """
    least = 4 if debiased else 3
    if n < least:
        kind = "debiased" if debiased else "biased"
        raise ValueError(f"{kind} CKA needs at least {least} samples: {what} has {n}")


def require_layers(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
    """Checks two lists of layers without reading their values.

    Raises:
        ValueError: an empty list, a tensor in place of a list, or a layer that is not of the same samples as the first.
    """
    for side, values in (("xs", xs), ("ys", ys)):
        if not isinstance(values, list | tuple):
            raise ValueError(
                f"{side} must be a list of layers, each [samples, features]; write [{side}] for a single one"
            )
        if not values:
            raise ValueError(f"{side} is empty: give at least one layer on each side")
        first = xs[0]
        for i, value in enumerate(values):
            # A name is made only for what is wrong: with many layers the words would cost more than the checks.
            fault = _fault(value)
            if fault:
                raise ValueError(f"{side}[{i}] {fault}")
            if value.shape[0] != first.shape[0] or value.device != first.device:
                require_same_samples(first, value, ("xs[0]", f"{side}[{i}]"))


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """At least float32; float64 when an input is, or when the user has lowered the precision of float32 products.

    TF32 and bfloat16 products (`torch.set_float32_matmul_precision`) keep three digits: too few for an estimator that
    subtracts. Working in float64 avoids them without touching a global setting, in the backward pass too.
    """
    dtype = torch.float32
    for given in {tensor.dtype for tensor in tensors}:
        dtype = torch.promote_types(dtype, given)
    backends: Any = torch.backends  # what the stubs do not know
    setting = (backends.cuda if tensors[0].is_cuda else backends.mkldnn).matmul.fp32_precision
    if setting == "none":
        setting = backends.fp32_precision
    return torch.float64 if setting in ("tf32", "bf16") else dtype


def exponent_of(value: Tensor, name: str) -> int | None:
    """e such that 2^-e · value has its largest entry in [0.5, 1); None for zeros, which have no scale.

    Raises:
        ValueError: NaN or infinity.
    """
    low, high = value.detach().aminmax()
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        raise ValueError(f"{name} of shape {tuple(value.shape)} holds NaN or infinity")
    return math.frexp(largest)[1] if largest else None


def scaled(value: Tensor, exponent: int | None) -> Tensor:
    """2^-exponent · value. In two steps: 2^-exponent itself may not be representable."""
    if exponent is None:
        return value
    half = exponent // 2
    return value * 2.0**-half * 2.0 ** -(exponent - half)


def centred(value: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Features minus their mean over the samples, [n, d], scaled by a power of two.

    The scaling is exact and cancels in a ratio; without it fourth powers overflow or vanish.

    Raises:
        ValueError: NaN, infinity, or a representation that is constant over the samples.
    """
    return centred_at(value, name, dtype)[0]


def centred_at(value: Tensor, name: str, dtype: torch.dtype) -> tuple[Tensor, int]:
    """`centred`, and e: what it gives is 2^-e times the features minus their mean."""
    exponent = exponent_of(value, name)
    result, spread, constant = _around_mean(scaled(value.to(dtype), exponent), value.dtype)
    if not bool(constant.any()):
        return result, exponent or 0
    if not bool((spread[~constant] > _TINY[dtype]).any()):
        # The largest entry belongs to a column that does not vary, beside which the others vanish.
        return _each_at_its_own(value, name, dtype)
    # What rounding leaves of a large constant column would drown the others.
    return result * ~constant if bool((constant & (spread > 0)).any()) else result, exponent or 0


_TINY = {torch.float32: 1e-25, torch.float64: 1e-100}
"""Squared distances from the mean below which products of them lose digits, or vanish."""


def _around_mean(value: Tensor, given: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features minus their mean; the squares of that, summed over the samples; which do not vary, given values of that type."""
    wide = value.to(WIDE)
    mean = wide.mean(0)
    moved = wide - mean
    spread, offset = moved.detach().square().sum(0), len(value) * mean.detach().square()
    constant = constant_columns(spread, offset, given)
    return moved.to(value.dtype), spread.to(value.dtype), constant


def _each_at_its_own(value: Tensor, name: str, dtype: torch.dtype) -> tuple[Tensor, int]:
    wide = value.to(dtype)
    own = _exponents(wide)
    result, _, constant = _around_mean(_shifted(wide, [-e for e in own]), value.dtype)
    require_varying(constant, name, tuple(value.shape))
    fixed = constant.tolist()
    left = [e + moved for e, moved, still in zip(own, _exponents(result), fixed, strict=True) if not still]
    shift = [0 if still else e - max(left) for e, still in zip(own, fixed, strict=True)]
    return _shifted(result * ~constant, shift), max(left)


def _exponents(value: Tensor) -> list[int]:
    """Of each column, as `exponent_of`; 0 for zeros."""
    return [math.frexp(largest)[1] for largest in value.detach().abs().amax(0).tolist()]


def _shifted(value: Tensor, exponents: list[int]) -> Tensor:
    """Each column times 2^exponent, in two steps as in `scaled`."""
    for part in ([e // 2 for e in exponents], [e - e // 2 for e in exponents]):
        value = value * torch.tensor([math.ldexp(1.0, e) for e in part], dtype=value.dtype, device=value.device)
    return value


def constant_columns(spread: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Which features do not vary over the samples, [d].

    A column that is constant but for the last digit of its type, as one computed in another order in each batch is, has a spread
    of up to eps·|mean|, so it is judged against the mean, not against zero: otherwise CKA(constant, constant) is 1. What varies
    by more than its last digit varies. Half precisions are judged at float32's digit: a step of theirs is a difference.

    Args:
        spread: [d] sum over samples of the squared distance to the mean.
        offset: [d] n times the squared mean.
        dtype: the type that the representation came in.
    """
    return spread <= _eps(dtype) ** 2 * (spread + offset)


def require_varying(constant: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Checks that some feature varies.

    Raises:
        ValueError: none does.
    """
    if bool(constant.all()):
        raise ValueError(f"{name} of shape {shape} is constant over the samples: its CKA is 0/0")


@cache
def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def require_debiased_spread(own: float, biased: float, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Checks that the unbiased HSIC of a representation with itself is more than rounding.

    It is exactly zero when all samples are equally far apart, as those of an identity matrix are, or when one alone differs.

    Args:
        own: debiased HSIC of the representation with itself, in the normalisation of `biased`.
        biased: the same, biased.
        name: what the caller calls the representation.
        shape: its shape.
        dtype: the type of its Gram matrix.

    Raises:
        ValueError: it is zero.
    """
    # What rounds are the entries of the Gram, and the difference of which its norm was made.
    if own <= ((8 * _eps(dtype)) ** 2 * shape[0] + 64 * _eps(WIDE)) * biased:
        raise ValueError(
            f"{name} of shape {shape} has no debiased CKA: its unbiased HSIC with itself is 0, as it is where all samples "
            f"are equally far apart or one alone differs"
        )
