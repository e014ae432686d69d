"""Paired comparison by star against numbers that can be done by hand, SciPy, and simulated stars."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, wilcoxon

from harps_dist.promotion.paired import interval, p_value, paired


def test_stars_count_once_whatever_their_visits():
    """Star a: old 1, 3, new 2, 6; b: old 10, new 8. By star: old 2 and 10, new 4 and 8; changes +2 and -2."""
    found = paired(np.array([1.0, 3.0, 10.0]), np.array([2.0, 6.0, 8.0]), np.array(["a", "a", "b"]))
    assert (found.old, found.new, found.difference, found.stars) == (6.0, 6.0, 0.0, 2)
    assert np.isnan([found.low, found.high, found.p_value]).all()  # of two stars


def test_only_pairs_that_are_whole_count():
    old, new = np.array([1.0, np.nan, 3.0, 4.0]), np.array([2.0, 5.0, np.inf, 4.0])
    found = paired(old, new, np.arange(4))
    assert (found.old, found.new, found.difference, found.stars) == (2.5, 3.0, 0.5, 2)
    assert np.isnan(paired(old * np.nan, new, np.arange(4)).difference)


def test_a_model_against_itself_does_not_differ():
    errors = np.linspace(1, 2, 30)
    found = paired(errors, errors, np.arange(30))
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_visits_repeated_narrow_no_interval():
    rng = np.random.default_rng(0)
    old, change = rng.gamma(2, 10, 25), rng.normal(0, 5, 25)
    once = paired(old, old + change, np.arange(25))
    often = paired(np.repeat(old, 40), np.repeat(old + change, 40), np.repeat(np.arange(25), 40))
    np.testing.assert_allclose(often, once, rtol=1e-9)
    assert once.p_value == pytest.approx(wilcoxon(change).pvalue)


def test_the_interval_is_the_same_every_time():
    values = np.random.default_rng(1).normal(size=40)
    assert interval(values) == interval(values)
    low, high = interval(values)
    assert low < values.mean() < high


@pytest.mark.parametrize("stars", [5, 8, 30, 1200])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_hold_the_truth_as_often_as_they_say(stars, shape):
    """Errors of either model with a common part for each star; the difference is 0.3 in truth."""
    rng = np.random.default_rng(stars)
    trials, inside = (400 if stars < 1000 else 100), 0
    for _ in range(trials):
        noise = rng.normal(0, 1, stars) if shape == "normal" else rng.gamma(1.0, 1.0, stars) - 1.0
        low, high = interval(0.3 + noise)
        inside += low <= 0.3 <= high
    few_and_skewed = shape == "skewed" and stars < 20  # no interval can know the tail from so few
    # Of 95 % intervals 88 (few and skewed) or 93 % to 98 % hold the truth; counts beyond are chance once in 1e7.
    low, high = binom.ppf(1e-7, trials, 0.88 if few_and_skewed else 0.93), binom.isf(1e-7, trials, 0.98)
    assert low <= inside <= high


def test_too_few_stars_have_no_interval_and_no_test():
    assert np.isnan(interval(np.arange(4.0))).all()
    assert np.isnan(p_value(np.arange(4.0)))
    assert np.isfinite(interval(np.arange(5.0))).all()
    assert p_value(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 2**5)  # all up, or all down
