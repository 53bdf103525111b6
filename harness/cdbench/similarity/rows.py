"""The guard where activations are collected: the rows of a CKA must be independent samples."""

import torch
from torch import Tensor

_SAME = 1e-5
"""Two rows nearer than this part of what other rows are apart are one prompt, computed twice."""


def sample_rows(hidden: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """One row per prompt, at one position of each.

    Args:
        hidden: [b, t, d] activations.
        mask: [b, t] 1 for a token of the prompt, 0 for padding, on either side.
        positions: [b] where to read each prompt, for example its last token.

    Returns:
        [b, d], with gradient to `hidden`.

    Raises:
        ValueError: wrong shapes or types; NaN or infinity; a position outside, or on padding; or two prompts with the same
            row up to rounding, which is one prompt twice, or a place where the model cannot have seen them differ.
    """
    for name, value in (("hidden", hidden), ("mask", mask)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if hidden.ndim != 3 or not hidden.is_floating_point() or 0 in hidden.shape:
        raise ValueError(
            f"hidden must be floating-point [prompts, positions, features], got shape {tuple(hidden.shape)}"
        )
    b, t, _ = hidden.shape
    if tuple(mask.shape) != (b, t) or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"mask must be [prompts, positions] = {(b, t)} of zeros and ones, got shape {tuple(mask.shape)}"
        )
    whole = isinstance(positions, Tensor) and positions.dtype in (torch.int64, torch.int32, torch.int16)
    if not whole or tuple(positions.shape) != (b,):
        raise ValueError(f"positions must be an integer tensor [{b}], one position a prompt, got {positions!r:.60}")
    positions = positions.long()
    outside = (positions < 0) | (positions >= t)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"prompt {row} is read at position {int(positions[row])}, outside its {t} positions")
    every = torch.arange(b, device=hidden.device)
    padded = mask[every, positions] == 0
    if bool(padded.any()):
        row = int(padded.nonzero()[0])
        raise ValueError(f"prompt {row} is read at position {int(positions[row])}, which is padding, not a sample")
    rows = hidden[every, positions]
    require_distinct(rows, "hidden")
    return rows


def require_distinct(rows: Tensor, name: str) -> None:
    """Checks that no two rows are the same, up to what computing one prompt in two batches changes.

    Raises:
        ValueError: two rows agree, naming them; or NaN or infinity.
    """
    values = rows.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} of shape {tuple(rows.shape)} holds NaN or infinity")
    if len(values) < 2:
        return
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(float("inf"))
    finite = distances[distances.isfinite()]
    # Of rows that are apart: where most stand twice, the median of all is that of copies. Two rows have but their size.
    apart = finite[finite > _SAME * finite.max()]
    usual = apart.median() if len(values) > 2 and len(apart) else values.norm(dim=1).max()
    nearest = distances.argmin()
    one, two = divmod(int(nearest), len(values))
    if distances[one, two] <= _SAME * usual or _in_last_digits(rows[one], rows[two]):
        raise ValueError(
            f"rows {one} and {two} of {name} are the same: rows must be independent samples, one a prompt, and this is a "
            f"prompt that stands twice, padding, or a position before the prompts differ"
        )


def _in_last_digits(one: Tensor, two: Tensor) -> bool:
    """Whether no entry differs by more than a step of its type; asked of half precisions, whose steps are large."""
    if one.dtype.itemsize != 2:
        return False
    first, second = one.detach().double(), two.detach().double()
    steps = torch.finfo(one.dtype).eps * torch.maximum(first.abs(), second.abs())
    return bool(((first - second).abs() <= steps).all())
