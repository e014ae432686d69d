"""Products of the newer pipeline: air wavelengths used or made, errors and quality used, its keywords known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.prepare import prepare
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.medium import air_to_vacuum, vacuum_to_air
from preprocessing.ingest import ingest_spectra

NEWER = "espdr/3.2.5"
STEP_KMS = 0.819028
GRID = named_grid("tiny")
CALIBRATED = "erg.cm**(-2).s**(-1).angstrom**(-1)"
KINDS = ("S1D_FINAL_A", "S1D_A", "S1D_FLUXCAL_A")
VACUUM_AA = 6085.0 * np.exp(np.arange(4000) * STEP_KMS / C_KMS)  # to 6152 Å
LINES_AA = np.array([6099.1234, 6115.0071, 6131.8765])  # in air


def absorption(wave_aa: np.ndarray, sigma_kms: float = 2.5) -> np.ndarray:
    """A flat spectrum with Gaussian lines at LINES_AA in air, at air wavelengths."""
    offset = (wave_aa[:, None] / LINES_AA - 1) * C_KMS / sigma_kms
    return 1 - 0.6 * np.exp(-0.5 * offset**2).sum(axis=1)


def write(
    path: Path, kind: str = "S1D_FINAL_A", vacuum=VACUUM_AA, flux=None, air=True, quality=None, error=None, **cards
) -> Path:
    """A made-up product. air: whether it has a column of air wavelengths, or those of the column."""
    own_air = vacuum_to_air(vacuum)
    flux = 1e-13 * absorption(own_air) if flux is None else flux
    quality = np.zeros(len(flux), np.int32) if quality is None else quality
    error = flux / 80 if error is None else error
    final = kind == "S1D_FINAL_A"
    names = {"wave": "WAVE", "flux": "FLUX", "error": "ERR", "quality": "QUAL", "air": "WAVE_AIR"}
    if not final:
        names = {"wave": "wavelength", "flux": "flux", "error": "error", "quality": "quality", "air": "wavelength_air"}
    if kind == "S1D_FLUXCAL_A":
        names |= {"flux": "flux_cal", "error": "error_cal"}
    values = {"wave": vacuum, "flux": flux, "error": error, "quality": quality}
    if air is not False:
        values["air"] = own_air if air is True else air
    units = {"wave": "angstrom", "air": "angstrom", "flux": "e-" if kind == "S1D_A" else CALIBRATED}
    columns = []
    for what, array in values.items():
        letter = "J" if what == "quality" else "D"
        form = f"{len(array)}{letter}" if final else letter
        columns.append(fits.Column(names[what], form, units.get(what), array=[array] if final else array))
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    if final:
        ucds = {"wave": "em.wl;meta.main", "air": "em.wl;obs.atmos", "quality": "meta.code.qual;meta.main"}
        for number, what in enumerate(values, 1):
            table.header[f"TUCD{number}"] = ucds.get(what, "")
    primary = fits.PrimaryHDU()
    own = {"INSTRUME": "HARPS", "SPECSYS": "BARYCENT", "ESO PRO REC1 PIPE ID": NEWER, "ESO QC BERV": 10.25}
    own |= {"MJD-OBS": 58363.1457, "EXPTIME": 900.0, "ESO DPR CATG": "SCIENCE", "ESO DPR TYPE": "OBJECT,SKY"}
    own |= {"ESO TEL AIRM START": 1.1, "ESO TEL AIRM END": 1.3, "ESO PRO CATG": kind, "ESO OCS OBJ RV": 12.5}
    own |= {f"ESO QC ORDER{order} SNR": float(order) for order in range(1, 72)}
    for key, value in (own | {key.replace("__", " "): value for key, value in cards.items()}).items():
        if value is not None:
            primary.header[f"HIERARCH {key}" if " " in key else key] = value
    fits.HDUList([primary, table]).writeto(path, overwrite=True, checksum=True)
    return path


def read(path: Path) -> SpectrumRecord:
    record = read_spectrum(path)
    assert isinstance(record, SpectrumRecord), record
    return record


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_read_with_what_the_newer_pipeline_says(kind, tmp_path):
    record = read(write(tmp_path / f"r.HARPS.2018-09-02T03_29_21.872_{kind}.fits", kind))
    assert record.product == kind
    assert record.instrument == "harps"
    assert record.dp_id == f"HARPS.2018-09-02T03:29:21.872_{kind}"
    assert (record.berv_kms, record.snr, record.airmass) == (10.25, 36.0, pytest.approx(1.2))
    assert (record.radvel_guess_kms, record.mjd_obs, record.exptime_s) == (12.5, 58363.1457, 900.0)
    assert record.pipeline == NEWER
    assert record.unit == ("e-" if kind == "S1D_A" else CALIBRATED)
    np.testing.assert_array_equal(record.wave_aa, vacuum_to_air(VACUUM_AA))
    np.testing.assert_allclose(record.flux, 1e-13 * absorption(record.wave_aa), rtol=1e-6)
    np.testing.assert_allclose(record.sigma, record.flux / 80, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_air_and_vacuum_columns_give_the_same_row_of_an_archive(kind, tmp_path):
    both, vacuum = write(tmp_path / "both.fits", kind), write(tmp_path / "vacuum.fits", kind, air=False)
    rows = [prepare(read(path), GRID) for path in (both, vacuum)]
    np.testing.assert_allclose(rows[1].flux, rows[0].flux, rtol=1e-6)
    assert rows[0].coverage == 1


def test_a_line_stays_where_it_is_to_a_metre_per_second(tmp_path):
    """The steps are constant in velocity, the grid's in wavelength: the bisected line centres after regridding."""
    flux = prepare(read(write(tmp_path / "x.fits")), GRID).standardised
    for line_aa in LINES_AA:
        near = np.abs(GRID.wave_aa - line_aa) < 0.25
        wave_aa, depth = GRID.wave_aa[near], 1 - flux[near] / flux.max()
        velocity = (wave_aa / line_aa - 1) * C_KMS
        assert abs((depth * velocity).sum() / depth.sum()) < 1e-3


