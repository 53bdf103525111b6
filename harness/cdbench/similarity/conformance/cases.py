"""The inputs of the battery. Entries are multiples of 1/64, so that a small counterexample can be copied exactly."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Two representations: Gaussian with decaying column scales, y sharing `mix` of x, a mean of `offset` σ.

    Raw floats are never drawn: they shrink to constant, huge or denormal matrices, which are no counterexamples.
    """

    n: int
    dx: int
    dy: int
    seed: int = 0
    decay: float = 0.0
    mix: float = 0.0
    offset: float = 0.0

    def arrays(self) -> tuple[Tensor, Tensor]:
        """x [n, dx] and y [n, dy], float64, exact in float32."""
        draw = np.random.default_rng(self.seed)
        x = draw.standard_normal((self.n, self.dx)) * np.arange(1, self.dx + 1) ** -self.decay
        y = draw.standard_normal((self.n, self.dy)) * np.arange(1, self.dy + 1) ** -self.decay
        shared = min(self.dx, self.dy)
        y[:, :shared] += self.mix * x[:, :shared]
        x += self.offset * draw.standard_normal(self.dx)
        y += self.offset * draw.standard_normal(self.dy)
        return torch.from_numpy(np.round(x * 64) / 64), torch.from_numpy(np.round(y * 64) / 64)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same in a type."""
        x, y = self.arrays()
        return x.to(dtype), y.to(dtype)

    def generator(self) -> np.random.Generator:
        """Randomness of what a law does to the case, apart from the case's own."""
        return np.random.default_rng([self.seed, 1])

    def text(self) -> str:
        """The case in words, and its numbers where they are few."""
        words = [f"n={self.n}, d1={self.dx}, d2={self.dy}, seed {self.seed}"]
        words += [f"mean {self.offset:g}σ"] if self.offset else []
        words += [f"y shares {self.mix:g}·x"] if self.mix else []
        words += [f"column scales j^-{self.decay:g}"] if self.decay else []
        if self.n * (self.dx + self.dy) > 40:
            return ", ".join(words)
        x, y = (value.tolist() for value in self.arrays())
        return f"{', '.join(words)}: x = {x}, y = {y}"


@st.composite
def cases(draw: st.DrawFn, max_offset: float = 1.0, least: int = 5) -> Case:
    """Cases of either shape (n < d, n > d), simplest first."""
    one_of: Any = st.sampled_from
    return Case(
        n=draw(st.integers(least, 40)),
        dx=draw(st.integers(1, 48)),
        dy=draw(st.integers(1, 48)),
        seed=draw(st.integers(0, 999)),
        decay=draw(one_of([0.0, 0.5, 1.0])),
        mix=draw(one_of([0.0, 0.3, 1.0, 3.0])),
        offset=draw(one_of(sorted({0.0, min(1.0, max_offset), max_offset}))),
    )


def orthogonal(draw: np.random.Generator, rows: int, columns: int) -> Tensor:
    """[rows, columns] with orthonormal rows (rows <= columns), Haar-distributed, float64."""
    q, r = np.linalg.qr(draw.standard_normal((columns, rows)))
    return torch.from_numpy((q * np.sign(np.diag(r))).T.copy())


def tolerance(x: Tensor, y: Tensor, debiased: bool, dtype: torch.dtype) -> float:
    """64 eps, times the offset (mean over spread) of both, times what debiasing cancels in both.

    The debiased norms are differences: κ = ‖K‖ / ‖U(K)‖ says how many digits go into them.
    """
    offsets, cancelled = 0.0, 1.0
    for value in (x, y):
        value = value.double()
        centred = value - value.mean(0)
        offsets += 1 + float(value.mean(0).norm()) * len(value) ** 0.5 / float(centred.norm())
        cancelled *= _cancelled(centred) if debiased else 1.0
    return 64 * torch.finfo(dtype).eps * offsets * cancelled


def _cancelled(centred: Tensor) -> float:
    k = centred @ centred.T
    n = len(k)
    off = ~torch.eye(n, dtype=torch.bool)
    hollow = k * off
    means = hollow.sum(1) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    u = (hollow - means[:, None] - means[None]) * off
    return max(1.0, float(k.norm() / u.norm()))
