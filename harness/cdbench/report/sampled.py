"""How far a number of the evaluator could have come out otherwise on other problems, as far as its record tells.

All runs of a study are judged on one sample of problems. An interval over seeds alone does not know that: what the sample
happens to be moves all runs together. With three seeds and 200 problems it can hold the truth three times in four only.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as distributions

from cdbench.inference import Spread
from cdbench.record import CircuitJudgement, Metrics, value_at
from cdbench.report.collect import Group, mean_of
from cdbench.stats import Proportion

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
    judgement = metrics.circuit
    if not metric.startswith(_CIRCUIT) or judgement is None:
        return None
    if limits := value_at(metrics, f"{metric}_95"):
        summary = value_at(metrics, metric.rpartition(".")[0])
        half = (limits[1] - limits[0]) / 2 / float(distributions.norm.ppf(0.975))
        return Sampled(half**2, n) if (n := summary.problems or judgement.problems) > 1 else None
    of_shares = _SHARES.get(metric.removeprefix(_CIRCUIT))
    variance = of_shares(judgement) if of_shares else None
    return None if variance is None else Sampled(variance, judgement.accuracy.n)


def _share(part: Proportion | None, of_whole: float | None) -> float | None:
    """Of `part` as a share of the whole model's accuracy, which is `part` / `of_whole`: the binomial of its problems."""
    if part is None or not of_whole or not part.value:
        return None
    whole = part.value / of_whole
    return part.value * (1 - part.value) / part.n / whole**2


def _and_random(part: Proportion | None, of_whole: float | None, at_random: float | None) -> float | None:
    """The same of how far it is from the share that as many nodes drawn at random keep, on the same problems."""
    own = _share(part, of_whole)
    if own is None or at_random is None or part is None or not of_whole:
        return None
    whole = part.value / of_whole
    chance = min(1.0, at_random * whole)
    return own + chance * (1 - chance) / part.n / whole**2


_SHARES: dict[str, Callable[[CircuitJudgement], float | None]] = {
    "alone_share": lambda own: _share(own.accuracy, own.alone_share),
    "ablated_share": lambda own: _share(own.ablated, own.ablated_share),
    "suffices_beyond_chance": lambda own: _and_random(own.accuracy, own.alone_share, own.random_alone_share),
    "needed_beyond_chance": lambda own: _and_random(own.ablated, own.ablated_share, own.random_ablated_share),
}
