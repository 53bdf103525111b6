"""Predictions and what the scoring rules make of them. Pure text: no model, no torch.

Two rules stand in paper A's code: the first integer after the "=", and `strict`, where the whole continuation is the
integer. A worked solution (`circuits.solutions`) begins with another integer than its answer: there the answer is what
follows the "=" that stands alone, after the columns. One greedy generation serves all.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from cdbench.files import json_lines, parse_json_lines
from cdbench.stats import Proportion, wilson

WORKS = r"^\s*\d+[+-]\d"
"""How a worked solution begins."""
WORKED_TOKENS = 64
"""How many tokens whoever works a problem out is given, at least: any built-in task's longest worked solution, digit by digit."""
_COLUMN = r"\d+(?:[+-]\d+)+=-?\d+"
WORKED = rf"^\s*{_COLUMN}(?:\s+{_COLUMN})*\s+=(-?\d+)"
ANSWER = rf"{WORKED}|^(?!\s*{_COLUMN})\s*(-?\d+)"
"""The answer that is given: after a worked solution, else the first integer. One that was begun and not ended has none."""
STRICT = rf"{WORKED}\s*$|^\s*(-?\d+)\s*$"
NO_ANSWER = "[none]"


class Prediction(NamedTuple):
    """One problem's greedy continuation and what the rules make of it; NO_ANSWER where there is no integer."""

    prompt: str
    answer: str
    text: str
    given: str
    strict: str

    @property
    def correct(self) -> bool:
        """By the answer that is given."""
        return self.given == self.answer

    @property
    def strictly_correct(self) -> bool:
        """By the whole continuation."""
        return self.strict == self.answer

    @property
    def worked(self) -> bool:
        """Whether the answer stands at the end of a worked solution."""
        return re.search(WORKED, self.text) is not None


@lru_cache(maxsize=1 << 16)
def extract(text: str, rule: str) -> str:
    """The integer that a rule finds in a continuation, or NO_ANSWER. Kept: rows of a study say the same again and again."""
    match = re.search(rule, text)
    return next(filter(None, match.groups())) if match else NO_ANSWER


def score(prompt: str, answer: str, text: str) -> Prediction:
    """Applies the rules to one continuation."""
    return Prediction(prompt, answer, text, extract(text, ANSWER), extract(text, STRICT))


def dump_predictions(splits: Mapping[str, Sequence[Prediction]]) -> str:
    """JSON lines, one prediction each, with the name of its split."""
    return json_lines(
        {"split": split, **prediction._asdict()} for split, predictions in splits.items() for prediction in predictions
    )


def parse_predictions(text: str) -> dict[str, list[Prediction]]:
    """What `dump_predictions` wrote. Scores again from the text: a stored verdict counts for nothing."""
    splits: dict[str, list[Prediction]] = {}
    for row in parse_json_lines(text):
        splits.setdefault(row["split"], []).append(score(row["prompt"], row["answer"], row["text"]))
    return splits


def count(predictions: dict[str, list[Prediction]]) -> dict[str, Any]:
    """Accuracies and error counts from predictions; needs no model."""
    test = predictions["test"]
    no_answer = sum(p.given == NO_ANSWER for p in test)
    accuracy = _share([p.correct for p in test])
    return {
        "accuracy": accuracy,
        "strict": _share([p.strictly_correct for p in test]),
        "worked": sum(p.worked for p in test),
        "format_errors": no_answer,
        "arithmetic_errors": accuracy.n - accuracy.k - no_answer,
        "length_shift": {
            name.removeprefix("shift_"): _share([p.correct for p in rows])
            for name, rows in predictions.items()
            if name.startswith("shift_")
        },
    }


def _share(hits: list[bool]) -> Proportion:
    return wilson(sum(hits), len(hits))
