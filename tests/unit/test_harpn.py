"""HARPS-N is the second instrument: its files are read with TNG's keywords, and never mix with those of HARPS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.archive import Archive
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.spectra.grid import grid_within, named_grid
from harps_dist.spectra.instrument import HARPN
from harps_dist.spectra.medium import vacuum_to_air
from preprocessing.ingest import ingest_spectra
from preprocessing.refused import refusal_lines
from tests.unit.test_newer_products import write
from tests.unit.test_telluric import flux_of

BERV_KMS = -7.3
STAMP = "2012-09-05T20-35-43.956"
NEWER = {
    "INSTRUME": "HARPN",
    "ESO PRO REC1 PIPE ID": None,
    "TNG PRO REC1 PIPE ID": "espdr/2.3.5",
    "ESO QC BERV": None,
    "TNG QC BERV": 10.25,
}


def image(path: Path, start_aa: float = 5980.0, pixels: int = 36_000, **cards) -> Path:
    """An s1d of the old DRS: in air, barycentric."""
    wave_aa = start_aa + 0.01 * np.arange(pixels)
    flux = 1e4 * flux_of(wave_aa, BERV_KMS)
    own = {"INSTRUME": "HARPN", "TELESCOP": "TNG", "OBJECT": "HD 1", "CRVAL1": start_aa, "CDELT1": 0.01, "CRPIX1": 1.0}
    own |= {"CTYPE1": "Angstrom", "MJD-OBS": 56175.86, "EXPTIME": 900.0, "AIRMASS": 1.25, "TNG DRS BERV": BERV_KMS}
    own |= {"TNG DRS VERSION": "HARPN_3.7", "TNG DPR CATG": "SCIENCE", "TNG DPR TYPE": "STAR,WAVE,G2"}
    own |= {f"TNG DRS SPE EXT SN{order}": float(order) for order in range(69)} | {"TNG OBS TARG NAME": "HD1"}
    own |= {"RA-DEG": 10.5, "DEC-DEG": -5.25, "RA": 0.18326, "DEC": -0.09163, "TNG OBS PROG ID": "CAT12A_1"}
    hdu = fits.PrimaryHDU(flux.astype(np.float32))
    for key, value in (own | {key.replace("__", " "): value for key, value in cards.items()}).items():
        if value is not None:
            hdu.header[f"HIERARCH {key}" if " " in key else key] = value
    hdu.writeto(path, overwrite=True)
    return path


def test_an_image_is_read_with_what_its_header_says(tmp_path):
    found = read_spectrum(image(tmp_path / f"HARPN.{STAMP}_s1d_A.fits"))
    assert isinstance(found, SpectrumRecord), found
    assert (found.instrument, found.product, found.pipeline) == ("harpn", "s1d", "HARPN_3.7")
    assert found.dp_id == "HARPN.2012-09-05T20:35:43.956_s1d_A"
    assert (found.berv_kms, found.airmass, found.snr, found.exptime_s) == (BERV_KMS, 1.25, 34.0, 900.0)
    assert (found.ra_deg, found.dec_deg, found.mjd_obs) == (10.5, -5.25, 56175.86)
    assert (found.target_name, found.prog_id) == ("HD1", "CAT12A_1")
    np.testing.assert_allclose(found.wave_aa, 5980.0 + 0.01 * np.arange(36_000), rtol=1e-12)


def test_a_position_in_an_unknown_unit_is_none(tmp_path):
    found = read_spectrum(image(tmp_path / f"HARPN.{STAMP}_s1d_A.fits", **{"RA-DEG": None}))
    assert isinstance(found, SpectrumRecord), found
    assert np.isnan(found.ra_deg)


@pytest.mark.parametrize("kind", ["S1D_A", "S1D_FLUXCAL_A"])
@pytest.mark.parametrize("air", [True, False])
def test_products_of_the_newer_pipeline_come_out_in_air(kind, air, tmp_path):
    cards = {key.replace(" ", "__"): value for key, value in NEWER.items()}
    path = write(tmp_path / f"r.HARPN.2013-10-11T00-10-28.341_{kind}.fits", kind, air=air, **cards)
    with fits.open(path, mode="update") as hdus:
        header = hdus[0].header
        for card in [card for card in header if card.startswith("ESO ")]:
            header[f"HIERARCH TNG {card[4:]}"] = header.pop(card)
        vacuum = np.array(hdus[1].data["wavelength"], float)
    found = read_spectrum(path)
    assert isinstance(found, SpectrumRecord), found
    assert (found.instrument, found.product, found.berv_kms) == ("harpn", kind, 10.25)
    assert found.dp_id == f"HARPN.2013-10-11T00:10:28.341_{kind}"
    np.testing.assert_allclose(found.wave_aa, vacuum_to_air(vacuum), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"TELESCOP": "ESO-3.6"}, Reason.WRONG_INSTRUMENT),
        ({"INSTRUME": "HARPS"}, Reason.WRONG_INSTRUMENT),
        ({"TNG__DRS__VERSION": "HARPS_3.8"}, Reason.WRONG_INSTRUMENT),
        ({"TNG__DPR__TYPE": "WAVE,WAVE,THAR2"}, Reason.NOT_SCIENCE),
        ({"TNG__DPR__CATG": "CALIB"}, Reason.NOT_SCIENCE),
        ({"TNG__DRS__BLAZE__FILE": "HARPN.2012-09-05T17-35-43.956_blaze_B.fits"}, Reason.WRONG_FIBRE),
        ({"TNG__DRS__BERV": 5.0, "TNG__DRS__VERSION": None}, Reason.WRONG_FRAME),
    ],
)
def test_what_it_is_not_is_refused_by_that_name(change, reason, tmp_path):
    found = read_spectrum(image(tmp_path / f"HARPN.{STAMP}_s1d_A.fits", **change))
    assert isinstance(found, Refusal), found
    assert found.reason == reason


def test_an_archive_is_of_one_instrument(tmp_path):
    (tmp_path / "night").mkdir()
    image(tmp_path / f"night/HARPN.{STAMP}_s1d_A.fits")
    report = ingest_spectra(tmp_path / "night", tmp_path / "N.zarr", named_grid("harpn-demo"))
    assert (report.added, report.refused) == (1, [])
    archive = Archive(tmp_path / "N.zarr")
    assert archive.grid.instrument == HARPN
    assert np.isfinite(archive.data("real", 0)).all()
    report = ingest_spectra(tmp_path / "night", tmp_path / "A.zarr", named_grid("demo"))
    (refusal,) = report.refused
    assert refusal.reason == Reason.WRONG_INSTRUMENT
    assert "harpn" in refusal.detail


def test_what_covers_too_little_is_told_of_a_grid_of_its_own_instrument(tmp_path):
    (tmp_path / "night").mkdir()
    image(tmp_path / f"night/HARPN.{STAMP}_s1d_A.fits")
    report = ingest_spectra(tmp_path / "night", tmp_path / "N.zarr", named_grid("harpn"))
    (line,) = refusal_lines(report.refused, 1, made=False)
    assert "try --grid harpn-demo." in line
    assert grid_within(3850.0, 6900.0, 0.98).name == "demo"  # of HARPS, whatever another instrument's grids cover


def test_the_whole_range_is_within_the_files(tmp_path):
    grid = named_grid("harpn")
    assert grid.valid.sum() == 309_001
    assert (grid.wave_aa[grid.valid][0], grid.wave_aa[grid.valid][-1]) == pytest.approx((3835.0, 6925.0))
    assert all(3800 < HARPN.order_centre_aa / order < 6950 for order in HARPN.orders)
