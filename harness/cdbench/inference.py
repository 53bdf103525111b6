"""What may be concluded from runs: intervals, paired tests, corrections. Pure functions of arrays.

A row's answers are [seeds, problems]. Both are taken as drawn from many: what is said of a method should hold for other seeds and
other problems. A bootstrap over three seeds cannot say that (it has three values to draw from), so the spread between seeds and
between problems is estimated by an analysis of variance, and Student's t pays for there being few. The bootstrap is there to be
looked at beside it (`hierarchical_bootstrap`); `benchmarks/coverage.py` says how often either covers.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy import stats as distributions
from scipy.optimize import brentq

from cdbench.stats import score_interval

Hits = NDArray[np.float64]
MOST_SEEDS = 200
POWER = 0.8
"""How often a number of seeds decides that is said to decide."""
Z95 = float(distributions.norm.ppf(0.975))
"""So many standard errors are half of a normal 95 % interval."""
_LEAST_KNOWN = 3
"""Of fewer variances nobody can say how far they lie apart."""
_LEAST_JOINT = 2
"""Degrees of freedom of seeds below which joint ones are far too many."""
_SEEM_FEW = 0.2
"""The share of the variance below which two seeds seem to make little of it."""
_USUAL = 0.025
"""The tail beyond either end of a 95 % interval."""
_LEAST_P = 1e-12
"""Below that, 0: nobody has so many samples that the difference would mean anything."""


class Interval(NamedTuple):
    """From `low` to `high`."""

    low: float
    high: float

    def within(self, least: float, most: float) -> "Interval":
        """What of it is possible: of a share 0 to 1, of a correlation −1 to 1. Student's t knows no bounds."""
        return Interval(max(least, self.low), min(most, self.high))


class Spread(NamedTuple):
    """The variance of a mean over seeds and problems, in the two parts that it is known from.

    Nothing exact is known for two such parts (Behrens and Fisher's problem). A t of its own for each (Cochran and Cox 1950) is
    too wide with few seeds, by up to 2.7 points of 95 %; one t of joint degrees of freedom (Satterthwaite 1946) too narrow, by up
    to 2.8. What is used lies between, nearer to the first the more of the variance is the seeds' and the smaller p is: within a
    point of 95 %, and not short far out, where many comparisons are corrected for. Of two seeds there is no joint t worth having:
    where they seem to be less than a fifth of the variance, their own t counts by the fourth power of that share (fitted: within
    a point of 95 % whatever the share in truth is; far out it counts whole). Over all that two seeds may seem, that is: of one
    pair more spread between problems may give the narrower interval.
    """

    of_seeds: float
    seeds: int
    of_problems: float
    problems: int
    freedom: float | None = None
    """Degrees of freedom of the seeds' part, where more is known of it than these seeds say (`moderated`)."""
    noise: float = 0.0
    """What of the seeds' part is only that each answers other problems rightly, as known from all answers (MS_rest / (S N))."""

    @property
    def variance(self) -> float:
        """Of the mean."""
        return self.of_seeds + self.of_problems

    def half_width(self, level: float) -> float:
        """Half the interval of that level, two-sided."""
        return self._distance((1 - level) / 2)

    def around(self, mean: float, level: float = 0.95) -> Interval:
        """The interval of that level."""
        half = self.half_width(level)
        return Interval(mean - half, mean + half)

    def tail(self, distance: float) -> float:
        """One-sided: how often chance alone leads as far as that.

        Never less than if seeds made no difference. Of few seeds some agree by chance to the last answer; intervals cover as they
        say all the same, but among many comparisons such a pair would have the smallest p of all, whatever is corrected for.
        """
        if distance <= 0:
            return 0.5
        by_noise = 0.0
        if self.noise:
            by_noise = float(special.stdtr(self.problems - 1, -distance / math.sqrt(self.noise + self.of_problems)))
        if self._distance(_LEAST_P) <= distance:
            return by_noise
        return max(by_noise, float(brentq(lambda p: self._distance(p) - distance, _LEAST_P, 0.5, xtol=1e-16)))

    def _distance(self, p: float) -> float:
        of_seeds = self.seeds - 1 if self.freedom is None else self.freedom
        parts = [(self.of_seeds, of_seeds), (self.of_problems, self.problems - 1)]
        each = [_quantile(p, freedom) ** 2 * part for part, freedom in parts if part]
        apart = sum(each)
        if not all(part for part, _ in parts):
            return math.sqrt(apart)
        if of_seeds < _LEAST_JOINT:
            seems = min(1.0, self.of_seeds / self.variance / _SEEM_FEW) ** (4 * min(1.0, p / _USUAL) ** 2)
            return math.sqrt(seems * each[0] + each[1])
        freedom = self.variance**2 / sum(part**2 / own for part, own in parts)
        together = _quantile(p, freedom) ** 2 * self.variance
        weight = (self.of_seeds / self.variance) ** min(1.0, math.sqrt(p / _USUAL))
        # Never nearer than either part alone reaches: to know of the other, too, makes nothing surer.
        return math.sqrt(max(*each, weight * apart + (1 - weight) * together))


