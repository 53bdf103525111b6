"""Whether the masks of two models have the same structure (paper A, 5.5; errata B7), against a permutation null.

Both models' masks belong to the same problem classes: row k of either is class k. Neurons of two models cannot be matched one by
one, so what is compared is what they say of the classes: which classes share neurons, and at what depth a class's neurons lie.
The null shuffles the classes of one model: what agreement there is between classes that have nothing to do with each other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from cdbench.seeds import seed_for

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
_EXACT_CLASSES = 8
_DRAWN = 10_000
_BLOCK = 1000
_MOST_CLASSES = 128
"""Beyond, ten thousand shuffles of all pairs would take minutes."""


@dataclass(frozen=True)
class Agreement:
    """A statistic of two models' masks beside what shuffled classes give.

    Attributes:
        value: of the classes as they are.
        null_mean: mean over the shuffles.
        p: one-sided, the share of shuffles that agree as well or better (the unshuffled one counts, so never 0).
        shuffles: how many; all there are for up to 8 classes.
        classes: how many were compared. A class without a neuron in one of the models says nothing of how the two agree; two
            such classes would look like agreement.
    """

    value: float
    null_mean: float
    p: float
    shuffles: int
    classes: int


def class_overlaps(on: Flags) -> Array:
    """Jaccard index of the neurons on in each two classes: [classes, neurons] -> [classes, classes]; 0 where both have none."""
    flags = on.astype(np.float64)
    both = flags @ flags.T
    sizes = flags.sum(1)
    union = sizes[:, None] + sizes[None] - both
    overlaps = np.zeros_like(both)
    np.divide(both, union, out=overlaps, where=union > 0)
    return overlaps


def layer_shares(on: Flags, layers: int) -> Array:
    """How a class's neurons are spread over the layers: [classes, layers * neurons] -> [classes, layers], rows sum to 1.

    A class without a neuron is spread evenly: it says nothing of depth.
    """
    counts = on.reshape(len(on), layers, -1).sum(2).astype(np.float64)
    total = counts.sum(1, keepdims=True)
    shares: Array = np.full_like(counts, 1 / layers)
    np.divide(counts, total, out=shares, where=total > 0)
    return shares


def depth_distance(a: Array, b: Array) -> Array:
    """1-Wasserstein distance over relative depth of each two rows, [n, layers], [m, other layers] -> [n, m].

    Layer i of L holds its share evenly over the depths from i/L to (i+1)/L, so models of different depth can be compared; 0 is
    the same spread, 1 all in the first layer's beginning against all at the last one's end.
    """
    grid = np.linspace(0, 1, math.lcm(a.shape[1], b.shape[1]) + 1)
    first, second = (
        np.array([np.interp(grid, np.linspace(0, 1, len(row) + 1), np.concatenate([[0.0], row.cumsum()])) for row in x])
        for x in (a, b)
    )
    gap = first[:, None] - second[None]
    # Between two points of the grid both curves are straight, and their difference changes its sign at most once.
    left, right, width = gap[..., :-1], gap[..., 1:], np.diff(grid)
    ends = np.abs(left) + np.abs(right)
    crossing = left * right < 0
    triangles = np.divide(left**2 + right**2, ends, out=np.zeros_like(ends), where=crossing)
    return np.asarray((np.where(crossing, triangles, ends) * width / 2).sum(-1))


def overlap_agreement(student: Flags, teacher: Flags) -> Agreement | None:
    """Correlation, over pairs of classes, of how much they overlap in the student and in the teacher.

    None where one of the models has the same overlap for all pairs, or fewer than 3 classes or more than 128 have neurons in
    both.
    """
    student, teacher = _used(student, teacher)
    if not 3 <= len(student) <= _MOST_CLASSES:
        return None
    first, second = class_overlaps(student), class_overlaps(teacher)
    upper = np.triu_indices(len(first), 1)
    x = first[upper]
    if np.ptp(x) == 0 or np.ptp(second[upper]) == 0:
        return None
    centred = (x - x.mean()) / np.linalg.norm(x - x.mean())

    def correlation(orders: NDArray[np.int64]) -> Array:
        # Shuffling the classes keeps mean and norm of the second.
        y = second[orders[:, upper[0]], orders[:, upper[1]]]
        y = y - y.mean(1, keepdims=True)
        return np.asarray(y @ centred / np.linalg.norm(y, axis=1))

    return _against_null(correlation, len(first))


def depth_agreement(student: Flags, teacher: Flags, layers: tuple[int, int]) -> Agreement | None:
    """Mean depth distance of a class's neurons in the two models, with its sign turned: more is alike.

    `layers` is the student's and the teacher's number. None where fewer than 2 classes or more than 128 have neurons in both.
    """
    student, teacher = _used(student, teacher)
    if not 2 <= len(student) <= _MOST_CLASSES:
        return None
    distances = depth_distance(layer_shares(student, layers[0]), layer_shares(teacher, layers[1]))
    rows = np.arange(len(distances))
    return _against_null(lambda orders: -np.asarray(distances[rows, orders].mean(1)), len(distances))


def _used(student: Flags, teacher: Flags) -> tuple[Flags, Flags]:
    """The classes that have neurons in both models."""
    used = student.any(1) & teacher.any(1)
    return student[used], teacher[used]


def _against_null(statistic: Callable[[NDArray[np.int64]], Array], classes: int) -> Agreement:
    """`statistic` takes [n, classes], an order of the teacher's classes a row, and gives [n]."""
    own = np.arange(classes)
    if classes <= _EXACT_CLASSES:
        orders = np.array(list(permutations(range(classes))))
    else:
        draw = np.random.default_rng(seed_for("mask-agreement", classes))
        orders = np.array([own, *(draw.permutation(classes) for _ in range(_DRAWN - 1))])
    value = float(statistic(own[None])[0])
    null = np.concatenate([statistic(orders[i : i + _BLOCK]) for i in range(0, len(orders), _BLOCK)])
    as_good = null >= value - 1e-12  # ties are ties, whatever the last bit says
    return Agreement(value, float(null.mean()), float(as_good.mean()), len(null), classes)
