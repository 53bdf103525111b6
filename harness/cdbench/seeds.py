"""Randomness is an argument: every generator is made from a named scope, and the global ones are never touched."""

import hashlib
import json
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def digest(value: object, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def seed_for(*scope: str | int) -> int:
    """A 63-bit seed from a scope such as ("order", spec_seed, epoch). Other scope, independent stream."""
    return int(digest(list(scope)), 16) >> 1


def rng_for(*scope: str | int) -> random.Random:
    """A Python generator of its own for this scope."""
    return random.Random(seed_for(*scope))


def generator_for(*scope: str | int) -> "torch.Generator":
    """A torch CPU generator of its own for this scope. On a GPU draw on the CPU and move: the stream stays the same."""
    import torch

    return torch.Generator().manual_seed(seed_for(*scope))
