"""Intervals and tests against libraries that others wrote, by hand, and by simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as distributions
from scipy.optimize import brentq
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import DescrStatsW

from cdbench.inference import (
    Spread,
    drop,
    equivalence_p,
    hierarchical_bootstrap,
    holm,
    interval_from_published,
    mcnemar,
    mean_interval,
    moderated,
    paired_p,
    probability_of_improvement,
    runs_to_decide,
    seed_interval,
    seeds_to_decide,
    share_interval,
    spread,
    spread_from_published,
    spread_to_decide,
    unpaired_spread,
)
from cdbench.stats import wilson


def unpaired_p(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * unpaired_spread(a, b).tail(abs(float(a.mean() - b.mean())))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_statsmodels(a: int, b: int) -> None:
    assert mcnemar(a, b) == pytest.approx(min(1.0, their_mcnemar([[5, a], [b, 5]], exact=True).pvalue), abs=1e-12)


@given(st.integers(0, 200), st.integers(0, 300))
def test_the_difference_from_a_published_share_equals_statsmodels_for_one_run(k: int, m: int) -> None:
    found = interval_from_published(np.repeat([1.0, 0.0], [k, 200 - k])[None], m / 300, 300)
    theirs = confint_proportions_2indep(k, 200, m, 300, method="newcomb", compare="diff")
    assert found == pytest.approx(theirs, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=5, max_size=60))
def test_one_seed_is_the_t_interval_over_problems(values: list[float]) -> None:
    # Ours adds 1/n² to the variance of the mean: for theirs, as much to that of the values, spread evenly to both sides.
    row, n = np.array(values), len(values)
    scale = math.sqrt(1 + (n - 1) / (n * max(1e-300, ((row - row.mean()) ** 2).sum())))
    if row.var() == 0:
        assert mean_interval(row[None])[1] - values[0] == pytest.approx(distributions.t.ppf(0.975, n - 1) / n)
        return
    theirs = DescrStatsW(row.mean() + scale * (row - row.mean()))
    assert mean_interval(row[None]) == pytest.approx(theirs.tconfint_mean(), abs=1e-9)
    assert equivalence_p(row[None], 0.3) == pytest.approx(max(theirs.ttost_mean(-0.3, 0.3)[0], 0), abs=1e-9)
    assert paired_p(row[None], edge=0.2) == pytest.approx(theirs.ttest_mean(0.2)[1], abs=1e-9)


def test_the_spread_of_a_small_table_by_hand() -> None:
    # Rows [0, 2, 4] and [3, 5, 10]: means 2, 6 and 1.5, 3.5, 7; grand mean 4.
    # MS_seeds = 3 (4 + 4) / 1 = 24; MS_problems = 2 (6.25 + 0.25 + 9) / 2 = 15.5;
    # what is left over: ±0.5, ±0.5, ∓1, so MS_rest = (4 · 0.25 + 2 · 1) / 2 = 1.5.
    found = spread(np.array([[0.0, 2.0, 4.0], [3.0, 5.0, 10.0]]))
    assert found.variance == pytest.approx((24 + 15.5 - 1.5) / 6 + 1 / 9)
    assert (found.of_seeds, found.of_problems) == (pytest.approx(24 / 6), pytest.approx(14 / 6 + 1 / 9))
    assert found.noise == pytest.approx(1.5 / 6)
    # t(0.975) is 12.706 for 1 degree of freedom and 4.303 for 2.
    assert found.half_width(0.95) == pytest.approx(math.sqrt(12.7062**2 * 4 + 4.30265**2 * (14 / 6 + 1 / 9)), abs=1e-3)
    assert found.tail(found.half_width(0.95)) == pytest.approx(0.025)


def test_seeds_that_agree_by_chance_leave_the_noise_of_their_answers() -> None:
    """Two seeds, 90 problems for one row and 70 for the other on each: both gaps are 0.02, and MS_seeds is 0."""
    values = np.zeros((2, 1000))
    for row, start in zip(values, (0, 200), strict=True):
        row[start : start + 90], row[start + 90 : start + 160] = 1, -1
    # MS_rest, and nothing else: both seeds have the same mean, and problems differ by no more than answers do.
    found = spread(values)
    assert found.of_seeds == pytest.approx(0, abs=1e-15)
    rest = float(((values - values.mean(0)) ** 2).sum()) / 999
    assert found.noise == pytest.approx(rest / 2000)
    assert paired_p(values) == pytest.approx(2 * distributions.t.sf(0.02 / math.sqrt(rest / 2000 + 1e-6), 999))
    assert 0.01 < paired_p(values) < 0.1  # McNemar's test on each seed alone: 0.13


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_far_tail_is_not_reached_by_seeds_that_chance_to_agree(seeds: int) -> None:
    """Of equal rows no more than 0.15 % have a p below 0.05 / 60, as a claim among sixty needs, and none a p of a millionth."""
    rng, repeats = np.random.default_rng(seeds), 4000
    p_values = [paired_p(simulated(seeds, 0.0, rng)) for _ in range(repeats)]
    assert sum(p < 0.05 / 60 for p in p_values) / repeats < 0.0015
    assert min(p_values) > 1e-6


def test_accuracies_of_runs_that_are_one_have_wilsons_interval() -> None:
    row = (np.arange(1000) < 963).astype(float)
    for hits in (row[None], np.repeat(row[None], 3, axis=0)):
        assert share_interval(hits) == pytest.approx((wilson(963, 1000).low, wilson(963, 1000).high), abs=1e-9)
    assert share_interval(np.ones((1, 50)))[1] == 1.0


def test_one_seed_and_no_edge_is_mcnemars_test() -> None:
    difference = np.array([[1.0] * 9 + [-1.0] * 2 + [0.0] * 30])
    assert paired_p(difference) == mcnemar(9, 2)
    assert paired_p(np.zeros((3, 5))) == 1.0


def test_a_published_share_is_a_sample_too() -> None:
    """For one run it is the z test of two proportions, but for the half problems that are added to ours."""
    hits = np.repeat([1.0, 0.0], [930, 70])[None]
    variance = 0.93 * 0.07 / 999 + 1 / 1000**2 + 0.963 * 0.037 / 1000
    expected = 2 * distributions.t.sf(0.033 / math.sqrt(variance), 999)
    found = spread_from_published(hits, 0.963, 1000)
    assert 2 * found.tail(0.033) == pytest.approx(expected, rel=1e-6)
    assert 2 * found.tail(0.033) > paired_p(hits, edge=0.963)  # taken as exact it would say more than it may
    assert 2 * found.tail(0.0) == 1.0


@pytest.mark.parametrize("apart", [0.0, 0.02, 0.1, 0.3])
def test_a_published_number_of_fewer_problems_never_makes_it_surer(apart: float) -> None:
    rng = np.random.default_rng(7)
    hits = (rng.random((2, 500)) < np.array([[0.6 - apart / 2], [0.6 + apart / 2]])).astype(float)
    widths = [
        high - low
        for low, high in (interval_from_published(hits, 0.5, n) for n in (10**6, 5000, 1000, 400, 200, 100, 50))
    ]
    # Wilson's limits lie a little nearer to the middle where they are far apart; without the bound some were half as wide.
    assert min(widths) > 0.95 * widths[0]
    assert widths[-1] > widths[0] or apart > 0


def test_few_answers_that_differ_prove_nothing_by_chancing_to_balance() -> None:
    values = np.zeros((3, 1000))
    values[0, 0] = values[1, 1] = values[2, 2] = 1  # an exact sign test on three problems has p = 0.25
    assert 0.2 < paired_p(values) < 0.5
    assert equivalence_p(np.zeros((3, 30)), 0.02) > 0.05  # 30 problems alike do not show 2 points
    assert equivalence_p(np.zeros((3, 1000)), 0.02) < 0.001


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("p", [0.1, 0.025, 0.005, 0.0005, 0.00005])
def test_what_seeds_and_problems_vary_by_is_covered_as_often_as_is_said(freedom: int, p: float) -> None:
    """Exactly, over all that the seeds' variance may seem: problems are many, and theirs is known.

    95 % within a point (of two seeds 1.1); far out never more than a fifth above p: among many comparisons the smallest p counts.
    """
    seems = distributions.chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom
    missed = []
    for share in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95):
        halves = [Spread(share * each, freedom + 1, 1 - share, 10**9)._distance(p) for each in seems]
        missed.append(2 * float(distributions.norm.sf(halves).mean()))
    if p == 0.025:
        assert max(abs(each - 0.05) for each in missed) < (0.01 if freedom > 1 else 0.011)
    assert max(missed) < 1.2 * 2 * p


@given(st.floats(0, 1), st.integers(2, 12), st.floats(1e-9, 0.4), st.floats(1.01, 3))
def test_half_widths_grow_as_p_falls_and_tails_lead_back(share: float, seeds: int, p: float, times: float) -> None:
    found = Spread(share, seeds, 1 - share, 1000)
    assert found._distance(p / times) > found._distance(p)
    assert found.tail(found._distance(p)) == pytest.approx(p, rel=1e-4, abs=1e-12)


def simulated(seeds: int, spread_of_seeds: float, rng: np.random.Generator, n: int = 1000) -> np.ndarray:
    """Two rows that are equally good, on the same problems, each with its own luck of seeds: their difference."""
    problems = rng.normal(0.5, 1.5, n)[None]
    rows = [problems + rng.normal(0, spread_of_seeds, (seeds, 1)) for _ in range(2)]
    first, second = ((rng.random((seeds, n)) < 1 / (1 + np.exp(-row))).astype(float) for row in rows)
    return first - second


@pytest.mark.parametrize(
    ("seeds", "of_seeds"),
    [(1, 0.0), (2, 0.0), (2, 0.1), (2, 0.5), (3, 0.0), (3, 0.1), (3, 0.5), (5, 0.1), (5, 0.5), (10, 0.3)],
)
def test_intervals_of_differences_cover_as_often_as_they_say(seeds: int, of_seeds: float) -> None:
    """Within one point of 95 % at n = 1,000, up to the noise of the simulation (0.35 points)."""
    rng, repeats = np.random.default_rng(seeds), 4000
    found = [mean_interval(simulated(seeds, of_seeds, rng)) for _ in range(repeats)]
    covered = sum(low <= 0 <= high for low, high in found) / repeats
    assert abs(covered - 0.95) < 0.01 + 0.0035


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_problems"),
    [
        (1, 0.0, 1.5),
        (2, 0.0, 1.5),
        (2, 0.1, 1.5),
        (2, 0.3, 1.5),
        (3, 0.0, 0.0),
        (3, 0.1, 0.0),
        (3, 0.3, 1.5),
        (3, 0.05, 1.5),
        (3, 0.1, 1.5),
        (5, 0.1, 1.5),
        (10, 0.3, 1.5),
    ],
)
def test_intervals_of_accuracies_cover_as_often_as_they_say(seeds: int, of_seeds: float, of_problems: float) -> None:
    """Within a point of 95 % at n = 1,000, up to the simulation's noise: where seeds or problems are all the spread there is,
    and where both matter as much and seeds are few."""
    rng, n, repeats = np.random.default_rng(seeds), 1000, 2000
    ability = 1.5 + of_problems * rng.standard_normal(400_000) + of_seeds * rng.standard_normal(400_000)
    truth, covered = float((1 / (1 + np.exp(-ability))).mean()), 0
    for _ in range(repeats):
        logits = 1.5 + of_problems * rng.standard_normal(n) + of_seeds * rng.standard_normal((seeds, 1))
        low, high = share_interval((rng.random((seeds, n)) < 1 / (1 + np.exp(-logits))).astype(float))
        covered += low <= truth <= high
    noise = 2 * math.sqrt(0.95 * 0.05 / repeats)
    assert abs(covered / repeats - 0.95) < 0.01 + noise


def answered(rng: np.random.Generator, level: float, of_problems: float, of_seeds: np.ndarray, n: int) -> np.ndarray:
    """[seeds, n] right answers of a row: how hard each problem is, and how good each seed."""
    logits = level + of_problems * rng.standard_normal(n) + of_seeds[:, None]
    return (rng.random((len(of_seeds), n)) < 1 / (1 + np.exp(-logits))).astype(float)


def truth(level: float, *spreads: float) -> float:
    """Accuracy over all problems and seeds, by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ (1 / (1 + np.exp(-(level + math.hypot(*spreads) * nodes)))) / weights.sum())


