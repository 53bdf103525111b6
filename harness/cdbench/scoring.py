"""Scores from stored predictions: no model, no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdbench import record
from cdbench.errors import UserError
from cdbench.predictions import Prediction, count, parse_predictions
from cdbench.record import Record
from cdbench.stats import Proportion


@dataclass(frozen=True)
class Counts:
    """What `predictions.count` found."""

    accuracy: Proportion
    strict: Proportion
    worked: int
    format_errors: int
    arithmetic_errors: int
    length_shift: dict[str, Proportion]

    def agrees(self, done: Record) -> bool:
        """Whether the record says the same numbers."""
        m = done.metrics
        return m is not None and all(getattr(self, name) == getattr(m, name) for name in self.__dataclass_fields__)

    def text(self) -> str:
        """For people."""
        lines = [
            f"accuracy (answer given)   {share(self.accuracy)}",
            f"accuracy (strict)         {share(self.strict)}",
            f"worked solutions          {self.worked}",
            f"arithmetic errors         {self.arithmetic_errors}",
            f"format errors             {self.format_errors}",
        ]
        lines += [f"length shift, {name:<12} {share(value)}" for name, value in self.length_shift.items()]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "accuracy": self.accuracy.model_dump(),
            "strict": self.strict.model_dump(),
            "worked": self.worked,
            "format_errors": self.format_errors,
            "arithmetic_errors": self.arithmetic_errors,
            "length_shift": {name: value.model_dump() for name, value in self.length_shift.items()},
        }


def share(value: Proportion) -> str:
    """ "96.3 % [94.9, 97.3] (963 of 1000)"."""
    return f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}] ({value.k} of {value.n})"


def read_predictions(folder: Path) -> dict[str, list[Prediction]]:
    """A run's stored predictions.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    path = folder / "predictions.jsonl"
    try:
        predictions = parse_predictions(path.read_text())
        if not predictions.get("test"):
            raise UserError(f"{path} holds no prediction of the test split; it was cut short or altered")
        return predictions
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the run has no predictions") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was cut short or altered ({type(error).__name__})") from None


def score_again(folder: Path) -> tuple[Record, Counts]:
    """A run's record, and what its predictions say today."""
    return record.read(folder), Counts(**count(read_predictions(folder)))
