"""How far a number of the evaluator could have come out otherwise on other problems, as far as its record tells.

All runs of a study are judged on one sample of problems. An interval over seeds alone does not know that: what the sample
happens to be moves all runs together. With three seeds and 200 problems it can hold the truth three times in four only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as distributions

from cdbench.inference import Spread
from cdbench.record import Metrics, value_at
from cdbench.report.collect import Group, mean_of

_CIRCUIT = "circuit."


class Sampled(NamedTuple):
    """The variance of a number over samples of so many problems."""

    variance: float
    problems: int


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
    told = [each for record in group.records if record.metrics and (each := _of_run(record.metrics, metric))]
    variance = mean_of([each.variance for each in told])
    return None if variance is None else Sampled(variance, min(each.problems for each in told))


def _of_run(metrics: Metrics, metric: str) -> Sampled | None:
    if not metric.startswith(_CIRCUIT):
        return None
    if limits := value_at(metrics, f"{metric}_95"):
        problems = value_at(metrics, f"{metric.rpartition('.')[0]}.problems")
        half = (limits[1] - limits[0]) / 2 / float(distributions.norm.ppf(0.975))
        return Sampled(half**2, problems) if problems > 1 else None
    shares = _SHARES.get(metric.removeprefix(_CIRCUIT))
    return _of_shares(metrics, *shares) if shares else None


_SHARES = {
    "alone_share": ("accuracy", "alone_share", None),
    "ablated_share": ("ablated", "ablated_share", None),
    "suffices_beyond_chance": ("accuracy", "alone_share", "random_alone_share"),
    "needed_beyond_chance": ("ablated", "ablated_share", "random_ablated_share"),
}
"""Numbers that are an accuracy as a share of the whole model's, or how far that is from as many nodes' drawn at random."""


def _of_shares(metrics: Metrics, part: str, share: str, at_random: str | None) -> Sampled | None:
    """The binomial variance of the accuracies, as shares of the whole model's, which is the first over its share."""
    accuracy, of_whole = value_at(metrics, _CIRCUIT + part), value_at(metrics, _CIRCUIT + share)
    chance = value_at(metrics, _CIRCUIT + at_random) if at_random else 0.0
    if accuracy is None or not accuracy.value or not of_whole or chance is None:
        return None
    whole = accuracy.value / of_whole
    of_chance = min(1.0, chance * whole)
    variance = sum(p * (1 - p) for p in (accuracy.value, of_chance)) / accuracy.n / whole**2
    return Sampled(variance, accuracy.n)
