"""Doppler shift and regridding against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harps_dist.spectra.doppler import C_KMS, bspline_coefficients, doppler_shift, resample_shifted
from harps_dist.spectra.grid import HARPS, MARGIN, Grid, named_grid
from harps_dist.spectra.regrid import regrid

GRID = Grid("test", 231_000, 2_048)
SOURCE = GRID.widened(MARGIN)
RV = torch.tensor([-100.0, -12.3, 0.0, 0.4, 70.0], dtype=torch.float64)


def lines(wave_aa: np.ndarray) -> np.ndarray:
    """A spectrum as band-limited as HARPS': Gaussian lines of 3.4 px full width at half maximum."""
    centres = np.arange(SOURCE.wave0_aa, SOURCE.wave_aa[-1], 0.37)
    depths = 0.2 + 0.6 * np.sin(np.arange(len(centres))) ** 2
    width = 0.034 * 1.3 / 2.355
    offset = (wave_aa[..., None] - centres) / width
    return 1.0 - (depths * np.exp(-0.5 * offset**2)).sum(-1)


@pytest.fixture(scope="module")
def source() -> torch.Tensor:
    return torch.from_numpy(lines(SOURCE.wave_aa)).expand(len(RV), -1).contiguous()


def truth() -> np.ndarray:
    beta = RV.numpy()[:, None] / C_KMS
    return lines(GRID.wave_aa / (1 + beta)) / (1 + beta)


@pytest.mark.parametrize(("method", "rms"), [("linear", 2e-2), ("cubic", 1e-3)])
def test_shift_moves_lines_to_where_the_velocity_puts_them(source, method, rms):
    given = bspline_coefficients(source) if method == "cubic" else source
    error = doppler_shift(given, RV, SOURCE, GRID, method).numpy() - truth()
    assert np.sqrt((error**2).mean()) < rms


def test_cubic_is_far_better_than_linear(source):
    errors = {}
    for method, given in (("linear", source), ("cubic", bspline_coefficients(source))):
        errors[method] = (doppler_shift(given, RV, SOURCE, GRID, method).numpy() - truth()).std()
    assert errors["cubic"] < errors["linear"] / 15


def test_float32_loses_nothing_that_matters(source):
    full = doppler_shift(bspline_coefficients(source), RV, SOURCE, GRID)
    single = doppler_shift(bspline_coefficients(source.float()), RV.float(), SOURCE, GRID)
    assert (full - single).abs().max() < 5e-5


def test_full_grid_offset_is_exact_in_float32_at_its_red_end():
    wave = torch.from_numpy(HARPS.wave_aa)[None]
    rv = torch.tensor([100.0])
    shifted = resample_shifted((wave - wave.mean()).float(), rv, HARPS, HARPS, "linear")[0].double() + wave.mean()
    error = shifted - wave[0] / (1 + 100.0 / C_KMS)
    assert error[5_000:-5_000].abs().max() < 2e-4  # Å, the float32 of the samples themselves


def test_zero_velocity_is_the_identity_and_reaches_the_ends(source):
    zero = torch.zeros(len(source), dtype=torch.float64)
    for method, given in (("linear", source), ("cubic", bspline_coefficients(source))):
        same = resample_shifted(given, zero, SOURCE, SOURCE, method)
        torch.testing.assert_close(same, source, rtol=0, atol=1e-12)


def test_a_missing_neighbour_is_not_asked_when_the_pixel_is_met_exactly():
    flux = torch.tensor([[1.0, 2.0, torch.nan, 4.0, 5.0]], dtype=torch.float64)
    grid = Grid("five", 0, 5)
    same = resample_shifted(flux, torch.zeros(1, dtype=torch.float64), grid, grid, "linear")
    assert torch.isnan(same).tolist() == [[False, False, True, False, False]]


def test_pixels_from_outside_the_source_are_nan(source):
    shifted = resample_shifted(bspline_coefficients(source), RV, SOURCE, SOURCE)
    outside = torch.isnan(shifted)
    pixels = RV.numpy() / C_KMS * 6100 / 0.01
    for row, shift in enumerate(pixels):
        expected = 0 if shift == 0 else abs(shift)
        assert abs(int(outside[row].sum()) - expected) < 4
    assert outside[0, -1]
    assert outside[-1, 0]
    assert not outside[0, 0]


def test_redshifts_compose_as_products(source):
    beta = 40.0 / C_KMS
    once = doppler_shift(
        bspline_coefficients(source[:1]),
        torch.tensor([((1 + beta) ** 2 - 1) * C_KMS], dtype=torch.float64),
        SOURCE,
        GRID,
    )
    step = torch.tensor([40.0], dtype=torch.float64)
    middle = GRID.widened(MARGIN // 2)
    half = doppler_shift(bspline_coefficients(source[:1]), step, SOURCE, middle)
    twice = doppler_shift(bspline_coefficients(half), step, middle, GRID)
    assert (once - twice)[0, 20:-20].abs().max() < 5e-3


def test_regrid_copies_what_lies_on_the_lattice_bit_by_bit():
    wide = GRID.widened(100)
    flux = np.random.default_rng(0).normal(size=wide.length).astype(np.float32)
    np.testing.assert_array_equal(regrid(wide.wave_aa, flux, GRID), flux[100:-100])


def test_regrid_resamples_uneven_wavelengths_and_keeps_holes():
    rng = np.random.default_rng(1)
    wave = np.sort(SOURCE.wave_aa + rng.uniform(-0.003, 0.003, SOURCE.length))
    flux = lines(wave)
    regridded = regrid(wave, flux, GRID)
    assert np.abs(regridded - lines(GRID.wave_aa)).std() < 1e-3
    hole = (wave > 6100.0) & (wave < 6100.5)
    regridded = regrid(wave, np.where(hole, np.nan, flux), GRID)
    missing = GRID.wave_aa[np.isnan(regridded)]
    assert missing[0] == pytest.approx(6100.0, abs=0.02)
    assert missing[-1] == pytest.approx(6100.5, abs=0.02)


def test_regrid_is_nan_beyond_the_samples():
    tiny = named_grid("tiny")
    inside = (tiny.wave_aa > 6100) & (tiny.wave_aa < 6110)
    for shift in (0.0, 0.003):
        regridded = regrid(tiny.wave_aa[inside] + shift, np.ones(inside.sum()), tiny)
        assert np.isfinite(regridded).sum() in (inside.sum(), inside.sum() - 1)
    assert np.isnan(regrid(np.array([4000.0, 4001.0]), np.ones(2), tiny)).all()
