"""Wavelengths and flux as each product holds them: Phase 3 tables, tables with a row a pixel, images.

| product | pipeline | where |
|---|---|---|
| ADP | HARPS DRS | HDU 1, one row of vectors WAVE, FLUX, ERR |
| S1D_FINAL_A | newer | HDU 1, one row of vectors WAVE (vacuum), FLUX, ERR, QUAL, WAVE_AIR and more |
| S1D_A | newer | HDU 1, a row a pixel: wavelength (vacuum), wavelength_air, flux, error, quality |
| S1D_FLUXCAL_A | newer | HDU 1, a row a pixel: wavelength, wavelength_air, flux_cal, error_cal |
| s1d | HARPS DRS | HDU 0, an image along CRVAL1 and CDELT1 |
| s1d, rewritten | IRAF and kin | the same with CTYPE1 = 'LINEAR'; often normalised, or shifted to rest |

Sources: ESO Science Data Products Standard; manuals of the HARPS DRS and of the ESPRESSO pipeline.
Tested in tests/unit/test_newer_products.py.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from harps_dist.formats.headers import Header
from harps_dist.formats.records import Reason, RefusedError, require

VECTORS = ("WAVE", "FLUX", "ERR", "QUAL", "WAVE_AIR")
ROWS = ("WAVELENGTH", "FLUX", "ERROR", "QUALITY", "WAVELENGTH_AIR")
ROWS_CALIBRATED = ("WAVELENGTH", "FLUX_CAL", "ERROR_CAL", "QUALITY", "WAVELENGTH_AIR")
REWRITTEN = "s1d, rewritten"  # no pipeline's own product any more
LINEAR = "LINEAR"  # CTYPE1 of IRAF
SCIENCE = "SCIENCE.SPECTRUM"  # PRODCATG of Phase 3
_GIVE_S1D = "Give the exposure's S1D"
_EPRV = ("INSTRUMENT_HEADER", "RECEIPT", "DRP_CONFIG", "TRACE1_FLUX")  # HDU 1 of the EPRV data standard
_WAT_UNITS = re.compile(r"\bunits=[\"']?(\w+)")  # 'wtype=linear label=Wavelength units=angstroms' of IRAF
_UNITS = ("", "angstrom", "angstroms", "a", "aa")


class Axis(NamedTuple):
    """One set of wavelengths. wave_aa: (n,) float64 [Å]. name, ucd: of its column, '' for an image. kind: CTYPE1 of an
    image, '' for a table."""

    wave_aa: np.ndarray
    name: str = ""
    ucd: str = ""
    kind: str = ""


class Found(NamedTuple):
    """What a product holds.

    product: its name. axes: its wavelengths, those that it says are in air last. flux: (n,). sigma: (n,) float32
    standard deviation in the unit of the flux, NaN where not known, or None. bad: (n,) bool, pixels that the pipeline
    calls bad, or None. unit: of the flux, '' where the file does not say. frame: SPECSYS, '' where it does not say.
    """

    product: str
    axes: tuple[Axis, ...]
    flux: np.ndarray
    sigma: np.ndarray | None = None
    bad: np.ndarray | None = None
    unit: str = ""
    frame: str = ""

    @property
    def is_image(self) -> bool:
        """Whether all of it stands in HDU 0."""
        return not self.axes[0].name


def find(hdus: Any) -> Found:
    """The arrays of a product; hdus: an open HDUList. Raises RefusedError where there is no spectrum in it."""
    axes = hdus[0].header["NAXIS"]
    detail = f"expected a 1-D image or a table, got {axes} axes in HDU 0, as of orders that are not merged. {_GIVE_S1D}"
    require(axes <= 1, Reason.NO_SPECTRUM, detail)
    return _of_image(hdus[0]) if axes else _of_table(hdus)


def _of_table(hdus: Any) -> Found:
    try:
        hdu = hdus[1]
    except IndexError:
        raise RefusedError(Reason.NO_SPECTRUM, "expected a table in HDU 1, got HDU 0 alone") from None
    header, cards, primary = Header(hdu.header), hdu.header, Header(hdus[0].header)
    kind, name = cards["XTENSION"], header.text("EXTNAME")
    detail = f"expected a merged spectrum, got the EPRV standard's level 2, orders that are not merged. {_GIVE_S1D}"
    require(name not in _EPRV and primary.text("DATALVL") != "L2", Reason.NO_SPECTRUM, detail)
    detail = f"expected a BINTABLE in HDU 1, got {kind!r} {name!r}. {_GIVE_S1D}"
    require(kind == "BINTABLE", Reason.NO_SPECTRUM, detail)
    rows = cards["NAXIS2"]
    column = {header.text(f"TTYPE{i + 1}").upper(): i + 1 for i in range(cards["TFIELDS"])}
    by_row = "WAVELENGTH" in column and rows != 1
    require(rows == 1 or by_row, Reason.NO_SPECTRUM, f"expected one row of vectors, got {rows} rows")
    names = VECTORS if not by_row else ROWS if "FLUX" in column else ROWS_CALIBRATED
    wave, flux, *_ = names
    detail = f"expected columns {wave} and {flux}, got {', '.join(column)}"
    require({wave, flux} <= column.keys(), Reason.MISSING_COLUMN, detail)
    detail = "the data of HDU 1 do not add up to the header's DATASUM"
    require(hdu.verify_datasum() != 0, Reason.CHECKSUM, detail)  # 1: right, 2: there is none

    def values(key: str) -> np.ndarray | None:
        if key not in column:
            return None
        return np.ravel(hdu.data.field(column[key] - 1) if by_row else hdu.data[0][column[key] - 1])

    axes = []
    for key in (wave, names[4]):
        if (held := values(key)) is not None:
            number = column[key]
            check_unit(header.text(f"TUNIT{number}"), f"TUNIT{number}")
            require(held.dtype.kind in "fiu", Reason.WRONG_UNIT, f"expected {key} in numbers, got {held.dtype}")
            axes.append(Axis(held.astype(np.float64), key, header.text(f"TUCD{number}")))
    held = values(flux)
    assert held is not None  # it is among the columns
    length = held.size
    for one in axes:
        detail = f"expected as many wavelengths as fluxes, two at least, got {one.wave_aa.size} and {length}"
        require(one.wave_aa.size == length >= 2, Reason.LENGTH_MISMATCH, detail)
    newer = by_row or names[4] in column
    product = f"S1D_{'' if by_row else 'FINAL_'}A" if newer else "ADP"
    product = "S1D_FLUXCAL_A" if names == ROWS_CALIBRATED else product
    frame = header.text("SPECSYS") or primary.text("SPECSYS")
    unit = header.text(f"TUNIT{column[flux]}")
    return Found(
        product, tuple(axes), held, _sigma(values(names[2]), length), _bad(values(names[3]), length), unit, frame
    )


def _of_image(hdu: Any) -> Found:
    """An image of one axis. Its DATASUM, where there is one, is left over from the raw frame and says nothing."""
    header = Header(hdu.header)
    start, step = header.number("CRVAL1"), header.number("CDELT1", "CD1_1")
    detail = f"expected numbers in CRVAL1 and CDELT1, got {start} and {step}"
    require(np.isfinite([start, step]).all(), Reason.MISSING_FIELD, detail)
    kind = header.text("CTYPE1").upper()  # the DRS writes the unit here
    rewritten = kind == LINEAR
    check_unit("" if rewritten or kind.startswith(("AWAV", "WAVE", "VAC")) else kind, "CTYPE1")
    check_unit(header.text("CUNIT1"), "CUNIT1")
    if rewritten:
        says = _WAT_UNITS.search(header.text("WAT1_001"))
        check_unit(says[1] if says else "", "units in WAT1_001")
        curved = header.number("DC-FLAG")
        detail = f"expected wavelengths in equal steps, got DC-FLAG = {curved:g}, logarithms. Resample it linearly"
        require(not curved > 0, Reason.WRONG_UNIT, detail)
    reference = header.number("CRPIX1")
    first = 1.0 - (reference if np.isfinite(reference) else 1.0)
    with np.errstate(over="ignore"):
        wave_aa = start + step * (first + np.arange(hdu.data.size))
    detail = f"expected two pixels at least, got {wave_aa.size}"
    require(wave_aa.size >= 2, Reason.LENGTH_MISMATCH, detail)
    product, unit, frame = REWRITTEN if rewritten else "s1d", header.text("BUNIT"), header.text("SPECSYS")
    return Found(product, (Axis(wave_aa, kind=kind),), hdu.data, unit=unit, frame=frame)


def _sigma(values: np.ndarray | None, length: int) -> np.ndarray | None:
    """(n,) float32, None where there is not one error that can be."""
    if values is None or values.size != length or values.dtype.kind not in "fiu":
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        narrow = values.astype(np.float32)
        good = np.isfinite(narrow) & (narrow > 0)
    return np.where(good, narrow, np.float32(np.nan)) if good.any() else None


def _bad(values: np.ndarray | None, length: int) -> np.ndarray | None:
    """(n,) bool; a quality of 0 is good."""
    if values is None or values.dtype.kind not in "iu":
        return None
    detail = f"expected as many qualities as fluxes, got {values.size} and {length}"
    require(values.size == length, Reason.LENGTH_MISMATCH, detail)
    return values != 0


def check_unit(unit: str, where: str) -> None:
    """Raise RefusedError unless a unit of wavelengths is Å, or not given."""
    known = unit.lower() in _UNITS
    require(known, Reason.WRONG_UNIT, f"expected wavelengths in Angstrom, got {where} = {unit!r}")
