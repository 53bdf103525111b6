"""Intervals, paired tests, corrections. Pure functions of arrays; scipy where it is right, ours where not."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Hits = NDArray[np.float64]
_Z95 = 1.959963984540054
_RESAMPLES = 4000


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
    scale = 1 + _Z95**2 / n
    centre = (p + _Z95**2 / (2 * n)) / scale
    half = _Z95 * math.sqrt(p * (1 - p) / n + _Z95**2 / (4 * n * n)) / scale
    # At the ends the limits are exactly 0 and 1; rounding must not put the value outside its own interval.
    low, high = (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)
    return Proportion(k=k, n=n, value=p, low=low, high=high)


@lru_cache(maxsize=4)
def _resamples(seeds: int, problems: int, seed: int) -> tuple[Hits, Hits]:
    """The weights of seeds and problems in each resample, [resamples, seeds] and [resamples, problems].

    A mean over a resample is then one product. Rows of one study share them: drawing them is most of the work.
    """
    rng = np.random.default_rng(seed)
    over_seeds = rng.multinomial(seeds, [1 / seeds] * seeds, _RESAMPLES) / seeds
    over_problems = rng.multinomial(problems, [1 / problems] * problems, _RESAMPLES) / problems
    return over_seeds, over_problems


def two_level_interval(hits: Hits, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over seeds and problems, resampling both: hits [seeds, problems].

    With few seeds the spread between them is understated (three give three values to draw from); the report says so.
    """
    over_seeds, over_problems = _resamples(*hits.shape, seed)
    means = np.einsum("rp,rp->r", over_seeds @ hits, over_problems)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired_permutation(a: Hits, b: Hits, seed: int = 0) -> float:
    """Two-sided sign-flip test of the mean difference over problems; a, b are [seeds, problems].

    The unit is the problem, averaged over its seeds; the seeds themselves are taken as given.
    """
    difference = b.mean(0) - a.mean(0)
    difference = difference[difference != 0]
    if difference.size == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (_RESAMPLES, difference.size), dtype=np.int8) * 2 - 1
    flipped = np.abs(signs @ difference)
    # Ties with the observed value count; the comparison must not hang on the last bit of a sum.
    extreme = int((flipped >= abs(difference.sum()) - 1e-9).sum())
    return (extreme + 1) / (_RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    running, adjusted = 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
