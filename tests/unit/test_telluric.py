"""Telluric lines tell air from vacuum, and the barycentric frame from the observer's, or nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.readers import find_spectra, read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.formats.telluric import ACCURACY_KMS, MEDIUM_KMS, telluric_shift
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.medium import air_to_vacuum, vacuum_to_air
from preprocessing.simulator.atmosphere import Atmosphere

WAVE_AA = 6260.0 + 0.01 * np.arange(8_000)


def flux_of(wave_aa: np.ndarray, berv_kms: float, seed: int = 0, lines: bool = True) -> np.ndarray:
    """A star with lines of its own and 2 % of noise, behind the atmosphere; wave_aa: in air, barycentric."""
    random = np.random.default_rng(seed)
    flux = 1 + 0.02 * random.standard_normal(len(wave_aa))
    for line_aa, depth in zip(random.uniform(6265, 6335, 25), random.uniform(0.05, 0.6, 25), strict=True):
        flux *= 1 - depth * np.exp(-0.5 * ((wave_aa - line_aa) / 0.06) ** 2)
    return flux * Atmosphere.packaged().transmission(wave_aa / (1 + berv_kms / C_KMS), 1.2, 3.0) if lines else flux


@pytest.mark.parametrize("berv_kms", [-28.0, -7.3, 0.0, 12.5, 30.0])
@pytest.mark.parametrize("medium", ["air", "vacuum"])
def test_the_shift_is_that_of_medium_and_frame(medium, berv_kms):
    flux = flux_of(WAVE_AA, berv_kms)
    wave_aa = WAVE_AA if medium == "air" else air_to_vacuum(WAVE_AA)
    expected = berv_kms + (MEDIUM_KMS if medium == "vacuum" else 0)
    assert abs(telluric_shift(wave_aa, flux) - expected) < ACCURACY_KMS


def test_without_the_lines_or_the_band_nothing_is_certain():
    found = [telluric_shift(WAVE_AA, flux_of(WAVE_AA, 0.0, seed, lines=False)) for seed in range(40)]
    assert np.isfinite(found).sum() <= 4
    assert math.isnan(telluric_shift(WAVE_AA, np.ones(len(WAVE_AA))))
    assert math.isnan(telluric_shift(WAVE_AA, np.full(len(WAVE_AA), np.nan)))
    assert math.isnan(telluric_shift(WAVE_AA[:3000], flux_of(WAVE_AA[:3000], 0.0)))
    assert math.isnan(telluric_shift(WAVE_AA - 300, flux_of(WAVE_AA, 0.0)))


def test_every_genuine_spectrum_shows_its_medium_and_frame(genuine_data):
    for path in find_spectra(genuine_data / "harps"):
        record = read_spectrum(path)
        assert isinstance(record, SpectrumRecord), record
        assert abs(telluric_shift(record.wave_aa, record.flux) - record.berv_kms) < ACCURACY_KMS
        shift = telluric_shift(air_to_vacuum(record.wave_aa), record.flux)
        assert abs(shift - record.berv_kms - MEDIUM_KMS) < ACCURACY_KMS


BERV_KMS = 15.0
SAYS = {
    "nothing": {"ucd": "em.wl"},
    "air": {"ucd": "em.wl;obs.atmos"},
    "vacuum": {"ucd": "em.wl;meta.main"},
}


def write(path, wave_aa, flux, ucd, berv_kms: float | None = BERV_KMS):
    columns = [
        fits.Column(name, f"{len(wave_aa)}D", array=[values]) for name, values in (("WAVE", wave_aa), ("FLUX", flux))
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.header["TUCD1"] = ucd
    primary = fits.PrimaryHDU()
    primary.header["INSTRUME"] = "HARPS"
    if berv_kms is not None:
        primary.header["HIERARCH ESO QC BERV"] = berv_kms
    fits.HDUList([primary, table]).writeto(path)
    return read_spectrum(path)


@pytest.mark.parametrize("says", SAYS)
@pytest.mark.parametrize("frame", ["barycentric", "observer"])
@pytest.mark.parametrize("medium", ["air", "vacuum"])
def test_no_medium_and_no_frame_goes_wrong_unsaid(medium, frame, says, tmp_path):
    """Whatever a file says: what comes out is in air and barycentric, or refused."""
    flux = flux_of(WAVE_AA, BERV_KMS)
    air_aa = WAVE_AA if frame == "barycentric" else WAVE_AA / (1 + BERV_KMS / C_KMS)
    found = write(tmp_path / "x.fits", air_aa if medium == "air" else air_to_vacuum(air_aa), flux, **SAYS[says])
    if frame == "barycentric" and says in ("nothing", medium):
        assert isinstance(found, SpectrumRecord), found
        np.testing.assert_allclose(found.wave_aa, WAVE_AA, rtol=1e-9)
    else:
        assert isinstance(found, Refusal)
        assert found.reason == (Reason.WRONG_FRAME if frame == "observer" else Reason.VACUUM)
        assert "telluric lines" in found.detail


def test_a_spectrum_of_which_nothing_is_said_in_the_frame_of_its_star_is_refused(tmp_path):
    flux, wave_aa = flux_of(WAVE_AA, BERV_KMS), WAVE_AA / (1 - 22 / C_KMS)
    found = write(tmp_path / "x.fits", wave_aa, flux, **SAYS["nothing"])
    assert isinstance(found, Refusal)
    assert found.reason == Reason.WRONG_FRAME


def test_without_a_barycentric_velocity_tellurics_do_not_decide_but_may_contradict(tmp_path):
    flux = flux_of(WAVE_AA, BERV_KMS)
    for number, (wave_aa, says, read) in enumerate(
        [
            (WAVE_AA, "nothing", False),
            (WAVE_AA, "air", True),
            (air_to_vacuum(WAVE_AA), "vacuum", True),
            (air_to_vacuum(WAVE_AA), "air", False),
            (WAVE_AA, "vacuum", False),
        ]
    ):
        found = write(tmp_path / f"{number}.fits", wave_aa, flux, berv_kms=None, **SAYS[says])
        assert isinstance(found, SpectrumRecord) == read, found


def test_the_formula_moves_lines_by_what_is_expected():
    assert (WAVE_AA / vacuum_to_air(WAVE_AA) - 1).mean() * C_KMS == pytest.approx(MEDIUM_KMS, abs=0.1)
