import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cdbench.stats import holm, paired_permutation, two_level_interval, wilson


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_statsmodels(kn: tuple[int, int]) -> None:
    k, n = kn
    low, high = proportion_confint(k, n, method="wilson")
    share = wilson(k, n)
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-12)
    assert share.low <= share.value <= share.high


def test_wilson_of_the_papers_accuracy() -> None:
    # 96.3 % of 1,000 is [94.9, 97.3] (errata A13).
    assert (round(wilson(963, 1000).low, 3), round(wilson(963, 1000).high, 3)) == (0.949, 0.973)
    with pytest.raises(ValueError, match="0 <= k <= n"):
        wilson(3, 2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_the_two_level_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Seeds without an effect of their own: problems alone vary, and 95 % is owed.
    rng = np.random.default_rng(1)
    covered = 0
    for repeat in range(150):
        difficulty = rng.beta(4, 1.5, 150)
        hits = (rng.random((5, 150)) < difficulty).astype(float)
        low, high = two_level_interval(hits, seed=repeat)
        covered += low <= 4 / 5.5 <= high
    assert covered / 150 > 0.92


def test_the_sign_flip_test_by_hand_and_under_the_null() -> None:
    # Four problems all in favour: 2 of the 16 sign patterns are as extreme.
    assert paired_permutation(np.zeros((1, 4)), np.ones((1, 4))) == pytest.approx(2 / 16, abs=0.02)
    assert paired_permutation(np.ones((2, 5)), np.ones((2, 5))) == 1.0
    rng = np.random.default_rng(2)
    p = [paired_permutation(rng.integers(0, 2, (1, 80)) * 1.0, rng.integers(0, 2, (1, 80)) * 1.0) for _ in range(150)]
    assert np.mean(np.array(p) < 0.05) < 0.1
    assert 0.4 < np.mean(p) < 0.65


def test_intervals_are_the_same_every_time() -> None:
    hits = np.random.default_rng(0).integers(0, 2, (3, 50)).astype(float)
    assert two_level_interval(hits) == two_level_interval(hits)
