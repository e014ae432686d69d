"""The observation model against the public code's own output, and standardisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harps_dist.errors import SpectrumError
from harps_dist.spectra.doppler import doppler_shift
from harps_dist.spectra.grid import Grid, named_grid
from harps_dist.spectra.observation import combine_orders, fold_response, observe
from harps_dist.spectra.standardise import is_broken, standardise

EDGE = slice(250, -250)


@pytest.mark.parametrize("sample", ["s0", "s1"])
@pytest.mark.parametrize("rv_kms", [-100.0, -37.5, 0.0, 12.3, 100.0])
def test_four_arrays_reproduce_appendix_a(genuine_data, sample, rv_kms):
    oracle = np.load(genuine_data / "oracle" / "appendix_a.npz")
    grid = Grid("oracle", round((float(oracle["wave0_aa"]) - 3785.0) / 0.01), 10_000)
    pairs = [(oracle[f"{sample}_{name}_A"], oracle[f"{sample}_{name}_B"]) for name in ("T", "h", "B", "n")]
    response = [torch.from_numpy(array)[None] for array in fold_response(*pairs)]
    sed = torch.from_numpy(oracle[f"{sample}_target_SED"]).double()[None]
    shifted = doppler_shift(sed, torch.tensor([rv_kms], dtype=torch.float64), grid, grid, "linear")
    for found, name in zip(observe(shifted, *response), ("flux", "sigma"), strict=True):
        expected = oracle[f"{sample}_rv{rv_kms:+.1f}_{name}"][EDGE]
        np.testing.assert_array_equal(np.isnan(found[0].numpy()[EDGE]), np.isnan(expected))
        np.testing.assert_allclose(found[0].numpy()[EDGE], expected, rtol=1e-6)
        assert np.isnan(expected).any()
        assert np.isfinite(expected).sum() > 5_000


def test_orders_are_averaged_only_where_they_overlap():
    nan = np.nan
    even, odd = np.array([1.0, 1.0, nan, nan]), np.array([nan, 3.0, 5.0, nan])
    np.testing.assert_array_equal(combine_orders(even, odd, 1 / 2), [1, 2, 5, nan])
    np.testing.assert_array_equal(combine_orders(even, odd, 1 / 4), [1, 1, 5, nan])


def test_variance_of_an_average_of_two_orders_is_that_of_independent_draws():
    """Drawing each order's counts and averaging them must scatter as Eq. A.2 says."""
    rng = np.random.default_rng(0)
    t, h, b, n = (0.5, 0.3), (0.8, 0.6), (20.0, 10.0), (50.0, 40.0)
    sed = 10_000.0
    variances = [(t[i] * sed + b[i] + n[i]) for i in (0, 1)]
    drawn = sum(rng.normal(t[i] * sed, np.sqrt(variances[i]), 400_000) / h[i] for i in (0, 1)) / 2
    response = fold_response(*[(np.array([pair[0]]), np.array([pair[1]])) for pair in (t, h, b, n)])
    flux, sigma = observe(torch.full((1, 1), sed), *[torch.from_numpy(array)[None] for array in response])
    assert drawn.mean() == pytest.approx(flux.item(), rel=1e-3)
    assert drawn.std() == pytest.approx(sigma.item(), rel=1e-2)  # 9 deviations


def test_standardise_divides_by_the_median_of_valid_pixels_and_fills():
    grid = Grid("gap", 150_000, 8_192)  # holds the CCD gap
    flux = np.where(grid.valid, 7.0, 1e9).astype(np.float32)
    flux[100:110] = np.nan
    standard, median = standardise(flux, grid)
    assert median == 7.0
    assert standard.dtype == np.float32
    np.testing.assert_allclose(standard, 1.0)
    ramp = np.where(grid.valid, np.cumsum(grid.valid), 1e9)
    assert standardise(ramp, grid)[1] == np.median(ramp[grid.valid])


@pytest.mark.parametrize(
    ("flux", "message"),
    [(-1.0, "median flux is -1"), (0.0, "median flux is 0"), (np.nan, "0.0% of the 4096 valid pixels")],
)
def test_what_cannot_be_standardised_is_refused(flux, message):
    with pytest.raises(SpectrumError, match=message):
        standardise(np.full(4_096, flux), named_grid("tiny"))


def test_a_few_cosmic_hits_are_no_broken_spectrum():
    grid = named_grid("tiny")
    flux = np.ones(grid.length, np.float32)
    flux[::2_000] = 1e4
    assert not is_broken(flux, grid)
    flux[::500] = -1e12
    assert is_broken(flux, grid)
