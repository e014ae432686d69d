"""Calibration against counts that can be done by hand, SciPy, and the conformal guarantee."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, laplace, norm

from harps_dist.evaluation.calibration import LabelPredictions, calibrate, conformal_factor, half_width, pit
from harps_dist.evaluation.calibration_report import calibration_figure, calibration_tables
from harps_dist.evaluation.measures import LEVELS


def predictions(residual, sigma=1.0, stars=None, **columns) -> LabelPredictions:
    residual = np.asarray(residual, dtype=np.float64)
    n = len(residual)
    given = {
        "truth": np.full(n, 5000.0),
        "predicted": 5000.0 + residual,
        "sigma": np.broadcast_to(np.asarray(sigma, dtype=np.float64), n),
        "stars": np.arange(n) if stars is None else np.asarray(stars),
        "snr": np.linspace(10, 100, n),
        "teff_k": np.linspace(4000, 6000, n),
    }
    return LabelPredictions(**(given | columns))


def test_coverage_counts_truths_within_the_interval():
    test = predictions([0.0, 0.9, -0.9, 1.5, -1.7, 1.9, 2.5, -3.0, 0.1, 0.2], sigma=1.0)
    found = calibrate("teff", test, test, "gaussian")
    assert [at.raw for at in found.coverage] == pytest.approx([0.5, 0.6, 0.8], abs=1e-9)  # 0.994, 1.645, 1.960 sigma
    assert found.coverage[0].error == pytest.approx((0.5 * 0.5 / 9) ** 0.5, abs=1e-9)
    assert found.coverage[0].error_stars == pytest.approx(found.coverage[0].error, abs=1e-9)
    doubled = calibrate("teff", test._replace(sigma=2 * test.sigma), test, "gaussian")
    assert [at.raw for at in doubled.coverage] == pytest.approx([0.8, 1.0, 1.0], abs=1e-9)
    by_teff = [part for part in found.bins if part.by == "teff"]
    assert [part.spectra for part in by_teff] == [4, 3, 3]
    assert [part.raw[0] for part in by_teff] == pytest.approx([0.75, 0.0, 2 / 3], abs=1e-9)


@pytest.mark.parametrize(("likelihood", "unit"), [("gaussian", norm()), ("laplace", laplace(scale=0.5**0.5))])
def test_pit_and_intervals_are_those_of_a_likelihood_of_unit_deviation(likelihood, unit):
    assert unit.std() == pytest.approx(1, abs=1e-9)
    residual, sigma = np.array([-2.0, 0.0, 0.3, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])
    test = predictions(residual, sigma)
    np.testing.assert_allclose(pit(test, likelihood), unit.cdf(-residual / sigma), rtol=1e-9)
    for level in LEVELS:
        width = half_width(level, likelihood)
        assert unit.cdf(width) - unit.cdf(-width) == pytest.approx(level, abs=1e-9)
    found = calibrate("teff", test, test, likelihood)
    assert found.ks == pytest.approx(kstest(unit.cdf(-residual / sigma), "uniform").statistic, abs=1e-9)
    assert sum(found.pit) == pytest.approx(1, abs=1e-9)


def test_conformal_factor_of_single_visits_is_the_usual_quantile():
    deviations = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))  # 99 of them
    for level in (0.68, 0.90, 0.95):
        assert conformal_factor(deviations, np.arange(99), level) == np.ceil(100 * level)
    assert conformal_factor(deviations[:18], np.arange(18), 0.95) == np.inf
    assert np.isfinite(conformal_factor(deviations[:19], np.arange(19), 0.95))
    assert np.isnan(conformal_factor(np.array([1.0, np.nan]), np.arange(2), 0.5))


def test_a_star_counts_once_however_often_it_was_observed():
    deviations, stars = np.array([1.0, 2.0, 3.0, *[9.0] * 50]), np.array([0, 1, 2, *[3] * 50])
    assert conformal_factor(deviations, stars, 0.6) == 3.0  # three of four stars, of five weights
    assert conformal_factor(deviations, stars, 0.61) == 9.0
    assert conformal_factor(deviations, np.arange(53), 0.6) == 9.0


@pytest.mark.parametrize("wrong", [0.3, 1.0, 4.0])
def test_conformal_intervals_hold_what_they_promise_for_new_stars(wrong):
    """Stars with an error of their own and noise on top, predicted sigma wrong by a factor."""
    draw = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        visits = draw.integers(1, 9, 61)
        stars = np.repeat(np.arange(61), visits)
        residual = draw.normal(0, 1, 61)[stars] + draw.normal(0, 0.5, len(stars))
        last = stars == 60
        factor = conformal_factor(np.abs(residual[~last]) * wrong, stars[~last], 0.90)
        covered.append((np.abs(residual[last]) * wrong <= factor).mean())
    assert np.mean(covered) == pytest.approx(0.90 + 0.5 / 61, abs=5.5 * np.std(covered) / 20)  # chance: 4e-8


def test_missing_truths_do_not_count_and_failed_predictions_show():
    whole = predictions([0.0, 3.0, 0.0, 3.0])
    missing = whole._replace(truth=np.array([5000.0, np.nan, 5000.0, np.nan]))
    found = calibrate("teff", missing, whole, "gaussian")
    assert (found.spectra, found.coverage[0].raw) == (2, 1.0)
    failed = whole._replace(predicted=np.array([5000.0, np.nan, 5000.0, 5003.0]))
    found = calibrate("teff", failed, whole, "gaussian")
    assert np.isnan([found.ks, found.coverage[0].raw]).all()


def test_tables_and_figure_show_every_label(tmp_path):
    draw = np.random.default_rng(2)
    found = [
        calibrate(name, predictions(draw.normal(0, 2, 2000)), predictions(draw.normal(0, 2, 2000)), "gaussian")
        for name in ("teff", "mh")
    ]
    assert found[0].coverage[1].raw < 0.8 < found[0].coverage[1].conformal  # 0.59 and 0.90, each ± 0.01
    tables = calibration_tables(found)
    assert tables.count("teff") == 1 + 6 + 3 + 3  # coverage, its bins, and the bins by teff of either label
    calibration_figure(tmp_path / "calibration.png", found)
    assert (tmp_path / "calibration.png").stat().st_size > 10_000
