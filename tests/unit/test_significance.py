"""Significance against SciPy and statsmodels, and against what repeated visits do to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from statsmodels.stats.multitest import multipletests

from harps_dist.evaluation.significance import compare, holm, mean_by_star


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(np.array(p_values)), expected, rtol=1e-12, atol=1e-15)


def test_the_best_is_compared_with_every_other():
    rng = np.random.default_rng(0)
    errors = {"a": rng.exponential(2.0, 300), "best": rng.exponential(1.0, 250), "c": rng.exponential(3.0, 280)}
    gappy = errors | {"c": np.append(errors["c"], [np.nan] * 20), "empty": np.full(5, np.nan)}
    found = compare(gappy)
    raw = [mannwhitneyu(errors["best"], errors[name]).pvalue for name in ("a", "c")]
    expected = multipletests(raw, method="holm")[1]
    assert found.best == "best"
    assert list(found.p_values) == ["a", "c"]
    np.testing.assert_allclose(list(found.p_values.values()), expected, rtol=1e-12)
    assert found.significant(1.01 * expected.max())
    assert not found.significant(0.99 * expected.max())


def test_a_model_alone_outperforms_nobody():
    assert compare({"a": np.full(3, np.nan)}) is None
    assert not compare({"a": np.ones(3)}).significant()


def test_visits_repeated_do_not_make_stars():
    """Three stars a model, 100 visits each: significant by spectrum, which is wrong, and not by star."""
    stars = np.repeat(["x", "y", "z"], 100)
    errors = {"a": np.repeat([1.0, 2.0, 3.0], 100), "b": np.repeat([1.5, 2.5, 3.5], 100)}
    assert compare(errors).significant()
    by_star = {name: mean_by_star(values, stars) for name, values in errors.items()}
    assert not compare(by_star).significant()
    assert by_star["a"].tolist() == pytest.approx([1.0, 2.0, 3.0])


def test_mean_by_star_leaves_missing_labels_out():
    means = mean_by_star(np.array([1.0, np.nan, 3.0, np.nan]), np.array(["b", "b", "b", "a"]))
    np.testing.assert_array_equal(means, [np.nan, 2.0])