def _quantile(p: float, freedom: float) -> float:
    """Student's t beyond which p lies; scipy.stats has the same value behind checks that thousands of calls need not repeat."""
    return -float(special.stdtrit(freedom, p))


class _Squares(NamedTuple):
    """Mean squares of a two-way analysis of variance, one value a cell."""

    seeds: float
    problems: float
    rest: float


def _squares(values: Hits) -> _Squares:
    seeds, problems = values.shape
    mean, by_seed, by_problem = values.mean(), values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_problem[None] + mean
    return _Squares(
        problems * float(((by_seed - mean) ** 2).sum()) / (seeds - 1),
        seeds * float(((by_problem - mean) ** 2).sum()) / (problems - 1),
        float((rest**2).sum()) / ((seeds - 1) * (problems - 1)),
    )


def spread(values: Hits) -> Spread:
    """How far the mean of values [seeds, problems] may be from that over all seeds and problems.

    The values are between -1 and 1. Two problems more, one for either side, are counted at half their weight (Agresti and Min
    2005): rows that hardly differ would else have an interval without width whenever their few differences happen to balance.

    Seeds and problems cross, so the variance of the mean is (MS_seeds + MS_problems − MS_rest) / (S N). Of one seed nothing
    is known but the problems, and whoever shows that interval must say so.

    Raises:
        ValueError: fewer than two problems.
    """
    seeds, problems = values.shape
    if problems < 2:
        raise ValueError(f"a spread needs at least 2 problems, got {problems}")
    if seeds == 1:
        return Spread(0.0, 1, float(values.var(ddof=1)) / problems + 1 / problems**2, problems)
    squares, cells = _squares(values), seeds * problems
    of_problems = max(0.0, squares.problems - squares.rest) / cells + 1 / problems**2
    return Spread(squares.seeds / cells, seeds, of_problems, problems, noise=squares.rest / cells)


