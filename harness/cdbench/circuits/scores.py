"""Importance scores with what is needed to say how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from cdbench.circuits.graph import Level
from cdbench.seeds import generator_for

_DRAWS = 1000
LEAST_ROWS = 4
"""Fewer rows, or problems, have no spread to speak of: no interval is given."""


@dataclass(frozen=True)
class Scores:
    """Scores of all items of a level, row by row: a row a problem (in all its wordings), or a row the mean over a fold of them.

    Attributes:
        rows: [r, nodes], [r, nodes, readers] or [r, nodes, width].
        sizes: [r] how many prompts a row is the mean of.
    """

    level: Level
    rows: Tensor
    sizes: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over all prompts: what ranks the items."""
        return self.mean_of(torch.arange(len(self.rows)))

    def mean_of(self, chosen: Tensor) -> Tensor:
        """The mean over the prompts of some rows; a row may stand there more than once. In float64."""
        weights = self.sizes[chosen].double()
        flat: Tensor = (weights / weights.sum()) @ self.rows[chosen].double().flatten(1)
        return flat.reshape(self.rows.shape[1:])

    def interval(self, items: Tensor | None = None, level: float = 0.95) -> tuple[Tensor, Tensor] | None:
        """Bootstrap percentiles of the mean over other problems (1,000 draws of rows), of some items or of all.

        `items` are places in the flattened mean, whose limits come flat; else the limits have the shape of the mean. None for
        fewer than 4 rows: so few have no spread to speak of.
        """
        if len(self.rows) < LEAST_ROWS:
            return None
        flat = self.rows.flatten(1).double()
        flat = flat if items is None else flat[:, items]
        draw = generator_for("bootstrap", len(self.rows))
        chosen = torch.randint(len(self.rows), (_DRAWS, len(self.rows)), generator=draw)
        counts = torch.zeros(_DRAWS, len(self.rows), dtype=torch.float64)
        counts.scatter_add_(1, chosen, self.sizes.double()[chosen])
        means = (counts / counts.sum(1, keepdim=True)) @ flat
        tail = (1 - level) / 2
        low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype), dim=0)
        return (
            (low, high) if items is not None else (low.reshape(self.rows.shape[1:]), high.reshape(self.rows.shape[1:]))
        )

    def stability(self, exists: Tensor, splits: int = 20) -> float:
        """Mean Spearman rank correlation between the scores of two random halves of the rows; NaN for fewer than 4 rows.

        `exists` [nodes, ...] bool says which items count. 1 means that half of the problems rank the items as the other half
        does; 0 that the ranking is noise.
        """
        if len(self.rows) < LEAST_ROWS:
            return float("nan")
        draw, found = generator_for("halves", len(self.rows)), []
        for _ in range(splits):
            order = torch.randperm(len(self.rows), generator=draw)
            half = len(order) // 2
            found.append(spearman(self.mean_of(order[:half])[exists], self.mean_of(order[half:])[exists]))
        return sum(found) / len(found)


def stability_over(draws: Sequence[Scores], exists: Tensor) -> float:
    """Mean Spearman rank correlation between the scores under each two draws of the counterfactuals; NaN for fewer than 2.

    `exists` as in `Scores.stability`, which asks the same of the problems.
    """
    means = [draw.mean[exists] for draw in draws]
    found = [spearman(one, other) for one, other in combinations(means, 2)]
    return sum(found) / len(found) if found else math.nan


def single(level: Level, scores: Tensor) -> Scores:
    """Scores of which nothing but the value is known."""
    return Scores(level, scores[None], torch.ones(1, dtype=torch.long))


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of two vectors, ties at their mean rank; NaN where one of them is constant."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = a.norm() * b.norm()
    return float((a @ b) / norm) if norm > 0 else float("nan")


def _ranks(x: Tensor) -> Tensor:
    _, place, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[place]
    return ranks