COVERED = [(1, 0.0), (2, 0.0), (2, 0.1), (2, 0.5), (3, 0.0), (3, 0.1), (3, 0.5), (5, 0.3), (10, 0.3)]


@pytest.mark.parametrize(("seeds", "of_seeds"), COVERED)
def test_intervals_of_what_longer_problems_cost_cover_as_often_as_they_say(seeds: int, of_seeds: float) -> None:
    """Of the same seeds on two sets of problems, 1,000 and 500; the second is the harder for every seed, for some more so."""
    rng, repeats, covered = np.random.default_rng(seeds), 1000, 0
    lost = truth(2.5, 1.5, of_seeds) - truth(0.3, 1.5, of_seeds * math.sqrt(2))
    for _ in range(repeats):
        skill = of_seeds * rng.standard_normal(seeds)
        home = answered(rng, 2.5, 1.5, skill, 1000)
        far = answered(rng, 0.3, 1.5, skill + of_seeds * rng.standard_normal(seeds), 500)
        value, found = drop(home, far)
        low, high = found.around(value)
        covered += low <= lost <= high
    noise = 2 * math.sqrt(0.95 * 0.05 / repeats)
    assert abs(covered / repeats - 0.95) < 0.01 + noise


@pytest.mark.parametrize(("seeds", "of_seeds"), COVERED)
def test_intervals_of_the_difference_from_a_published_share_cover_as_often_as_they_say(
    seeds: int, of_seeds: float
) -> None:
    """As a claim about a published number is decided: its 1,000 problems are a sample, too. What is covered is the difference
    from that one published model; of how far seeds of its method differ nothing was published. Two seeds are up to 3 points on
    the safe side: the interval is never narrower than that of ours alone, which two seeds' may be by chance."""
    rng, repeats, covered, rejected = np.random.default_rng(seeds), 1000, 0, 0
    share = truth(2.5, 1.5)
    gap = truth(2.5, 1.5, of_seeds) - share
    for _ in range(repeats):
        hits = answered(rng, 2.5, 1.5, of_seeds * rng.standard_normal(seeds), 1000)
        paper = rng.binomial(1000, share) / 1000
        mean, (low, high) = float(hits.mean()), interval_from_published(hits, paper, 1000)
        covered += low <= gap <= high
        rejected += 2 * spread_from_published(hits, paper, 1000).tail(abs(mean - paper - gap)) < 0.05
    noise = 2 * math.sqrt(0.95 * 0.05 / repeats)
    assert 0.94 - noise < covered / repeats < (0.98 if seeds == 2 else 0.96) + noise
    assert rejected / repeats < 0.05 + noise


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (3, 0.0), (3, 0.1), (5, 0.3), (10, 0.3)])
def test_rows_that_differ_by_the_margin_are_hardly_ever_called_equivalent(seeds: int, of_seeds: float) -> None:
    """At the margin itself at most 5 % (Schuirmann 1987); rows that are equal are called so more often, the surer they are."""
    rng, repeats, wrong, right = np.random.default_rng(seeds), 1000, 0, 0
    level, margin = 0.5, 0.08
    better = brentq(lambda up: truth(level + up, 1.5, of_seeds) - truth(level, 1.5, of_seeds) - margin, 0, 2)
    for _ in range(repeats):
        hard = 1.5 * rng.standard_normal(1000)
        one, two, three = (
            (
                rng.random((seeds, 1000))
                < 1 / (1 + np.exp(-(level + up + hard + of_seeds * rng.standard_normal((seeds, 1)))))
            ).astype(float)
            for up in (better, 0.0, 0.0)
        )
        wrong += equivalence_p(one - two, margin) < 0.05
        right += equivalence_p(three - two, margin) < 0.05
    noise = 2 * math.sqrt(0.95 * 0.05 / repeats)
    assert wrong / repeats < 0.05 + noise
    assert right / repeats > 0.3


