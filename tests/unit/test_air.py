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
        {},
        {"ucd": "em.wl"},
        {"ucd": "em.wl", "gap": (5250.0, 5283.0)},  # a gap, but not the detector's
        {"ucd": "em.wl", "gap": (GAP_AA[0] - 1, GAP_AA[1] + 1)},
        {"ucd": "em.wl;meta.main", "PROCSOFT": NEWER, "PIPE": NEWER},
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


def final(path: Path, gap: tuple[float, float] | None, filler: float) -> Path:
    """A made-up S1D_FINAL of the newer pipeline: twelve vectors, WAVE in vacuum, its air wavelengths beside it."""
    vacuum = 3781.43 * np.exp(np.arange(0, 73_603) * 2.457084 / 299_792.458)
    flux = 1e-13 * np.ones(vacuum.size)
    if gap:
        flux[(vacuum > gap[0]) & (vacuum < gap[1])] = filler
    vectors = {"WAVE": ("D", "em.wl;meta.main", vacuum), "FLUX": ("D", "phot.flux.density;em.wl;meta.main", flux)}
    vectors |= {"ERR": ("D", "stat.error", flux), "QUAL": ("J", "meta.code.qual", np.zeros(vacuum.size))}
    vectors |= {"SNR": ("D", "stat.snr", flux), "WAVE_AIR": ("D", AIR, vacuum_to_air(vacuum))}
    for part in ("EL", "CAL"):
        vectors |= {f"{name}_{part}": ("D", "", flux) for name in ("FLUX", "ERR", "QUAL")}
    columns = [fits.Column(name, f"{vacuum.size}{kind}", array=[v]) for name, (kind, _, v) in vectors.items()]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    for number, (_, ucd, _) in enumerate(vectors.values(), 1):
        table.header[f"TUCD{number}"] = ucd
    primary = fits.PrimaryHDU()
    cards = {"INSTRUME": "HARPS", "PRODCATG": "SCIENCE.SPECTRUM", "SPECSYS": "BARYCENT", "PROCSOFT": NEWER, PIPE: NEWER}
    primary.header.update(cards | {"HIERARCH ESO QC BERV": 10.0})
    fits.HDUList([primary, table]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("gap", "filler"), [(None, 0.0), ((5305.8, 5338.74), 0.0), ((5305.8, 5338.74), np.nan), ((5305.0, 5340.0), 0.0)]
)
def test_a_product_of_the_newer_pipeline_is_refused_whatever_its_gap(gap, filler, tmp_path):
    found = read_spectrum(final(tmp_path / "r.HARPS_S1D_FINAL_A.fits", gap, filler))
    assert isinstance(found, Refusal)
    assert found.reason == Reason.VACUUM


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
