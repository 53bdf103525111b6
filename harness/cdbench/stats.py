"""A proportion and its interval, as every record has it. What is concluded from several runs is in `inference`."""

import math

from pydantic import BaseModel, ConfigDict

_Z95 = 1.959963984540054


class Proportion(BaseModel):
    """k of n, with its 95 % Wilson score interval (Wilson 1927)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    k: int
    n: int
    value: float
    low: float
    high: float


def wilson(k: int, n: int) -> Proportion:
    """The Wilson interval of k successes in n.

    Raises:
        ValueError: n is not positive or k is not between 0 and n.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"a proportion needs 0 <= k <= n and n > 0, got {k} of {n}")
    p = k / n
    low, high = score_interval(p, n, _Z95)
    return Proportion(k=k, n=n, value=p, low=low, high=high)


def score_interval(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share p of n, at `z` standard errors."""
    scale = 1 + z**2 / n
    centre = (p + z**2 / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n * n)) / scale
    # At the ends the limits are exactly 0 and 1; rounding must not put the value outside its own interval.
    low, high = (0.0 if p == 0 else centre - half), (1.0 if p == 1 else centre + half)
    return min(p, low), max(p, high)
