import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from cdbench.stats import wilson


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
