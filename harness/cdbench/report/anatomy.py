"""How answers are wrong: no integer, a carry, one digit, several; and how often, by the number of carries in the problem.

Read from the predictions alone. Plain sums and differences (`27+64=`) are worked out digit by digit; of other prompts only what
the two integers show is told.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cdbench.predictions import NO_ANSWER, Prediction

Answers = Mapping[str, Sequence[Prediction]]
"""What a run said, split by split."""
KINDS = {
    "no integer": "the continuation begins with no integer, or as a worked solution that does not end (errata A12)",
    "carry": "off by exactly 10, 100, …, where a carry (or borrow) was dropped, or one made up",
    "units": "only the units digit is wrong",
    "tens": "only the tens digit is wrong, and no carry of a plain sum or difference explains it",
    "hundreds and up": "only one digit above the tens is wrong, and no such carry explains it",
    "sign": "the right number with the wrong sign",
    "written otherwise": "the right number, not written as the answer is: 091 for 91",
    "several digits": "more than one digit is wrong, or the answer is no integer",
}
_PLAIN = re.compile(r"\s*(\d+)\s*([+-])\s*(\d+)\s*=\s*")
_LONGEST = 400
"""Digits of an integer that are looked at; beyond, it is an answer of several wrong digits."""


@dataclass(frozen=True)
class Anatomy:
    """Of a row.

    Attributes:
        kinds: mean number of answers a run of each kind, in the order of KINDS.
        problems: held-out problems.
        by_carries: number of carries -> (problems, accuracy over seeds); empty where the prompts are no plain arithmetic.
    """

    kinds: dict[str, float]
    problems: int
    by_carries: dict[int, tuple[int, float]]


@lru_cache(maxsize=1 << 14)  # every run of a study is asked the same problems
def carries(prompt: str) -> frozenset[int] | None:
    """Positions (1: tens) into which a sum carries, or from which a difference borrows; None of what is not plain arithmetic."""
    match = _PLAIN.fullmatch(prompt)
    if match is None or len(prompt) > _LONGEST:
        return None
    a, b = int(match[1]), int(match[3])
    if match[2] == "-":
        a, b = max(a, b), min(a, b)
        return frozenset(k for k in range(1, len(str(a)) + 1) if a % 10**k < b % 10**k)
    return frozenset(k for k in range(1, len(str(a + b)) + 1) if a % 10**k + b % 10**k >= 10**k)


@lru_cache(maxsize=1 << 16)  # rows of a study say the same again and again
def kind_of(prediction: Prediction) -> str | None:
    """One of KINDS; None where the answer is right."""
    if prediction.correct:
        return None
    if prediction.given == NO_ANSWER:
        return "no integer"
    if max(map(len, (prediction.given, prediction.answer))) > _LONGEST:
        return "several digits"
    try:
        said, truth = int(prediction.given), int(prediction.answer)
    except ValueError:  # a task whose answers are no integers
        return "several digits"
    if said == truth:
        return "written otherwise"
    if said == -truth:
        return "sign"
    if (said < 0) == (truth < 0) and _is_carry(abs(said) - abs(truth), prediction.prompt):
        return "carry"
    return _digits(said, truth)


def _is_carry(gap: int, prompt: str) -> bool:
    into = carries(prompt)
    power = len(str(abs(gap))) - 1
    if into is None or power < 1 or abs(gap) != 10**power:
        return False
    # A dropped carry makes the sum too small, a dropped borrow the difference too large.
    dropped = gap < 0 if "+" in prompt else gap > 0
    return dropped == (power in into)


def _digits(said: int, truth: int) -> str:
    if (said < 0) != (truth < 0):
        return "several digits"
    width = max(len(str(abs(said))), len(str(abs(truth))))
    pairs = zip(reversed(f"{abs(said):0{width}}"), reversed(f"{abs(truth):0{width}}"), strict=True)
    wrong = [place for place, (a, b) in enumerate(pairs) if a != b]
    if len(wrong) != 1:
        return "several digits"
    return ("units", "tens", "hundreds and up")[min(wrong[0], 2)]


def anatomy(answers: Sequence[Answers], split: str = "test") -> Anatomy | None:
    """Of the runs of a row; None where none was evaluated on that set."""
    told = [each[split] for each in answers if each.get(split)]
    if not told:
        return None
    found = [kind_of(prediction) for run in told for prediction in run]
    by_carries: dict[int, list[float]] = {}
    for run in told:
        for prediction in run:
            if (into := carries(prediction.prompt)) is not None:
                by_carries.setdefault(len(into), []).append(float(prediction.correct))
    return Anatomy(
        kinds={kind: found.count(kind) / len(told) for kind in KINDS},
        problems=len(told[0]),
        by_carries={n: (len(hits) // len(told), float(np.mean(hits))) for n, hits in sorted(by_carries.items())},
    )