def test_a_bootstrap_over_three_seeds_does_not() -> None:
    """Why no verdict rests on it: where seeds matter it is too narrow, and where they do not, too wide."""
    rng, repeats = np.random.default_rng(0), 200

    def covered(of_seeds: float) -> float:
        found = [hierarchical_bootstrap(simulated(3, of_seeds, rng, 300), rng, 400) for _ in range(repeats)]
        return sum(low <= 0 <= high for low, high in found) / repeats

    assert covered(0.5) < 0.93
    assert covered(0.0) > 0.97


def test_a_bootstrap_of_one_seed_is_that_of_its_problems() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((1, 500)) < 0.7).astype(float)
    (low, high), mean = hierarchical_bootstrap(values, rng, 20_000), values.mean()
    half = 1.96 * math.sqrt(mean * (1 - mean) / 500)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.004)
    theirs = distributions.bootstrap((values[0],), np.mean, method="percentile", n_resamples=9_999, rng=rng)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)
    with pytest.raises(ValueError, match="at least 2 problems and draws, got 1 and 2000"):
        hierarchical_bootstrap(np.ones((3, 1)), rng, 2000)


def test_a_bootstrap_draws_seeds_with_the_variance_that_they_have() -> None:
    """Problems alike: the mean over seeds that are drawn varies as the analysis of variance says, not by (S − 1)/S of it."""
    values = np.repeat(np.random.default_rng(2).normal(size=(12, 1)), 400, axis=1)
    low, high = hierarchical_bootstrap(values, np.random.default_rng(3), 40_000)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(values[:, 0].var(ddof=1) / 12), rel=0.03)
    again = hierarchical_bootstrap(values, np.random.default_rng(3), 40_000)
    assert (low, high) == again  # the generator is passed, and nothing else is random


