"""Images that IRAF rewrote are read where telluric lines show their frame and medium, and kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.archive import Archive
from harps_dist.formats.layouts import REWRITTEN
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.formats.standing import form_order
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.medium import air_to_vacuum, vacuum_to_air
from preprocessing.ingest import ingest_spectra
from tests.unit.test_telluric import flux_of

BERV_KMS = 15.0
EVEN_AA = 6085.0 + 0.01 * np.arange(25_300)  # to 6338 Å


def rewritten(path: Path, rest_kms: float = 0.0, medium: str = "air", **cards) -> Path:
    """An image as IRAF writes it, normalised. rest_kms: the star's velocity, by which it was shifted to rest."""
    wave_aa = EVEN_AA * (1 + rest_kms / C_KMS)
    flux = flux_of(vacuum_to_air(wave_aa) if medium == "vacuum" else wave_aa, BERV_KMS)
    own = {"INSTRUME": "HARPS", "CTYPE1": "LINEAR", "CRVAL1": EVEN_AA[0], "CD1_1": 0.01, "CRPIX1": 1.0, "DC-FLAG": 0}
    own |= {"ESO DRS VERSION": "HARPS_3.8", "ESO DRS BERV": BERV_KMS, "ESO DPR TYPE": "STAR,WAVE,K1", "OBJECT": "HD 1"}
    own |= {"WAT0_001": "system=equispec", "WAT1_001": "wtype=linear label=Wavelength units=angstroms"}
    image = fits.PrimaryHDU(flux.astype(np.float32))
    for key, value in (
        own | {key.replace("__", " ").replace("DC_FLAG", "DC-FLAG"): v for key, v in cards.items()}
    ).items():
        if value is not None:
            image.header[f"HIERARCH {key}" if " " in key else key] = value
    image.writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize("change", [{}, {"CUNIT1": "Angstroms"}, {"WAT1_001": None}, {"CDELT1": 0.01, "CD1_1": None}])
def test_what_is_barycentric_and_in_the_medium_of_its_pipeline_is_read(change, tmp_path):
    found = read_spectrum(rewritten(tmp_path / "x.fits", **change))
    assert isinstance(found, SpectrumRecord), found
    assert found.product == REWRITTEN
    np.testing.assert_allclose(found.wave_aa, EVEN_AA, rtol=1e-12)


def test_vacuum_that_a_keyword_names_is_brought_to_air(tmp_path):
    found = read_spectrum(rewritten(tmp_path / "x.fits", medium="vacuum", AIRORVAC="vac"))
    assert isinstance(found, SpectrumRecord), found
    np.testing.assert_allclose(found.wave_aa, vacuum_to_air(EVEN_AA), rtol=1e-12)
    assert isinstance(read_spectrum(rewritten(tmp_path / "x.fits", AIRORVAC="vac")), Refusal)


@pytest.mark.parametrize("rest_kms", [-60.0, -8.0, 4.0, 30.0])
def test_what_was_shifted_to_rest_is_refused_by_that_name(rest_kms, tmp_path):
    found = read_spectrum(rewritten(tmp_path / "x.fits", rest_kms))
    assert isinstance(found, Refusal)
    assert found.reason == Reason.WRONG_FRAME
    assert "rest frame" in found.detail


def test_a_shift_to_rest_that_imitates_vacuum_is_refused(tmp_path):
    star_kms = float((1 / np.median(air_to_vacuum(EVEN_AA) / EVEN_AA) - 1) * C_KMS)
    for path in (
        rewritten(tmp_path / "x.fits", star_kms),
        rewritten(tmp_path / "y.fits", medium="vacuum"),
    ):
        found = read_spectrum(path)
        assert isinstance(found, Refusal)
        assert "vacuum" in found.detail


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ESO__DRS__BERV": None}, "no BERV"),
        ({"rest_kms": BERV_KMS}, "observer's frame"),
        ({"CUNIT1": "nm"}, "CUNIT1"),
        ({"WAT1_001": "wtype=linear label=Wavelength units=nanometers"}, "WAT1_001"),
        ({"DC_FLAG": 1}, "logarithms"),
        ({"INSTRUME": "FEROS"}, "FEROS"),
        ({"ESO__DPR__TYPE": "SKY,SKY"}, "star"),
    ],
)
def test_what_does_not_show_what_it_is_is_refused(change, word, tmp_path):
    found = read_spectrum(rewritten(tmp_path / "x.fits", **change))
    assert isinstance(found, Refusal)
    assert word in found.detail


def test_an_archive_keeps_them_apart(tmp_path):
    (tmp_path / "night").mkdir()
    rewritten(tmp_path / "night/x.fits")
    report = ingest_spectra(tmp_path / "night", tmp_path / "A.zarr", named_grid("tiny"))
    assert (report.added, report.refused) == (1, [])
    archive = Archive(tmp_path / "A.zarr")
    assert list(archive.column("real", "flag")) == ["rewritten by IRAF or its kin"]
    assert form_order("HARPS_3.8", REWRITTEN) < form_order("HARPS_3.3", "s1d")


def test_a_genuine_image_is_read_when_iraf_rewrote_it_and_refused_at_rest(genuine_data, tmp_path):
    for source in sorted((genuine_data / "harps").glob("*s1d_A*"))[:3]:
        for rest_kms in (0.0, 20.0):
            with fits.open(source) as hdus:
                header, flux = hdus[0].header, hdus[0].data / np.median(hdus[0].data)
                header["CTYPE1"] = "LINEAR"
                header["CRVAL1"] /= 1 + rest_kms / C_KMS
                header["CDELT1"] /= 1 + rest_kms / C_KMS
                fits.PrimaryHDU(flux, header).writeto(tmp_path / "x.fits", overwrite=True)
            found = read_spectrum(tmp_path / "x.fits")
            assert isinstance(found, Refusal if rest_kms else SpectrumRecord), found