def moderated(spreads: Sequence[Spread], most: float) -> list[Spread]:
    """Lends each of many comparisons what the others say of how far seeds differ (Smyth 2004, limma's moderated t).

    The variances of one board are taken as drawn around a common one, s0², as if d0 more degrees of freedom had shown it; both
    are estimated from how far the variances lie apart. Where they differ by more than chance explains, d0 is small, and each is
    left nearly to itself; where they differ by no more, all count as one. `most`: degrees of freedom that all rows have together,
    above which no comparison can have any.

    More careful than limma in two things, as a few rows here may differ from seed to seed many times as much as the rest: no
    variance is lent below its own, and of d0 only half counts. Else boards of equal rows were called different in up to 7 %.
    """
    known = [(each.of_seeds, each.seeds - 1) for each in spreads if each.of_seeds > 0 and each.seeds > 1]
    if len(known) < _LEAST_KNOWN:
        return list(spreads)
    variances, freedom = (np.array(values, dtype=np.float64) for values in zip(*known, strict=True))
    # log s² − ψ(d/2) + log(d/2) has mean log s0² − ψ(d0/2) + log(d0/2) and variance ψ'(d/2) + ψ'(d0/2).
    logs = np.log(variances) - special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) - special.polygamma(1, freedom / 2).mean())
    prior = math.inf
    if excess > 0:
        prior = 2 * float(brentq(lambda half: float(special.polygamma(1, half)) - excess, 1e-6, 1e12))
    half = prior / 2
    towards = float(special.digamma(half)) - math.log(half) if math.isfinite(prior) else 0.0
    common = math.exp(float(logs.mean()) + towards)
    found = []
    for each in spreads:
        if each.of_seeds <= 0 or each.seeds < 2:
            found.append(each)
            continue
        own = each.seeds - 1
        shrunk = common if math.isinf(prior) else (prior * common + own * each.of_seeds) / (prior + own)
        freedom_lent = max(own, min(prior / 2 + own, most))
        found.append(each._replace(of_seeds=max(shrunk, each.of_seeds), freedom=freedom_lent))
    return found


def mean_interval(values: Hits, level: float = 0.95) -> Interval:
    """Interval of the mean of values [seeds, problems] over other seeds and other problems."""
    return spread(values).around(float(values.mean()), level)


def share_interval(hits: Hits, level: float = 0.95) -> Interval:
    """Interval of an accuracy, hits [seeds, problems] of 0 and 1: Wilson's, with as many problems as the spread is worth."""
    found = spread(hits)
    quantile = found.half_width(level) / math.sqrt(found.variance)
    if is_one(hits):
        quantile = float(distributions.norm.ppf((1 + level) / 2))
    return _share_interval(hits, found, quantile)


def is_one(hits: Hits) -> bool:
    """Whether there is one run, or several that are one."""
    return bool((hits == hits[0]).all())


def _share_interval(hits: Hits, found: Spread, quantile: float) -> Interval:
    """Wilson's at so many standard errors, of as many problems as the spread is worth."""
    mean = float(hits.mean())
    worth = hits.shape[1] if is_one(hits) else mean * (1 - mean) / found.variance
    return Interval(*score_interval(mean, worth, quantile))


def paired_p(difference: Hits, edge: float = 0.0) -> float:
    """Two-sided p that the mean difference is `edge`: [seeds, problems] of what was right in one row and in the other.

    Student's t over seeds and problems; for one seed and no edge McNemar's exact test.
    """
    if len(difference) == 1 and edge == 0:
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return 2 * spread(difference).tail(abs(float(difference.mean()) - edge))


def share_p(hits: Hits, edge: float) -> float:
    """Two-sided p that an accuracy is `edge`: the test of which `share_interval` holds what is not rejected.

    Its variance is that at the edge (a score test): near 0 and 1 that of the estimate is far too small.
    """
    mean, found = float(hits.mean()), spread(hits)
    if is_one(hits):
        return float(2 * distributions.norm.sf(abs(mean - edge) / math.sqrt(edge * (1 - edge) / hits.shape[1])))
    at_edge = edge * (1 - edge) * found.variance / (mean * (1 - mean))
    return min(1.0, 2 * found.tail(abs(mean - edge) * math.sqrt(found.variance / at_edge)))


def drop(first: Hits, second: Hits) -> tuple[float, Spread]:
    """How much less of `second` than of `first` the same runs solve, each [seeds, its problems], and how sure that is.

    Seeds are paired, the two sets of problems are samples of their own.
    """
    lost = first.mean(1) - second.mean(1)
    x, y = spread(first), spread(second)
    of_seeds = float(lost.var(ddof=1)) / len(lost) if len(lost) > 1 else 0.0
    of_problems = x.of_problems + y.of_problems
    found = Spread(of_seeds, len(lost), of_problems, min(x.problems, y.problems), noise=x.noise + y.noise)
    return float(lost.mean()), found


