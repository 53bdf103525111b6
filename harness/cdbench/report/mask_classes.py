"""Latent problem classes of a mask row over the operand plane, and what of a problem they follow (paper A, 4.2; errata B1).

Extras are whatever a method says: what is not a class for each training problem is not drawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

_CELLS = 100
_MOST_CLASSES = 64
Integers = NDArray[np.int64]


class _Told(BaseModel):
    operands: Annotated[str, Field(pattern=r"^\d{1,9} \d{1,9}(;\d{1,9} \d{1,9})*$", max_length=4 << 20)]
    classes: Annotated[str, Field(pattern=r"^\d{1,3}( \d{1,3})*$", max_length=1 << 20)]


@dataclass(frozen=True)
class ProblemClasses:
    """Operands [n, 2] and class [n] of the training problems of a run."""

    operands: Integers
    classes: Integers


def problem_classes(extras: Mapping[str, Any]) -> ProblemClasses | None:
    """What a run says of its training problems; None where it says nothing that can be understood."""
    try:
        told = _Told.model_validate(extras.get("problem_classes"))
    except ValidationError:
        return None
    operands = np.array([pair.split(" ") for pair in told.operands.split(";")], dtype=np.int64)
    classes = np.array(told.classes.split(" "), dtype=np.int64)
    if len(operands) != len(classes) or classes.max() >= _MOST_CLASSES:
        return None
    return ProblemClasses(operands, classes)


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

FEATURES: dict[str, Callable[[Integers, Integers], Integers]] = {
    "units digit of the first operand": lambda a, b: a % 10,
    "units digit of the second operand": lambda a, b: b % 10,
    "units digit of the sum": lambda a, b: (a + b) % 10,
    "a carry out of the units": lambda a, b: (a % 10 + b % 10) // 10,
    "tens digit of the first operand": lambda a, b: a // 10 % 10,
    "tens digit of the second operand": lambda a, b: b // 10 % 10,
    "size of the sum, in twentieths": lambda a, b: (a + b) * _PARTS // (int((a + b).max()) + 1),
}


def followed(found: ProblemClasses) -> dict[str, float]:
    """Of each feature: the share of the classes' entropy that knowing it removes (Theil's U), 0 to 1."""
    a, b = found.operands.T
    return {name: _explained(feature(a, b), found.classes) for name, feature in FEATURES.items()}


def _explained(feature: Integers, classes: Integers) -> float:
    entropy = _entropy(classes)
    if entropy == 0:
        return 0.0
    values, counts = np.unique(feature, return_counts=True)
    left = sum(
        count / len(classes) * _entropy(classes[feature == value]) for value, count in zip(values, counts, strict=True)
    )
    return float(1 - left / entropy)


def _entropy(values: Integers) -> float:
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log(shares)).sum())
