"""Numbers as people read them."""

from collections.abc import Callable
from dataclasses import dataclass

from cdbench.inference import Interval


@dataclass(frozen=True)
class Measured:
    """A number of a row: its mean over seeds, and an interval over them and, where records tell, problems.

    Of one run the interval is over problems alone. `of`: "1 of 3 runs" where not all of the row's runs have the number.
    """

    mean: float
    interval: Interval | None
    of: str = ""


def percent(value: float | None) -> str:
    """0.963 -> "96.3 %"; a gap stays a gap."""
    return "–" if value is None else f"{100 * value:.1f} %".replace("-0.0", "0.0").replace("-", "−")


def points(value: float | None) -> str:
    """0.012 -> "+1.2"; percentage points, with a true minus; what rounds to nothing has no sign."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def number(value: float | None) -> str:
    """Three digits after the point, with a true minus; what rounds to nothing has no sign."""
    return "–" if value is None else f"{value:.3f}".replace("-0.000", "0.000").replace("-", "−")


def p_value(value: float) -> str:
    """0.0004 -> "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """14.56 -> "14.6 s"."""
    return "–" if value is None else f"{value:.1f} s"


def over_seeds(found: Measured | None, show: Callable[[float | None], str]) -> str:
    """A mean with its interval over seeds, where there is one: "0.781 [0.702, 0.860]"."""
    return " ".join(mean_and_interval(found, show))


def mean_and_interval(found: Measured | None, show: Callable[[float | None], str]) -> list[str]:
    """The two apart, and of how many runs; the mean alone where there is no interval."""
    if found is None:
        return [show(None)]
    parts = [show(found.mean)]
    if found.interval is not None:
        low, high = found.interval.within(0.0, 1.0) if show is percent else found.interval
        parts.append(f"[{show(low)}, {show(high)}]")
    return [*parts, f"({found.of})"] if found.of else parts