def spread_from_published(hits: Hits, value: float, n: int) -> Spread:
    """How far an accuracy's difference from one that was published, `value` of `n` other problems, may be from what it seems.

    What was published is one sample, too: its variance is added.
    """
    own = spread(hits)
    return own._replace(of_problems=own.of_problems + value * (1 - value) / n)


def interval_from_published(hits: Hits, value: float, n: int) -> Interval:
    """95 % interval of an accuracy's difference from a published one, `value` of `n` other problems.

    Wilson's limits of either, both at the quantile of their difference, put together as Newcombe does (1998, method 10): ours at
    the quantile of few seeds, and theirs at that of many problems, would be up to 3 points too wide.
    """
    found, both = spread(hits), spread_from_published(hits, value, n)
    # That the other number is uncertain, too, makes nothing surer (which of two seeds `Spread` does not see to).
    half = max(found.half_width(0.95), both.half_width(0.95))
    quantile = Z95 if is_one(hits) else half / math.sqrt(both.variance)
    own, theirs = _share_interval(hits, found, quantile), Interval(*score_interval(value, n, quantile))
    mean = float(hits.mean())
    down = math.hypot(mean - own.low, theirs.high - value)
    up = math.hypot(own.high - mean, value - theirs.low)
    return Interval(mean - value - down, mean - value + up)