def test_pixels_of_bad_quality_are_missing_and_errors_are_used(tmp_path):
    quality = np.zeros(len(VACUUM_AA), np.int32)
    quality[[7, 100]] = 1, 4096
    flux, error = np.full(len(VACUUM_AA), 5e-14), np.full(len(VACUUM_AA), 1e-15)
    flux[100], error[[5, 6]] = 1e30, (np.nan, 0.0)
    no_snr = {f"ESO__QC__ORDER{order}__SNR": None for order in range(1, 72)}
    record = read(write(tmp_path / "x.fits", flux=flux, quality=quality, error=error, **no_snr))
    assert np.flatnonzero(np.isnan(record.flux)).tolist() == [7, 100]
    assert np.flatnonzero(np.isnan(record.sigma)).tolist() == [5, 6, 7, 100]
    assert record.wild == 0  # what is flagged is not wild
    assert record.snr == pytest.approx(50)
    assert read(write(tmp_path / "x.fits", flux=flux, error=np.full(len(flux), np.nan))).sigma is None
    found = read_spectrum(write(tmp_path / "x.fits", quality=quality + 1))
    assert isinstance(found, Refusal)
    assert found.reason == Reason.NO_FINITE_FLUX


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        {"air": VACUUM_AA},  # both in vacuum
        {"vacuum": vacuum_to_air(VACUUM_AA), "air": vacuum_to_air(VACUUM_AA)},  # both in air
        {"vacuum": vacuum_to_air(VACUUM_AA), "air": VACUUM_AA},  # each in the other's place
        {"air": vacuum_to_air(VACUUM_AA) * (1 + 10 / C_KMS)},  # in another frame
    ],
)
def test_columns_that_contradict_each_other_are_refused(kind, change, tmp_path):
    found = read_spectrum(write(tmp_path / "x.fits", kind, **change))
    assert isinstance(found, Refusal)
    assert found.reason == Reason.VACUUM
    assert "km/s" in found.detail


GAP_AA = (5305.8, 5338.74)  # in vacuum


@pytest.mark.parametrize("air", [True, False])
@pytest.mark.parametrize(("gap", "filler"), [(None, 0.0), (GAP_AA, 0.0), (GAP_AA, np.nan), ((5305.0, 5340.0), 0.0)])
def test_whatever_the_gap_the_wavelengths_come_out_in_air(air, gap, filler, tmp_path):
    vacuum = 5200.0 * np.exp(np.arange(20_000) * STEP_KMS / C_KMS)
    flux = np.full(len(vacuum), 1e-13)
    if gap:
        flux[(vacuum > gap[0]) & (vacuum < gap[1])] = filler
    record = read(write(tmp_path / "x.fits", vacuum=vacuum, flux=flux, air=air, ESO__QC__BERV=0.5))
    np.testing.assert_array_equal(record.wave_aa, vacuum_to_air(vacuum))


def test_a_gap_that_stands_in_air_contradicts_a_column_of_vacuum(tmp_path):
    wave_aa = 5200.0 * np.exp(np.arange(20_000) * STEP_KMS / C_KMS)
    flux = np.where((wave_aa > 5304.32) & (wave_aa < 5337.26), 0, 1e-13)
    found = read_spectrum(write(tmp_path / "x.fits", vacuum=wave_aa, flux=flux, air=False, ESO__QC__BERV=0.5))
    assert isinstance(found, Refusal)
    assert found.reason == Reason.VACUUM
    assert "detector gap" in found.detail


@pytest.mark.parametrize("missing", ["wavelength", "flux"])
def test_a_column_that_is_missing_is_named(missing, tmp_path):
    path = write(tmp_path / "x.fits", "S1D_A")
    path.write_bytes(path.read_bytes().replace(f"'{missing}".encode().ljust(9), b"'other   ", 1))
    assert isinstance(read_spectrum(path), Refusal)


def test_an_archive_takes_all_three_in(tmp_path):
    folder = tmp_path / "night"
    folder.mkdir()
    for number, kind in enumerate(KINDS):
        write(folder / f"r.HARPS.2018-09-0{number + 2}T03_29_21.872_{kind}.fits", kind)
    report = ingest_spectra(folder, tmp_path / "A.zarr", GRID)
    assert (report.added, report.refused) == (3, [])


def test_the_lines_of_the_file_stand_where_the_formula_says():
    np.testing.assert_allclose(air_to_vacuum(vacuum_to_air(VACUUM_AA)), VACUUM_AA, rtol=1e-12)