def test_tests_reject_what_is_true_as_often_as_they_say() -> None:
    """At p < 0.05: McNemar's exact test never more often, Holm's first rejection of ten, paired t's of three seeds in 5 %."""
    rng, repeats = np.random.default_rng(5), 2000
    noise = 2 * math.sqrt(0.05 * 0.95 / repeats)
    coins = rng.binomial(200, 0.5, repeats)
    wrong = sum(mcnemar(int(k), 200 - int(k)) < 0.05 for k in coins) / repeats
    assert 0.02 < wrong < 0.05 + noise
    uniform = rng.random((repeats, 10))
    assert abs(sum(min(holm(list(row))) < 0.05 for row in uniform) / repeats - (1 - 0.995**10)) < noise
    paired = sum(paired_p(simulated(3, 0.3, rng)) < 0.05 for _ in range(repeats)) / repeats
    assert abs(paired - 0.05) < 0.01 + noise


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9, 0.963])
def test_wilson_covers_within_a_point_at_a_thousand(p: float) -> None:
    """Exactly, by summing over all outcomes; the mean over neighbouring p, because coverage of discrete data oscillates."""
    found = []
    intervals = [wilson(k, 1000) for k in range(1001)]
    for near in np.linspace(p - 0.01, p + 0.01, 41):
        inside = np.array([each.low <= near <= each.high for each in intervals])
        found.append(distributions.binom.pmf(np.arange(1001), 1000, near)[inside].sum())
    assert abs(np.mean(found) - 0.95) < 0.01


