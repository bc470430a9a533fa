"""Intervals hold what they promise."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxmem.evaluation.confidence import Estimate, spearman


def test_a_t_interval_is_the_textbook_one():
    x = np.random.default_rng(0).normal(size=7)
    low, high = scipy.stats.t.interval(0.95, 6, x.mean(), scipy.stats.sem(x))
    e = Estimate.of(x)
    assert (e.mean, e.low, e.high) == pytest.approx((x.mean(), low, high))


@pytest.mark.parametrize("n", [2, 5, 30])
def test_an_interval_holds_the_truth_95_times_in_100(n):
    draws = np.random.default_rng(1).normal(3, 2, (2000, n))
    inside = [e.low <= 3 <= e.high for e in map(Estimate.of, draws)]
    assert abs(np.mean(inside) - 0.95) < 0.015


def test_an_interval_stays_where_the_samples_can_be():
    e = Estimate.of([0.9, 1.0, 1.0], least=0.0, most=1.0)
    assert e.low < e.mean < e.high == 1


def test_one_sample_has_no_interval():
    assert Estimate.of([2.0]) == Estimate(2.0) and str(Estimate(2.0)) == "2"


def test_the_exponential_of_an_estimate_is_end_by_end():
    assert Estimate(0.0, -1.0, 1.0).exp() == Estimate(1.0, math.exp(-1), math.exp(1))
    assert Estimate(1e4).exp() == Estimate(math.inf)


@pytest.mark.parametrize("ties", [2, 5, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_rank_correlation_is_scipys_with_ties_too(ties, sign):
    rng = np.random.default_rng(0)
    x = rng.integers(0, ties, 200)
    y = sign * (x + rng.integers(0, ties, 200))
    e = spearman(x, y)
    assert e.mean == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert e.low < e.mean < e.high


def test_the_interval_of_a_rank_correlation_holds_the_truth():
    rng = np.random.default_rng(3)
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman of a bivariate normal
    draws = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], (500, 100))
    inside = [e.low <= truth <= e.high for e in (spearman(*d.T) for d in draws)]
    assert abs(np.mean(inside) - 0.95) < 0.03


def test_perfect_order_is_one():
    e = spearman(range(9), range(9))
    assert e.mean == e.low == e.high == pytest.approx(1)


@pytest.mark.parametrize(
    "x, y, message",
    [
        ([1, 2, 3], [1, 2, 3], "expected >= 4 pairs"),
        ([1, 2, 3, 4], [1, 2, 3], "expected >= 4 pairs"),
        ([1, 2, 3, 4], [1, 1, 1, 1], "all equal"),
    ],
)
def test_what_has_no_order_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        spearman(x, y)
