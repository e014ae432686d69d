"""Statistics of visits to stars against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from harps_dist.benchmarks.visits import method_score, robust_scatter, scatter_about_line, star_score, without_errors

NAN = float("nan")


def scored(
    values, label="teff", reference=(5000.0, 50.0), stated=10.0, flagged=(), mjd=None, star="TIC 1", method="fit"
):
    values = np.array(values, float)
    flags = np.isin(np.arange(len(values)), flagged)
    days = np.arange(len(values), dtype=float) if mjd is None else np.array(mjd, float)
    return star_score(star, "HD 1", method, label, reference, values, np.full(len(values), stated), flags, days)


def test_scatter_of_a_normal_distribution_is_its_standard_deviation():
    values = np.random.default_rng(0).normal(100.0, 7.0, 100_000)
    assert robust_scatter(values) == pytest.approx(7.0, rel=0.01)
    values[:20_000] += 1e4  # a fifth lies far off, which the standard deviation would show
    assert robust_scatter(values) < 12
    assert robust_scatter(np.array([1.0, 3.0])) == pytest.approx(1.4826)
    assert np.isnan(robust_scatter(np.array([1.0])))


def test_scatter_about_a_line_sees_no_trend_and_counts_its_parameters():
    days = np.array([56000.0, 56010.0, 56020.0, 56030.0])
    left = np.array([1.0, -1.0, -1.0, 1.0])  # orthogonal to constant and slope
    assert scatter_about_line(days, 3.0 + 0.2 * (days - 56000) + left) == pytest.approx((4 / 2) ** 0.5)
    assert scatter_about_line(days[::-1], (3.0 + 0.2 * (days - 56000) + left)[::-1]) == pytest.approx(2**0.5)
    assert np.isnan(scatter_about_line(days[:3], left[:3]))
    assert np.isnan(scatter_about_line(np.full(4, 56000.0), left))
    assert np.isnan(scatter_about_line(np.array([NAN, *days[1:]]), left))
    assert np.isnan(scatter_about_line(np.full(4, NAN), left))


def test_scatter_about_a_line_is_the_noise_in_the_mean_over_many():
    draw, days = np.random.default_rng(1), np.sort(np.random.default_rng(2).uniform(0, 50, 8))
    squares = [scatter_about_line(days, 0.1 * days + draw.normal(0, 0.01, 8)) ** 2 for _ in range(4000)]
    assert np.mean(squares) == pytest.approx(1e-4, rel=0.05)


def test_errors_of_references_are_subtracted_in_quadrature():
    values = np.array([-5.0, 0.0, 5.0])
    assert without_errors(values, np.full(3, 3.0)) == pytest.approx(((5 * 1.4826) ** 2 - 9) ** 0.5)
    assert without_errors(values, np.full(3, 10.0)) == 0.0
    assert np.isnan(without_errors(values[:1], np.ones(1)))
    assert np.isnan(without_errors(values[:0], np.ones(0)))


def test_a_star_is_scored_by_its_unflagged_visits():
    score = scored([5010, 5030, 5020, 9000, NAN], flagged=(3, 4), stated=5.0)
    assert (score.visits, score.flagged, score.used, score.trusted) == (5, 2, 3, True)
    assert (score.median, score.bias) == (5020.0, 20.0)
    assert score.scatter == pytest.approx(14.826)
    assert score.ratio == pytest.approx(14.826 / 5)
    assert np.isnan(score.about_line)  # of a temperature


def test_a_star_of_which_all_values_are_flagged_is_scored_by_them_and_told_apart():
    score = scored([5100, 5200, NAN], flagged=(0, 1))
    assert (score.visits, score.flagged, score.used, score.trusted, score.bias) == (3, 2, 2, False, 150.0)
    nothing = scored([NAN, NAN], flagged=(0, 1))
    assert (nothing.used, nothing.trusted) == (0, False)
    assert np.isnan([nothing.median, nothing.bias, nothing.scatter, nothing.stated, nothing.ratio]).all()


def test_velocities_have_a_scatter_about_a_line():
    score = scored([1.0, 2.0, 3.0, 4.0], label="rv", reference=(2.0, NAN), stated=0.01)
    assert score.about_line == pytest.approx(0.0, abs=1e-9)
    assert score.scatter == pytest.approx(1.4826)


def test_over_stars_those_with_an_unflagged_visit_count_and_all_beside():
    scores = [
        scored([5010], star="a", reference=(5000, 3.0)),
        scored([4990], star="b", reference=(5000, NAN)),
        scored([5030, 5030], star="c", reference=(5000, 3.0)),
        scored([5500], star="d", flagged=(0,)),
        scored([5500], star="e", reference=(NAN, NAN)),
        scored([9999], star="a", method="network"),
    ]
    one, every = (method_score(scores, "fit", "teff", sample) for sample in ("unflagged", "all"))
    assert (one.stars, one.spectra, one.stars_with_errors) == (3, 4, 2)
    assert one.bias == 10.0
    assert one.scatter == pytest.approx(20 * 1.4826)
    assert one.intrinsic == pytest.approx(((10 * 1.4826) ** 2 - 9) ** 0.5)
    assert one.mae == pytest.approx(50 / 3)
    assert one.mae_error == pytest.approx(np.std([10, 10, 30], ddof=1) / 3**0.5)
    assert (every.stars, every.spectra, every.bias) == (4, 5, 20.0)
    nothing = method_score(scores, "fit", "logg", "all")
    assert (nothing.stars, nothing.spectra) == (0, 0)
    assert np.isnan([nothing.bias, nothing.scatter, nothing.mae, nothing.mae_error, nothing.intrinsic]).all()