def test_probability_of_improvement_counts_pairs_of_seeds() -> None:
    assert probability_of_improvement([3.0, 1.0], [2.0, 1.0]) == (1 + 1 + 0 + 0.5) / 4


def test_the_seeds_it_takes_shrink_with_the_distance_and_may_not_exist() -> None:
    rng = np.random.default_rng(0)
    values = simulated(3, 0.4, rng)
    mean = float(values.mean())
    far, near = seeds_to_decide(values, mean - 0.3), seeds_to_decide(values, mean - 0.05)
    assert far is not None and near is not None and 3 < far <= near
    assert seeds_to_decide(values, mean) is None  # no number of seeds parts a value from itself
    assert seeds_to_decide(values[:1], 0.0) is None


def test_the_runs_it_takes_are_those_of_a_power_analysis() -> None:
    """Three values of mean 1 and standard deviation s, against 0: statsmodels solves the power of Student's test for it."""
    for deviation in (0.5, 1.0, 2.0, 3.0):
        values = [1 - deviation, 1.0, 1 + deviation]
        exact = TTestPower().solve_power(effect_size=1 / deviation, alpha=0.05, power=0.8)
        found = runs_to_decide(values, 0.0)
        assert found is not None and math.ceil(exact) <= found <= math.ceil(exact) + 1


def test_more_seeds_narrow_what_is_known_of_seeds_and_nothing_else() -> None:
    found = Spread(of_seeds=0.03**2, seeds=3, of_problems=0.01**2, problems=1000)
    needed = spread_to_decide(found, 0.05)
    assert needed is not None
    for seeds, enough in ((needed, True), (needed - 1, False)):
        of_seeds, of_problems = 3 * 0.03**2 / seeds, 0.01**2
        widths = [
            math.sqrt(
                distributions.t.isf(p, seeds - 1) ** 2 * of_seeds + distributions.t.isf(p, 999) ** 2 * of_problems
            )
            for p in (0.025, 0.2)
        ]
        assert (sum(widths) < 0.05) is enough
    assert spread_to_decide(found, 0.025) is None  # the problems alone are 0.028 wide: no number of seeds helps
    assert spread_to_decide(found._replace(seeds=1), 0.05) is None
    lost, of_drop = drop(np.array([[1.0] * 90 + [0.0] * 10] * 3), np.array([[1.0] * 40 + [0.0] * 60] * 3))
    assert lost == 0.5 and spread_to_decide(of_drop, 0.4) == 4


def test_a_number_of_each_run_has_students_interval() -> None:
    assert seed_interval([1.0]) is None
    low, high = seed_interval([1.0, 2.0, 3.0]) or (math.nan, math.nan)
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)