def hierarchical_bootstrap(values: Hits, rng: np.random.Generator, draws: int, level: float = 0.95) -> Interval:
    """Percentile interval of the mean of values [seeds, problems], both drawn anew; of one seed the problems alone.

    The values may be differences of two rows: then it is paired. To be looked at beside `mean_interval`; no verdict rests on it.
    Drawing seeds with replacement gives their means (S − 1)/S of the variance that they have, so they are moved apart by as much.
    What is neither the seed's nor the problem's is drawn with either (Owen 2007) and counts more than once; and of few seeds no
    percentile is as far out as Student's t. How often it covers, `benchmarks/coverage.py` says.

    Raises:
        ValueError: fewer than two problems, or draws.
    """
    seeds, problems = values.shape
    if problems < 2 or draws < 2:
        raise ValueError(f"a bootstrap needs at least 2 problems and draws, got {problems} and {draws}")
    by_seed = values.mean(1, keepdims=True)
    apart = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    moved = values + (apart - 1) * (by_seed - by_seed.mean())
    means = np.empty(draws)
    for some in np.array_split(np.arange(draws), max(1, draws // 100)):
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), len(some)) / seeds
        asked = rng.integers(problems, size=(len(some), problems))
        means[some] = np.take_along_axis(weights @ moved, asked, 1).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def unpaired_spread(a: Hits, b: Hits) -> Spread:
    """How far the difference of two rows' means may be off, each [its seeds, problems], with no seed in common.

    The spreads of both are added, as of independent samples: the problems are the same, so this says rather too little.
    """
    x, y = spread(a), spread(b)
    return Spread(
        x.of_seeds + y.of_seeds,
        min(x.seeds, y.seeds),
        x.of_problems + y.of_problems,
        min(x.problems, y.problems),
        noise=x.noise + y.noise,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test (1947): two-sided p that of the problems that one run alone solved each is either's by a fair coin."""
    if only_first + only_second == 0:
        return 1.0
    return float(distributions.binomtest(only_first, only_first + only_second).pvalue)


def equivalence_p(difference: Hits, margin: float) -> float:
    """p that the mean difference is `margin` or more, either way (two one-sided t tests, Schuirmann 1987).

    Raises:
        ValueError: the margin is not positive.
    """
    if margin <= 0:
        raise ValueError(f"an equivalence needs a margin above 0, got {margin}")
    inside = margin - abs(float(difference.mean()))
    tail = spread(difference).tail(abs(inside))
    return tail if inside >= 0 else 1 - tail


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> float:
    """How often a run of `a` beats a run of `b`, ties halved (Agarwal et al. 2021): over all pairs of seeds."""
    first, second = np.asarray(a)[:, None], np.asarray(b)[None]
    return float(((first > second) + 0.5 * (first == second)).mean())


def seeds_to_decide(
    values: Hits, limit: float, level: float = 0.95, *, stretch: float = 1.0, both: bool = False
) -> int | None:
    """With how many seeds the interval of the mean leaves out `limit` four times in five, were all what it seems.

    `stretch`: the standard error at the limit over that of the estimate, where the test goes by the former. `both`: it must leave
    out a limit on the other side, too.

    They seldom are: what few seeds show of an effect is more often too much than too little where it was picked for being large.
    None where not even 200 seeds are enough on these problems, or nothing is known of the spread between seeds.
    """
    if len(values) < 2:
        return None
    (now, problems), squares = values.shape, _squares(values)
    between_seeds = max(0.0, squares.seeds - squares.rest) / problems
    between_problems = max(0.0, squares.problems - squares.rest) / now

    def spread_of(seeds: int) -> Spread:
        of_seeds = between_seeds / seeds + squares.rest / (seeds * problems)
        of_problems = between_problems / problems + 1 / problems**2
        return Spread(of_seeds, seeds, of_problems, problems, noise=squares.rest / (seeds * problems))

    return _seeds_until(
        abs(float(values.mean()) - limit), level, now, spread_of, stretch, POWER if both else 2 * POWER - 1
    )


def spread_to_decide(found: Spread, distance: float, level: float = 0.95, *, both: bool = False) -> int | None:
    """The same of any mean that lies so far from the (nearer) limit: more seeds narrow the part of the seeds, no other.

    None where not even 200 seeds are enough on these problems, or nothing is known of the spread between seeds.
    """
    if found.seeds < 2:
        return None
    whole = found.of_seeds * found.seeds
    noise = found.noise * found.seeds
    return _seeds_until(
        distance,
        level,
        found.seeds,
        lambda seeds: found._replace(of_seeds=whole / seeds, seeds=seeds, noise=noise / seeds),
        within=POWER if both else 2 * POWER - 1,
    )


def _seeds_until(
    distance: float,
    level: float,
    now: int,
    spread_of: Callable[[int], Spread],
    stretch: float = 1.0,
    within: float = 2 * POWER - 1,
) -> int | None:
    """`within`: how much of all outcomes lies no farther from the mean, to either side, than may be lost."""

    def decides(seeds: int) -> bool:
        found = spread_of(seeds)
        return stretch * found.half_width(level) + found.half_width(within) < distance

    some = range(now + 1, MOST_SEEDS + 1)
    place = bisect_left(some, True, key=decides)  # each seed more narrows both intervals
    return some[place] if place < len(some) else None


def runs_to_decide(values: Sequence[float], limit: float, level: float = 0.95) -> int | None:
    """The same of a number that each run has one of, with Student's interval of its mean.

    None where not even 200 runs are enough, or nothing is known of the spread.
    """
    if len(values) < 2:
        return None
    of_runs = float(np.var(values, ddof=1)) / len(values)
    return spread_to_decide(Spread(of_runs, len(values), 0.0, 2), abs(float(np.mean(values)) - limit), level)


def sign_p(values: Sequence[float], edge: float) -> float:
    """Two-sided p of the exact sign test (values against `edge`, ties left out): what is left to test where all are equal."""
    return mcnemar(sum(value > edge for value in values), sum(value < edge for value in values))


def runs_by_signs(level: float) -> int:
    """How many runs, all on one side, the sign test needs at that level."""
    return math.ceil(1 + math.log2(1 / (1 - level)))


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's interval of a number that each run has one of; None for fewer than two runs."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(distributions.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(mean - half, mean + half)


def differing_interval(values: Sequence[float]) -> Interval | None:
    """The same; None where all runs gave one number, as runs do that no seed changes."""
    return seed_interval(values) if len(set(values)) > 1 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    running, adjusted = 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
