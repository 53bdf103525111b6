"""Functional layer pairing by normalised ablation impact (paper A, 4.1.3; errata A7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from cdbench.circuits.ablation import normalise


@dataclass(frozen=True)
class LayerPairing:
    """Who is paired with whom, and how sure that is.

    Attributes:
        pairs: (student layer, teacher layer), most important student layer first.
        ties: student layer -> all teacher layers at the smallest distance, where there is more than one.
        shared: teacher layers that are the partner of more than one student layer.
    """

    pairs: tuple[tuple[int, int], ...]
    ties: dict[int, tuple[int, ...]]
    shared: tuple[int, ...]


def pair_layers(
    student: Sequence[float],
    teacher: Sequence[float],
    top_k: int,
    how: Literal["nearest_impact", "one_to_one"] = "nearest_impact",
) -> LayerPairing:
    """Pairs the `top_k` student layers of largest impact with teacher layers of closest normalised impact.

    Ties are broken by nearest relative depth, then by the lower index. `one_to_one` is the assignment of least total
    distance in which no teacher layer is used twice.
    """
    s, t = normalise(student), normalise(teacher)
    chosen = sorted(range(len(s)), key=lambda layer: (-s[layer], layer))[: min(top_k, len(s))]
    if how == "one_to_one" and len(chosen) > len(t):
        chosen = chosen[: len(t)]

    def depth_gap(a: int, b: int) -> float:
        return abs((a + 1) / len(s) - (b + 1) / len(t))

    def nearest(a: int) -> tuple[int, ...]:
        # Impacts are multiples of 1/n, so equal distances are exact but for rounding.
        gaps = [abs(s[a] - value) for value in t]
        tied = [b for b, gap in enumerate(gaps) if gap <= min(gaps) + 1e-9]
        return tuple(sorted(tied, key=lambda b: (depth_gap(a, b), b)))

    candidates = {a: nearest(a) for a in chosen}
    if how == "nearest_impact":
        pairs = tuple((a, candidates[a][0]) for a in chosen)
    else:
        cost = np.array([[abs(s[a] - t[b]) + 1e-6 * depth_gap(a, b) for b in range(len(t))] for a in chosen])
        rows, columns = linear_sum_assignment(cost)
        pairs = tuple((chosen[i], int(j)) for i, j in zip(rows, columns, strict=True))
    partners = [b for _, b in pairs]
    return LayerPairing(
        pairs=pairs,
        ties={a: tied for a, tied in candidates.items() if len(tied) > 1},
        shared=tuple(sorted({b for b in partners if partners.count(b) > 1})),
    )
