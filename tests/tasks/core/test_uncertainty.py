"""Intervals and tests against published values, numbers worked out by hand, and scipy's own implementations."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tasks.core.uncertainty import bootstrap, bootstrap_mean, detectable, mcnemar, mcnemar_better, wilson


def test_wilson_interval_published_values() -> None:
    low, high = wilson(8, 10)  # 0.4902 .. 0.9433, e.g. in Brown, Cai and DasGupta's tables
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))
    assert wilson(0, 0) == (None, None)


@pytest.mark.parametrize(
    ("gained", "lost", "better", "differs"),
    [
        (0, 0, 1.0, 1.0),
        (1, 0, 1 / 2, 1.0),
        (0, 1, 1.0, 1.0),
        (5, 0, 1 / 32, 2 / 32),
        (3, 1, 5 / 16, 10 / 16),
        (1, 3, 15 / 16, 10 / 16),
        (2, 2, 11 / 16, 1.0),
        (0, 6, 1.0, 2 / 64),
    ],
)
def test_mcnemar_by_hand(gained: int, lost: int, better: float, differs: float) -> None:
    assert mcnemar_better(gained, lost) == pytest.approx(better)
    assert mcnemar(gained, lost) == pytest.approx(differs)


def test_mcnemar_is_the_binomial_test() -> None:
    for gained, lost in [*itertools.product(range(7), repeat=2), (130, 97), (1200, 1100)]:
        if gained + lost:
            both = [stats.binomtest(gained, gained + lost, 0.5, kind).pvalue for kind in ("greater", "two-sided")]
            assert [mcnemar_better(gained, lost), mcnemar(gained, lost)] == pytest.approx(both)


def test_the_smallest_difference_that_a_set_can_tell() -> None:
    assert detectable(12, 0, 0.05) == pytest.approx(5 / 12)  # 1/32 is the first power of 1/2 below 0.05
    assert detectable(300, 4, 0.05) == pytest.approx(8 / 300)  # 12 against 4: p = 0.0384; 11 against 4: 0.0592
    assert detectable(4, 0, 0.05) is None
    assert detectable(1, 0, 0.5) == 1.0
    assert detectable(5, 3, 0.05) is None


def test_the_smallest_difference_is_the_first_that_the_test_accepts() -> None:
    for lost in range(5):
        found = detectable(200, lost, 0.05)
        assert found is not None
        gained = round(found * 200) + lost
        assert mcnemar_better(gained, lost) <= 0.05 < mcnemar_better(gained - 1, lost)


def test_bootstrap_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).random(80) ** 2
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert bootstrap_mean(list(values)) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    assert bootstrap_mean(list(values)) == bootstrap_mean(list(values))


def test_bootstrap_at_the_edges() -> None:
    assert bootstrap_mean([]) == (None, None)
    assert bootstrap_mean([1.0]) == (None, None)
    assert bootstrap_mean([1.0, 1.0, 1.0]) == (None, None)
    assert bootstrap_mean([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap(5, lambda chosen: None) == (None, None)
