"""Functions that are the same on every machine, against those of libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.interpolate import CubicSpline, RegularGridInterpolator
from scipy.ndimage import gaussian_filter1d, spline_filter1d
from scipy.sparse.linalg import spsolve

from harps_dist.formats.sed import ASSET, SedGrid
from harps_dist.spectra import exact
from harps_dist.spectra import spline as splines
from harps_dist.spectra.doppler import bspline_coefficients as on_device
from harps_dist.spectra.spline import bspline_coefficients, cubic_spline, linear, repeated_spline
from preprocessing.simulator.draws import exponentials, normals, uniform


def drawn(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, 20_000)


@pytest.mark.parametrize(
    ("found", "expected", "x"),
    [
        (exact.exp, math.exp, drawn(-700, 700)),
        (exact.exp, math.exp, drawn(-1e-3, 1e-3)),
        (exact.log, math.log, np.exp(drawn(-700, 700))),
        (exact.log, math.log, 1 + drawn(-1e-3, 1e-3)),
        (exact.arcsin, math.asin, drawn(-0.99, 0.99)),
        (lambda x: exact.power(10, x), lambda x: math.pow(10, x), drawn(-12, 12)),
    ],
)
def test_functions_are_those_of_the_c_library(found, expected, x):
    tolerance = 2e-14 if expected.__name__ == "<lambda>" else 1e-15  # a power's error grows with its logarithm
    np.testing.assert_allclose(found(x), [expected(value) for value in x.tolist()], rtol=tolerance)


def test_ends_of_functions():
    np.testing.assert_array_equal(exact.exp([0.0, -800.0, -1e5]), [1, 0, 0])
    np.testing.assert_allclose(exact.log([1.0, 2.0**-1000]), [0, -1000 * math.log(2)], rtol=1e-15)
    assert float(exact.exp(1.0)) == pytest.approx(math.e, rel=1e-15)


def test_sine_and_cosine():
    x = drawn(-1e4, 1e4)
    sine, cosine = exact.sin_cos(x)
    np.testing.assert_allclose(sine, np.sin(x), atol=4e-16)
    np.testing.assert_allclose(cosine, np.cos(x), atol=4e-16)
    np.testing.assert_array_equal(exact.sin_cos(0.0), (0, 1))


def test_a_blur_is_a_gaussian():
    values = drawn(0, 1)
    assert exact.gaussian_blur(values, 0.0) is values
    expected = gaussian_filter1d(values, 2.3, mode="mirror", radius=12)
    np.testing.assert_allclose(exact.gaussian_blur(values, 2.3), expected, rtol=1e-13)


def test_a_mean():
    values = drawn(0, 1)
    assert exact.mean(values) == pytest.approx(math.fsum(values) / len(values), rel=1e-14)


@given(st.integers(4, 300), st.floats(0, 2), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_splines_are_those_of_scipy(count, unevenness, seed):
    rng = np.random.default_rng(seed)
    x = np.cumsum(np.exp(unevenness * rng.uniform(-1, 1, count)))
    y, at = rng.normal(size=(count, 2)), rng.uniform(x[0] - 0.1, x[-1] + 0.1, 500)
    expected = CubicSpline(x, y)(at)
    np.testing.assert_allclose(cubic_spline(x, y, at), expected, atol=1e-11 * np.abs(expected).max())
    np.testing.assert_array_equal(cubic_spline(x, y[:, 0], at), cubic_spline(x, y, at)[:, 0])
    np.testing.assert_allclose(linear(x, y[:, 0], at), np.interp(at, x, y[:, 0]), atol=1e-13)


def test_a_spline_at_x_that_come_again_is_the_same_in_every_bit(monkeypatch):
    """Whichever x were kept or forgotten since, and where others have their number and ends."""
    monkeypatch.setattr(splines, "KEPT_SAMPLES", 1000)
    monkeypatch.setattr(splines, "_kept", splines.OrderedDict())
    rng = np.random.default_rng(5)
    grids = [np.cumsum(rng.uniform(0.5, 1.5, count)) for count in (4, 300, 300, 500, 2000)]
    grids.append(grids[1].copy())
    grids[-1][100] += 0.01
    at = np.linspace(-5.0, 2005.0, 700)
    for which in (0, 1, 1, 5, 1, 2, 3, 4, 4, 0, 1, 3):
        x = grids[which]
        for shape in ((len(x),), (len(x), 3)):
            y = rng.random(shape)
            assert repeated_spline(x, y, at).tobytes() == cubic_spline(x, y, at).tobytes()
        held = [each.x.size for each in splines._kept.values()]
        assert len(held) == 1 or sum(held) <= 1000


def test_splines_pass_through_their_samples():
    x, y = np.cumsum(drawn(0.5, 1.5)), drawn(-1, 1)
    np.testing.assert_allclose(cubic_spline(x, y, x), y, atol=1e-14)
    np.testing.assert_array_equal(linear(x, y, x), y)


def test_bspline_coefficients_are_those_of_scipy_and_of_the_device():
    samples = drawn(0.5, 1.5)
    found = bspline_coefficients(samples)
    np.testing.assert_allclose(found, spline_filter1d(samples, order=3, mode="mirror"), atol=2e-15)
    np.testing.assert_allclose(found, on_device(torch.from_numpy(samples)[None])[0].numpy(), atol=2e-15)


def test_the_sed_grid_is_interpolated_as_by_scipy():
    with np.load(ASSET) as asset:
        axes, nodes = (asset["teff_k"], asset["logg"], asset["mh"]), asset["coefficients"].astype(np.float64)
        components = asset["components_i16"] * asset["component_scale"].astype(np.float64)[:, None]
        mean = asset["log_flux_mean"].astype(np.float64)
    rng = np.random.default_rng(0)
    labels = np.stack([rng.uniform(axis[0], axis[-1], 5) for axis in axes], axis=1)
    expected = np.exp(RegularGridInterpolator(axes, nodes, method="cubic", solver=spsolve)(labels) @ components + mean)
    np.testing.assert_allclose(SedGrid.packaged().sample(*labels.T), expected, rtol=1e-6)


def test_draws_are_distributed_as_they_say():
    """Kolmogorov and Smirnov's test of a million draws each, which are the same on every machine."""
    rng, count = np.random.default_rng(0), 1_000_001
    for values, distribution in (
        (normals(rng, count), stats.norm()),
        (exponentials(rng, count), stats.expon()),
        (uniform(rng, -3, 5, count), stats.uniform(-3, 8)),
    ):
        assert values.shape == (count,)
        assert stats.kstest(values, distribution.cdf).pvalue > 1e-6
    assert -3 <= uniform(rng, -3, 5) <= 5
