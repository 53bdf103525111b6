"""How far a number of the evaluator could have come out otherwise on other problems, as far as its record tells.

All runs of a study are judged on one sample of problems. An interval over seeds alone does not know that: what the sample
happens to be moves all runs together. With three seeds and 200 problems it can hold the truth three times in four only.

A share of problems has the variance of a binomial. So have interchange accuracies here, whose pairs share problems: what that
leaves out is made up by what is counted twice, since the part of the seeds holds each run's own luck with its answers, too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cdbench.inference import Z95, Interval, Spread
from cdbench.record import Metrics, number_at, value_at
from cdbench.report.collect import Group, mean_of
from cdbench.stats import Proportion

_CIRCUIT = "circuit."
_Width = TypeVar("_Width", float, NDArray[np.float64])


class Sampled(NamedTuple):
    """The variance of a number over samples of so many problems."""

    variance: float
    problems: int


def possible(metric: str) -> tuple[float, float]:
    """Between which a number can lie at all: Student's t knows no bounds."""
    name = metric.rpartition(".")[2]
    if name in ("value", "sparsity", "mean_value", "smallest_faithful"):
        return 0.0, 1.0
    if name == "stability":
        return -1.0, 1.0
    if name.endswith("share") or name == "cmd":
        return 0.0, math.inf
    return (-1.0, 1.0) if name == "spearman" or name.endswith("_mean") else (-math.inf, math.inf)


def variance_of(width: _Width) -> _Width:
    """Of what has a 95 % interval so wide."""
    return (width / 2 / Z95) ** 2


def of_one_run(metrics: Metrics, metric: str) -> Interval | None:
    """The interval over problems that a record has of a number, or that follows from it; None where it does not tell."""
    if limits := value_at(metrics, f"{metric}_95"):
        return Interval(*limits)
    share, _, last = metric.rpartition(".")
    if last == "value" and isinstance(found := value_at(metrics, share), Proportion):
        return Interval(found.low, found.high)
    return None


def spread_of(values: Sequence[float], groups: Sequence[Group], metric: str) -> Spread | None:
    """How far the mean of a number of each run, or of differences between two rows' runs, may be off over seeds and problems.

    None where a record does not tell, and of a single run.
    """
    if len(values) < 2 or (found := _sampled(groups, metric)) is None:
        return None
    return Spread(float(np.var(values, ddof=1)) / len(values), len(values), found.variance, found.problems)


def _sampled(groups: Sequence[Group], metric: str) -> Sampled | None:
    """Of a number of one row, or of the difference of two rows' numbers; None where a record does not tell.

    Rows share their problems, so their difference varies less than this: the two variances are added, as of samples apart.
    """
    found = [_of_row(group, metric) for group in groups]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    return Sampled(sum(each.variance for each in known), min(each.problems for each in known))


def _of_row(group: Group, metric: str) -> Sampled | None:
    having = [r.metrics for r in group.records if r.metrics and number_at(r.metrics, metric) is not None]
    told = [each for metrics in having if (each := _of_run(metrics, metric))]
    variance = mean_of([each.variance for each in told])
    if variance is None or len(told) < len(having):  # one that is least known must not count as surest
        return None
    return Sampled(variance, min(each.problems for each in told))


def _of_run(metrics: Metrics, metric: str) -> Sampled | None:
    if not metric.startswith(_CIRCUIT):
        return None
    if limits := value_at(metrics, f"{metric}_95"):
        problems = _problems(metrics, metric)
        return Sampled(variance_of(limits[1] - limits[0]), problems) if problems > 1 else None
    whole, _, last = metric.rpartition(".")
    if last == "value" and isinstance(share := value_at(metrics, whole), Proportion):
        return Sampled(_of_rate(share.value, share.n), share.n) if share.n > 1 else None
    shares = _SHARES.get(metric.removeprefix(_CIRCUIT))
    return _of_shares(metrics, *shares) if shares else None


def _problems(metrics: Metrics, metric: str) -> int:
    """On how many problems a number was measured, as the part of the record that it belongs to says; 0 where none does."""
    while metric:
        metric = metric.rpartition(".")[0]
        if isinstance(found := value_at(metrics, f"{metric}.problems"), int):
            return found
    return 0


_SHARES = {
    "alone_share": ("accuracy", None),
    "ablated_share": ("ablated", None),
    "suffices_beyond_chance": ("accuracy", "random_alone_share"),
    "needed_beyond_chance": ("ablated", "random_ablated_share"),
    "one_by_one.share": ("one_by_one.accuracy", None),
    "one_by_one.needed_beyond_chance": ("one_by_one.accuracy", "one_by_one.others_share"),
}
"""Numbers that are an accuracy as a share of the whole model's, or how far that is from as many nodes' drawn at random."""
_PARTS = (("accuracy", "alone_share"), ("ablated", "ablated_share"))


def _of_shares(metrics: Metrics, name: str, at_random: str | None) -> Sampled | None:
    """The variance of (own − random) / whole, three accuracies on the same problems, as if each had problems of its own."""
    own = value_at(metrics, _CIRCUIT + name)
    chance = value_at(metrics, _CIRCUIT + at_random) if at_random else 0.0
    parts = [(value_at(metrics, _CIRCUIT + part), value_at(metrics, _CIRCUIT + share)) for part, share in _PARTS]
    told = value_at(metrics, f"{_CIRCUIT}one_by_one.whole.value")
    whole = told or next((part.value / share for part, share in parts if part and part.value and share), None)
    if own is None or chance is None or whole is None:
        return None
    rates = [own.value, min(1.0, chance * whole)] if at_random else [own.value]
    share = own.value / whole - chance
    variance = sum(_of_rate(rate, own.n) for rate in rates) + share**2 * _of_rate(min(1.0, whole), own.n)
    return Sampled(variance / whole**2, own.n)


def _of_rate(rate: float, n: int) -> float:
    """The variance of an accuracy over samples of n problems; two more, one solved, so that 0 and 1 have one, too."""
    counted = (rate * n + 1) / (n + 2)
    return counted * (1 - counted) / n