@pytest.mark.parametrize("seeds", [(2, 2), (3, 5)])
def test_two_rows_without_a_common_seed_are_hardly_ever_called_different_by_chance(seeds: tuple[int, int]) -> None:
    """The problems are the same and are counted as others: the test says too little, never too much."""
    rng = np.random.default_rng(sum(seeds))
    called = 0
    for _ in range(400):
        ease = rng.random(200)
        rows = [(ease + 0.2 * rng.standard_normal((n, 200)) + 0.02 * rng.standard_normal((n, 1)) < 0.7) for n in seeds]
        called += unpaired_p(*(row.astype(float) for row in rows)) < 0.05
    assert called / 400 <= 0.05


def test_two_rows_that_do_differ_are_told_apart_without_a_common_seed() -> None:
    rng = np.random.default_rng(0)
    good, bad = ((rng.random((3, 1000)) < share).astype(float) for share in (0.9, 0.5))
    assert unpaired_p(good, bad) < 0.001
    assert unpaired_p(good, bad) == unpaired_p(bad, good)


def test_moderated_variances_are_those_of_limma() -> None:
    """By hand, Smyth's formulas with scipy's functions: five variances of two degrees of freedom each, and their prior."""
    variances = np.array([1.0, 2.0, 8.0, 0.05, 3.0])
    logs = np.log(variances) - special.digamma(1) + np.log(1)
    excess = logs.var(ddof=1) - special.polygamma(1, 1)
    found = moderated([Spread(v, 3, 0.1, 100) for v in variances], most=1e9)
    assert found[0].freedom is not None
    prior = 2 * (found[0].freedom - 2)  # half of it counts
    assert special.polygamma(1, prior / 2) == pytest.approx(excess)
    common = np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2))
    for own, each in zip(variances, found, strict=True):
        assert each.of_seeds == pytest.approx(max(own, (prior * common + 2 * own) / (prior + 2)))
        assert (each.of_problems, each.problems) == (0.1, 100)
    capped = moderated([Spread(v, 3, 0.1, 100) for v in variances], most=2.1)
    assert {each.freedom for each in capped} == {2.1}


def test_variances_that_lie_no_further_apart_than_chance_puts_them_are_one() -> None:
    alike = [Spread(v, 3, 0.0, 100) for v in (0.9, 1.0, 1.1, 1.0)]
    found = moderated(alike, most=8.0)
    assert len({round(each.of_seeds, 12) for each in found if each.of_seeds > 1.1}) <= 1
    assert min(each.of_seeds for each in found) > 0.9  # the smallest is lent the common one, the largest keeps its own
    assert {each.freedom for each in found} == {8.0}
    few = alike[:2]
    assert moderated(few, most=8.0) == few  # of two nobody can say how far they lie apart
    lone = Spread(0.0, 1, 0.2, 100)
    assert moderated([*alike, lone], most=8.0)[-1] == lone


@pytest.mark.parametrize(("noisy", "rows"), [(1.0, 3), (4.0, 1), (4.0, 3), (8.0, 3)])
def test_moderated_comparisons_of_equal_rows_are_seldom_called_different(noisy: float, rows: int) -> None:
    """A board of ten equally good rows over three seeds, of which some have seeds that differ `noisy` times as much: any two are
    called different at most as often as Holm promises. A row that is better is nearly always seen where none is noisy."""
    rng, boards, called, seen = np.random.default_rng(1), 300, 0, 0.0
    deviation = 0.02 * np.array([noisy] * rows + [1.0] * (10 - rows))
    for _ in range(boards):
        runs = rng.normal(0, deviation[:, None], (10, 3))
        for better in (0.0, 0.25):
            runs[-1] += better
            gaps = [runs[i] - runs[j] for i, j in combinations(range(10), 2)]
            lent = moderated([Spread(gap.var(ddof=1) / 3, 3, 0.0, 1000) for gap in gaps], most=20)
            p = holm(
                [
                    float(2 * distributions.t.sf(abs(gap.mean()) / each.of_seeds**0.5, each.freedom))
                    for gap, each in zip(gaps, lent, strict=True)
                ]
            )
            if better:
                seen += sum(p[k] < 0.05 for k, (_, j) in enumerate(combinations(range(10), 2)) if j == 9) / 9
            else:
                called += min(p) < 0.05
    assert called / boards < 0.05 + 2 * math.sqrt(0.05 * 0.95 / boards)
    assert seen / boards > (0.9 if noisy == 1.0 else 0.15)
