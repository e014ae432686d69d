"""Wavelengths are taken for air only where something shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.readers import find_spectra, read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.inference.spectra import _vacuum_note
from harps_dist.spectra.instrument import HARPS
from harps_dist.spectra.medium import vacuum_to_air

PIPE = "HIERARCH ESO PRO REC1 PIPE ID"
ROUNDED = np.round(5200.0 + 0.01 * np.arange(20_000), 2)  # 5200 to 5400 Å, with the detector gap in it


def product(path: Path, ucd: str = "", wave=ROUNDED, gap=None, kind: str = "table", ctype: str = "", **cards) -> Path:
    """A spectrum as a Phase 3 table or an s1d, of no pipeline unless a card says so."""
    flux = np.ones(len(wave), np.float32)
    if gap:
        flux[(wave > gap[0]) & (wave < gap[1])] = 0
    primary = fits.PrimaryHDU(flux if kind == "image" else None)
    primary.header["INSTRUME"] = "HARPS"
    for key, value in cards.items():
        primary.header[PIPE if key == "PIPE" else key] = value
    if kind == "image":
        primary.header.update({"CRVAL1": wave[0], "CDELT1": 0.01, "CTYPE1": ctype})
        primary.writeto(path, overwrite=True)
        return path
    columns = [
        fits.Column("WAVE", f"{len(wave)}D", "angstrom", array=[wave]),
        fits.Column("FLUX", f"{len(wave)}E", array=[flux]),
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.header["TUCD1"] = ucd
    fits.HDUList([primary, table]).writeto(path, overwrite=True)
    return path


AIR, NEWER, DRS, EGGS = "em.wl;obs.atmos", "espdr/3.2.5", "HARPS_3.5", "EGGS_3.5"
GAP_AA = HARPS.gap_edges_aa
IN_VACUUM = tuple(edge + 1.48 for edge in GAP_AA)


@pytest.mark.parametrize(
    "shown",
    [
        {"ucd": AIR},
        {"ucd": AIR, "PROCSOFT": NEWER, "PIPE": NEWER},  # its own column of air wavelengths, said to be so
        {"ucd": "em.wl", "PROCSOFT": DRS},
        {"ucd": "", "PROCSOFT": DRS},
        {"ucd": "em.wl", "PROCSOFT": EGGS},
        {"ucd": "em.wl", "gap": GAP_AA},
        {"ucd": "", "AIRORVAC": "air"},
        {"kind": "image", "PROCSOFT": DRS, "ctype": "Angstrom"},
        {"kind": "image", "ctype": "AWAV"},
        {"kind": "image", "ctype": "Angstrom", "gap": GAP_AA},
    ],
)
def test_what_is_shown_to_be_in_air_is_read(shown, tmp_path):
    found = read_spectrum(product(tmp_path / "x.fits", **shown))
    assert isinstance(found, SpectrumRecord), found


@pytest.mark.parametrize(
    "shown",
    [
        {"ucd": "em.wl;meta.main", "PROCSOFT": NEWER, "PIPE": NEWER},
        {"ucd": "em.wl", "PIPE": NEWER},
        {"ucd": "em.wl", "gap": IN_VACUUM},
        {"ucd": "", "AIRORVAC": "vac"},
        {"kind": "image", "ctype": "WAVE"},
        {"kind": "image", "ctype": "VACUUM", "gap": IN_VACUUM},
    ],
)
def test_what_is_shown_to_be_in_vacuum_is_brought_to_air(shown, tmp_path):
    found = read_spectrum(product(tmp_path / "x.fits", **shown))
    assert isinstance(found, SpectrumRecord), found
    np.testing.assert_allclose(found.wave_aa, vacuum_to_air(ROUNDED), rtol=1e-12)


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"ucd": "em.wl"},
        {"ucd": "em.wl", "gap": (5250.0, 5283.0)},  # a gap, but not the detector's
        {"ucd": "em.wl", "gap": (GAP_AA[0] - 1, GAP_AA[1] + 1)},
        {"ucd": "em.wl;meta.main", "PIPE": NEWER, "gap": GAP_AA},
        {"ucd": "em.wl;meta.main", "PROCSOFT": DRS},
        {"ucd": "em.freq", "PROCSOFT": DRS},
        {"ucd": "em.wl", "PIPE": NEWER, "gap": GAP_AA},
        {"ucd": "", "PIPE": NEWER},
        {"ucd": "em.wl", "PROCSOFT": NEWER},
        {"ucd": "em.wl", "PROCSOFT": "harps/3.0.0"},
        {"ucd": "em.wl", "PROCSOFT": DRS, "gap": IN_VACUUM},
        {"ucd": AIR, "gap": IN_VACUUM},
        {"ucd": "em.wl", "PROCSOFT": DRS, "AIRORVAC": "vac"},
        {"kind": "image", "ctype": "Angstrom"},
        {"kind": "image", "ctype": ""},
        {"kind": "image", "ctype": "WAVE", "PROCSOFT": DRS},
        {"kind": "image", "ctype": "Angstrom", "PROCSOFT": DRS, "gap": IN_VACUUM},
    ],
)
def test_what_is_not_shown_to_be_in_air_is_refused_with_a_sentence(shown, tmp_path):
    found = read_spectrum(product(tmp_path / "x.fits", **shown))
    assert isinstance(found, Refusal)
    assert found.reason == Reason.VACUUM
    assert "expected" in found.detail


def test_every_genuine_product_is_shown_to_be_in_air(genuine_data):
    found = [read_spectrum(path) for path in find_spectra(genuine_data / "harps")]
    assert len(found) == 15
    assert all(isinstance(record, SpectrumRecord) for record in found)
    assert max(record.wild for record in found) > 0.2  # one that the pipeline did not interpolate well
    assert sorted(record.wild for record in found)[-2] == 0
    assert all(record.out_of_range == () for record in found)


def test_a_spectrum_in_memory_of_the_newer_pipeline_is_asked_about():
    assert _vacuum_note({"header": {"ESO PRO REC1 PIPE ID": NEWER}}) is not None
    assert _vacuum_note({"header": {"PROCSOFT": "espdr/3.0.0"}}) is not None
    assert _vacuum_note({"pipeline": DRS, "header": {"PROCSOFT": DRS, "CTYPE1": "AWAV"}}) is None
    assert _vacuum_note({"medium": "air", "pipeline": NEWER}) is None  # brought to air by our readers
    assert _vacuum_note({"medium": "vacuum", "pipeline": DRS}) is not None
