"""Latent problem classes of a mask row over the operand plane, and what of a problem they follow (paper A, 4.2; errata B1).

Extras are whatever a method says: what is not a class for each training problem is not drawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from cdbench.seeds import seed_for

_CELLS = 100
_MOST_CLASSES = 64
Integers = NDArray[np.int64]


class _Told(BaseModel):
    operands: Annotated[str, Field(pattern=r"^\d{1,9} \d{1,9}(;\d{1,9} \d{1,9})*$", max_length=4 << 20)]
    answers: Annotated[str, Field(pattern=r"^-?\d{1,10}( -?\d{1,10})*$", max_length=4 << 20)]
    classes: Annotated[str, Field(pattern=r"^\d{1,3}( \d{1,3})*$", max_length=1 << 20)]


@dataclass(frozen=True)
class ProblemClasses:
    """Operands [n, 2], answers [n] and class [n] of the training problems of a run."""

    operands: Integers
    answers: Integers
    classes: Integers


def problem_classes(extras: Mapping[str, Any]) -> ProblemClasses | None:
    """What a run says of its training problems; None where it says nothing that can be understood."""
    try:
        told = _Told.model_validate(extras.get("problem_classes"))
    except ValidationError:
        return None
    operands = np.array([pair.split(" ") for pair in told.operands.split(";")], dtype=np.int64)
    classes = np.array(told.classes.split(" "), dtype=np.int64)
    answers = np.array(told.answers.split(" "), dtype=np.int64)
    if not len(operands) == len(classes) == len(answers) or classes.max() >= _MOST_CLASSES:
        return None
    return ProblemClasses(operands, answers, classes)


def plane(found: ProblemClasses) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """[rows, columns] of the class that most problems of a cell have (second operand up, first across), NaN where there is none;
    and the largest operands. At most 100 x 100 cells."""
    largest = found.operands.max(0)
    cells = np.minimum(largest + 1, _CELLS)
    where = found.operands * cells // (largest + 1)
    votes = np.zeros((*cells, int(found.classes.max()) + 1))
    np.add.at(votes, (where[:, 0], where[:, 1], found.classes), 1)
    drawn = np.where(votes.sum(2) > 0, votes.argmax(2), np.nan)
    return drawn.T, (int(largest[0]), int(largest[1]))


_PARTS = 20
_SHUFFLES = 20
FEATURES: dict[str, Callable[[ProblemClasses], Integers]] = {
    "units digit of the first operand": lambda x: x.operands[:, 0] % 10,
    "units digit of the second operand": lambda x: x.operands[:, 1] % 10,
    "units digit of the answer": lambda x: np.abs(x.answers) % 10,
    "tens digit of the first operand": lambda x: x.operands[:, 0] // 10 % 10,
    "tens digit of the second operand": lambda x: x.operands[:, 1] // 10 % 10,
    "a carry or borrow at the units": lambda x: _carries(x),
    "size of the answer, in twentieths": lambda x: _parts(x.answers - x.answers.min()),
}


def _carries(found: ProblemClasses) -> Integers:
    """Whether the units of a sum carry, or those of a difference borrow, whichever the answers are."""
    a, b = found.operands.T
    borrows = np.where(a >= b, a % 10 < b % 10, b % 10 < a % 10)
    return np.asarray(np.where(found.answers == a + b, a % 10 + b % 10 >= 10, borrows), dtype=np.int64)


def _parts(values: Integers) -> Integers:
    return np.asarray(values * _PARTS // (int(values.max()) + 1))


def followed(found: ProblemClasses) -> dict[str, tuple[float, float]]:
    """Of each feature: the share of the classes' entropy that knowing it removes (Theil's U), 0 to 1, and the same of classes
    dealt out at random: a feature with many values explains some of anything."""
    draw = np.random.default_rng(seed_for("mask-classes", len(found.classes)))
    shuffled = [draw.permutation(found.classes) for _ in range(_SHUFFLES)]
    told = {}
    for name, feature in FEATURES.items():
        values = feature(found)
        chance = float(np.mean([_explained(values, classes) for classes in shuffled]))
        told[name] = (_explained(values, found.classes), chance)
    return told


def _explained(feature: Integers, classes: Integers) -> float:
    table = np.zeros((int(feature.max()) + 1, int(classes.max()) + 1))
    np.add.at(table, (feature, classes), 1)
    entropy = _entropy(table.sum(0))
    if entropy == 0:
        return 0.0
    left = sum(row.sum() / table.sum() * _entropy(row) for row in table if row.any())
    return float(1 - left / entropy)


def _entropy(counts: NDArray[np.float64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
