"""The guard where activations are collected: the rows of a CKA must be independent samples."""

import torch
from torch import Tensor


def sample_rows(hidden: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """One row per prompt, at one position of each.

    Args:
        hidden: [b, t, d] activations.
        mask: [b, t] 1 for a token of the prompt, 0 for padding, on either side.
        positions: [b] where to read each prompt, for example its last token.

    Returns:
        [b, d], with gradient to `hidden`.

    Raises:
        ValueError: wrong shapes; a position outside, or on padding; or two prompts with the same row, which is one prompt
            twice, or a place where the model cannot have seen them differ.
    """
    if hidden.ndim != 3 or not hidden.is_floating_point():
        raise ValueError(
            f"hidden must be floating-point [prompts, positions, features], got shape {tuple(hidden.shape)}"
        )
    b, t, _ = hidden.shape
    if tuple(mask.shape) != (b, t):
        raise ValueError(f"mask must be [prompts, positions] = {(b, t)}, got shape {tuple(mask.shape)}")
    if tuple(positions.shape) != (b,) or positions.is_floating_point():
        raise ValueError(
            f"positions must be one whole number for each of {b} prompts, got shape {tuple(positions.shape)}"
        )
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
    """Checks that no two rows are the same.

    Raises:
        ValueError: two rows agree in every bit, naming them.
    """
    _, first, counts = torch.unique(rows.detach(), dim=0, return_inverse=True, return_counts=True)
    if bool((counts > 1).any()):
        twice = (first == int((counts > 1).nonzero()[0])).nonzero().flatten().tolist()
        raise ValueError(
            f"rows {twice[0]} and {twice[1]} of {name} are the same: rows must be independent samples, one a prompt, and "
            f"this is a prompt that stands twice, padding, or a position before the prompts differ"
        )
