"""Read HARPS spectra as ESO Phase 3 (ADP) tables or DRS s1d images.

A bad file is a `Refusal` with its reason, never an exception: an archive of a quarter of a million files
always holds some, and one of them must not stop the rest.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from harps_dist.formats.air import require_air
from harps_dist.formats.folders import MACOS
from harps_dist.formats.hdus import BEGINS, open_hdus
from harps_dist.formats.headers import Header
from harps_dist.formats.records import Reason, Refusal, RefusedError, SpectrumRecord, refusing, require
from harps_dist.intake import open_regular
from harps_dist.intake import read_stream as whole_stream
from harps_dist.spectra.instrument import HARPS, INSTRUMENTS, Instrument, instrument_of
from harps_dist.spectra.quantities import QUANTITIES, expected, in_range
from harps_dist.spectra.standardise import without_wild
from harps_dist.text import printable

SUFFIXES = (".fits", ".fits.gz", ".fit", ".fit.gz")
MAX_BYTES = 128 * 2**20  # decompressed; twenty-five times the largest HARPS product
WAVE_RANGE_AA = QUANTITIES["wave"].low, QUANTITIES["wave"].high

_S1D_NAME = re.compile(r"([A-Z][\w-]*\.\d{4}-\d\d-\d\dT\d\d)[:_-](\d\d)[:_-](\d\d\.\d+)_s1d_([AB])")
_PRODUCT_ID = re.compile(r"ADP\.[\w.:+-]{1,80}", re.ASCII)


def find_spectra(folder: Path) -> list[Path]:
    """All FITS files in and below `folder` (or the one file it names), sorted by path.

    Folders reached through links are entered once, so a link that leads back up does no harm. Names that begin with
    '._' are none: macOS writes such files, without a spectrum, beside every file on a foreign disk.
    Raises FileNotFoundError where `folder` does not exist.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no folder or file of spectra at {printable(folder)}. Check the path.")
    if folder.is_file():
        return [folder]
    found, entered = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        found += [
            Path(parent, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(MACOS)
        ]
    return sorted(found)


def read_spectrum(path: Path) -> SpectrumRecord | Refusal:
    """Read one ADP or s1d file, plain or gzipped; a file that cannot be used gives a Refusal, never an error.

    Formats: ESO Science Data Products Standard (one table row of vectors WAVE and FLUX in HDU 1); DRS manual
    (image in HDU 0 with CRVAL1 and CDELT1). Both hold air wavelengths in the barycentric frame.
    """

    def read() -> SpectrumRecord:
        with open_regular(path) as stream:  # the only time the file is opened
            return _of_stream(stream, path.name)

    return refusing(printable(path.name), Reason.NOT_FITS, read)


def read_stream(stream: IO[bytes], source: str) -> SpectrumRecord | Refusal:
    """Read a spectrum from a binary stream at its beginning; source: the name of the file, which may say what it is."""
    return refusing(printable(source), Reason.NOT_FITS, lambda: _of_stream(stream, source))


def _of_stream(stream: IO[bytes], source: str) -> SpectrumRecord:
    with open_hdus(whole_stream(stream, MAX_BYTES, BEGINS)) as hdus:
        return _read(hdus, printable(source))


def _read(hdus: Any, source: str) -> SpectrumRecord:
    header = Header(hdus[0].header)
    instrument = _instrument(header, source)
    axes = hdus[0].header["NAXIS"]
    require(axes <= 1, Reason.NO_SPECTRUM, f"expected a 1-D image or a table, got {axes} axes in HDU 0")
    wave, flux, ucd = _read_image(hdus[0]) if axes else _read_table(hdus)
    _check_wave(wave, flux)
    flux, wild = _checked_flux(flux)
    berv_kms = header.quantity("berv", "ESO DRS BERV")
    require_air(instrument, header, ucd, header.text("CTYPE1") if axes else "", wave, flux, berv_kms)
    headers = (header,) if axes else (header, Header(hdus[1].header))
    ra_deg, dec_deg = header.position
    return SpectrumRecord(
        dp_id=_product_id(header, source),
        instrument=instrument.name,
        product="s1d" if axes else "ADP",
        source=source,
        object=header.text("OBJECT"),
        target_name=header.text("ESO OBS TARG NAME"),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        mjd_obs=header.quantity("mjd", "MJD-OBS"),
        exptime_s=header.quantity("exptime", "EXPTIME"),
        snr=header.snr,
        berv_kms=berv_kms,
        airmass=header.airmass,
        prog_id=header.text("PROG_ID", "ESO OBS PROG ID"),
        pipeline=header.text("ESO DRS VERSION", "PROCSOFT"),
        origin=header.text("ORIGIN"),
        simulated=next((one.simulated for one in headers if one.simulated), ""),
        radvel_guess_kms=header.radvel_guess,
        wave_aa=wave,
        flux=flux,
        out_of_range=header.out_of_range,
        wild=wild,
    )


# --- structure ---------------------------------------------------------------------------------------


def _instrument(header: Header, source: str) -> Instrument:
    """Whose spectrum of a star the file holds; HARPS's where it does not say."""
    keyword, category = header.text("INSTRUME"), header.text("ESO DPR CATG")
    instrument = instrument_of(keyword) if keyword else HARPS
    known = " or ".join(repr(one.keyword) for one in INSTRUMENTS.values())
    if instrument is None:
        raise RefusedError(Reason.WRONG_INSTRUMENT, f"expected INSTRUME = {known}, got {keyword!r}")
    detail = f"expected ESO DPR CATG = 'SCIENCE', got {category!r}"
    require(category in ("", "SCIENCE"), Reason.NOT_SCIENCE, detail)
    detail = "expected fibre A (the star), got fibre B (sky or lamp)"
    require(not is_fibre_b(source), Reason.WRONG_FIBRE, detail)
    return instrument


def is_fibre_b(source: str) -> bool:
    """Whether a file's name says that it is an s1d of the fibre on sky or lamp."""
    name = _S1D_NAME.search(source)
    return name is not None and name[4] == "B"


def _read_table(hdus: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """WAVE and FLUX of a Phase 3 spectrum in HDU 1, (n,) float64 and (n,), and the UCD of WAVE."""
    try:
        hdu = hdus[1]
    except IndexError:
        raise RefusedError(Reason.NO_SPECTRUM, "expected a table in HDU 1, got HDU 0 alone") from None
    header, cards = Header(hdu.header), hdu.header
    kind = cards["XTENSION"]
    require(kind == "BINTABLE", Reason.NO_SPECTRUM, f"expected a BINTABLE in HDU 1, got {kind!r}")
    rows = cards["NAXIS2"]
    require(rows == 1, Reason.NO_SPECTRUM, f"expected one row of vectors, got {rows} rows")
    column = {header.text(f"TTYPE{i + 1}").upper(): i + 1 for i in range(cards["TFIELDS"])}
    detail = f"expected columns WAVE and FLUX, got {', '.join(column)}"
    require({"WAVE", "FLUX"} <= column.keys(), Reason.MISSING_COLUMN, detail)
    _check_unit(header.text(f"TUNIT{column['WAVE']}"), f"TUNIT{column['WAVE']}")
    _check_frame(header.text("SPECSYS") or Header(hdus[0].header).text("SPECSYS"))
    detail = "the data of HDU 1 do not add up to the header's DATASUM"
    require(hdu.verify_datasum() != 0, Reason.CHECKSUM, detail)  # 1: right, 2: there is none
    row = hdu.data[0]
    wave, flux = (np.ravel(row[column[name] - 1]) for name in ("WAVE", "FLUX"))
    return wave.astype(np.float64), flux, header.text(f"TUCD{column['WAVE']}")


def _read_image(hdu: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """Wavelength and flux of a DRS s1d in HDU 0, (n,) float64 and (n,), and no UCD.

    Its DATASUM, where there is one, is left over from the raw frame and says nothing.
    """
    header = Header(hdu.header)
    start, step = header.number("CRVAL1"), header.number("CDELT1", "CD1_1")
    detail = f"expected numbers in CRVAL1 and CDELT1, got {start} and {step}"
    require(np.isfinite([start, step]).all(), Reason.MISSING_FIELD, detail)
    kind = header.text("CTYPE1").upper()  # the DRS writes the unit here
    _check_unit("" if kind.startswith(("AWAV", "WAVE", "VAC")) else kind, "CTYPE1")
    _check_unit(header.text("CUNIT1"), "CUNIT1")
    _check_frame(header.text("SPECSYS"))
    reference = header.number("CRPIX1")
    first = 1.0 - (reference if np.isfinite(reference) else 1.0)
    with np.errstate(over="ignore"):
        return start + step * (first + np.arange(hdu.data.size)), hdu.data, ""


# --- physics -----------------------------------------------------------------------------------------


def _check_unit(unit: str, where: str) -> None:
    known = unit.lower() in ("", "angstrom", "angstroms", "a", "aa")
    require(known, Reason.WRONG_UNIT, f"expected wavelengths in Angstrom, got {where} = {unit!r}")


def _check_frame(frame: str) -> None:
    barycentric = not frame or frame.upper().startswith("BARYCENT")
    require(barycentric, Reason.WRONG_FRAME, f"expected SPECSYS = 'BARYCENT', got {frame!r}")


def _check_wave(wave: np.ndarray, flux: np.ndarray) -> None:
    detail = f"expected as many wavelengths as fluxes, two at least, got {wave.size} and {flux.size}"
    require(wave.size == flux.size >= 2, Reason.LENGTH_MISMATCH, detail)
    steps = np.diff(wave) if np.isfinite(wave).all() else np.zeros(1)
    require((steps > 0).all(), Reason.NOT_INCREASING, "expected finite, strictly increasing wavelengths")
    detail = f"expected wavelengths of {expected('wave')}, got {wave[0]:.6g}..{wave[-1]:.6g}"
    require(in_range("wave", wave[0]) and in_range("wave", wave[-1]), Reason.WRONG_UNIT, detail)
    step = float(np.median(steps))
    require(
        in_range("wave_step", step), Reason.OUT_OF_RANGE, f"expected steps of {expected('wave_step')}, got {step:g}"
    )


def _checked_flux(flux: np.ndarray) -> tuple[np.ndarray, float]:
    """(n,) float32, NaN where not finite or beyond all reason, and the share of the latter."""
    numbers = flux.dtype.kind in "fiu"
    require(numbers, Reason.NO_FINITE_FLUX, f"expected flux in numbers, got values of type {flux.dtype}")
    held = np.isfinite(flux)
    require(held.any(), Reason.NO_FINITE_FLUX, f"expected flux, got {flux.size} values, none of them finite")
    with np.errstate(over="ignore"):
        narrow = flux.astype(np.float32)
    finite = np.isfinite(narrow)
    detail = f"expected flux that float32 can hold, got up to {np.abs(flux[held]).max():.4g}"
    require(finite.any(), Reason.OUT_OF_RANGE, detail)
    require(narrow[finite].any(), Reason.ALL_ZERO, f"expected flux, got {finite.sum()} zeros")
    median = float(np.median(narrow[finite]))
    require(median > 0, Reason.NEGATIVE, f"expected a positive median flux, got {median:.4g}")
    detail = f"expected a median flux of {expected('median_flux')}, got {median:.4g}"
    require(in_range("median_flux", median), Reason.OUT_OF_RANGE, detail)
    narrow[~finite] = np.nan
    too_large = held.sum() - finite.sum()
    narrow, wild = without_wild(narrow, median)
    return narrow, (wild + too_large) / flux.size


# --- header ------------------------------------------------------------------------------------------


def _product_id(header: Header, source: str) -> str:
    """The archive's own id where the header has it, else the file name (s1d: with colons restored)."""
    archived = header.text("DP.ID", "ARCFILE").removesuffix(".fits")
    if _PRODUCT_ID.fullmatch(archived):
        return archived
    if name := _S1D_NAME.search(source):
        return "{}:{}:{}_s1d_{}".format(*name.groups())
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if source.lower().endswith(s)), "")
    return source[: len(source) - len(suffix)]
