"""Predictions and what two scoring rules make of them. Pure text: no model, no torch.

Both rules stand in paper A's code: the first integer after the "=", and `strict`, where the whole continuation is the
integer. One greedy generation serves both.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cdbench.stats import Proportion, wilson

FIRST_INTEGER = r"^\s*(-?\d+)"
STRICT = r"^\s*(-?\d+)\s*$"
NO_ANSWER = "[none]"


@dataclass(frozen=True)
class Prediction:
    """One problem's greedy continuation and what the two rules make of it; NO_ANSWER where there is no integer."""

    prompt: str
    answer: str
    text: str
    first_integer: str
    strict: str

    @property
    def correct(self) -> bool:
        """By the first integer."""
        return self.first_integer == self.answer

    @property
    def strictly_correct(self) -> bool:
        """By the whole continuation."""
        return self.strict == self.answer


def extract(text: str, rule: str) -> str:
    """The integer that a rule finds in a continuation, or NO_ANSWER."""
    match = re.search(rule, text)
    return match[1] if match else NO_ANSWER


def score(prompt: str, answer: str, text: str) -> Prediction:
    """Applies both rules to one continuation."""
    return Prediction(prompt, answer, text, extract(text, FIRST_INTEGER), extract(text, STRICT))


def dump_predictions(splits: Mapping[str, Sequence[Prediction]]) -> str:
    """JSON lines, one prediction each, with the name of its split."""
    return "".join(
        json.dumps({"split": split, **asdict(prediction)}, ensure_ascii=False) + "\n"
        for split, predictions in splits.items()
        for prediction in predictions
    )


def parse_predictions(text: str) -> dict[str, list[Prediction]]:
    """What `dump_predictions` wrote. Scores again from the text: a stored verdict counts for nothing."""
    splits: dict[str, list[Prediction]] = {}
    for line in text.splitlines():
        row: dict[str, Any] = json.loads(line)
        splits.setdefault(row["split"], []).append(score(row["prompt"], row["answer"], row["text"]))
    return splits


def count(predictions: dict[str, list[Prediction]]) -> dict[str, Any]:
    """Accuracies and error counts from predictions; needs no model."""
    test = predictions["test"]
    no_answer = sum(p.first_integer == NO_ANSWER for p in test)
    accuracy = _share([p.correct for p in test])
    return {
        "accuracy": accuracy,
        "strict": _share([p.strictly_correct for p in test]),
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
