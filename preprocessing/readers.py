"""Read HARPS spectra as ESO Phase 3 (ADP) tables or DRS s1d images.

A bad file is a `Refusal` with its reason, never an exception: an archive of a quarter of a million files
always holds some, and one of them must not stop the rest.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from preprocessing.origin import simulated_by
from preprocessing.records import Reason, Refusal, SpectrumRecord

SUFFIXES = (".fits", ".fits.gz", ".fit", ".fit.gz")
MAX_BYTES = 256 * 2**20  # decompressed; fifty times the largest HARPS product
MAX_PIXELS = 50_000_000
WAVE_RANGE_AA = (3000.0, 11000.0)  # nm, micrometre, metre and log-wavelength all lie far outside
C_KMS = 299_792.458

# The detector gap as runs of zero flux show it, air, in the detector's frame: edges constant to 0.01 Å over
# 2003-2012 in 15 files. In vacuum it lies 1.48 Å redward; a missing BERV moves it by 0.57 Å at most.
GAP_AA = (5304.32, 5337.26)
GAP_VACUUM_SHIFT_AA = 1.48

_END_CARD = b"END" + b" " * 77
_S1D_NAME = re.compile(r"(HARPS\.\d{4}-\d\d-\d\dT\d\d)[:_-](\d\d)[:_-](\d\d\.\d+)_s1d_([AB])")


class _RefusedError(Exception):
    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def _require(condition: object, reason: Reason, detail: str) -> None:
    if not condition:
        raise _RefusedError(reason, detail)


def find_spectra(folder: Path) -> list[Path]:
    """All FITS files in and below `folder` (or the one file it names), sorted by path.

    Folders reached through links are entered once, so a link that leads back up does no harm.
    Raises FileNotFoundError where `folder` does not exist.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no folder or file of spectra at {folder}. Check the path.")
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
        found += [Path(parent, name) for name in files if name.lower().endswith(SUFFIXES)]
    return sorted(found)


def read_spectrum(path: Path) -> SpectrumRecord | Refusal:
    """Read one ADP or s1d file, plain or gzipped; a file that cannot be used gives a Refusal, never an error.

    Formats: ESO Science Data Products Standard (one table row of vectors WAVE and FLUX in HDU 1); DRS manual
    (image in HDU 0 with CRVAL1 and CDELT1). Both hold air wavelengths in the barycentric frame.
    """
    try:
        _require(path.is_file() or not path.exists(), Reason.NOT_FITS, "expected a file, got a directory or device")
        with path.open("rb") as stream:  # the only time the file is opened
            return read_stream(stream, path.name)
    except _RefusedError as refused:
        return Refusal(path.name, refused.reason, refused.detail)
    except OSError as error:
        return Refusal(path.name, Reason.UNREADABLE, f"expected a readable FITS file, got {_named(error)}")


def read_stream(stream: IO[bytes], source: str) -> SpectrumRecord | Refusal:
    """The same of a binary stream at its beginning; source: the name of the file, which may say what it is."""
    from astropy.io import fits

    try:
        raw = _whole(stream)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy warns where it mends; what matters is checked below
            with fits.open(BytesIO(raw), memmap=False, lazy_load_hdus=True) as hdus:
                return _read(hdus, len(raw), source)
    except _RefusedError as refused:
        return Refusal(source, refused.reason, refused.detail)
    except Exception as error:  # a damaged header makes astropy raise nearly anything
        return Refusal(source, Reason.UNREADABLE, f"expected a readable FITS file, got {_named(error)}")


def _whole(stream: IO[bytes]) -> bytes:
    """All of a stream, decompressed."""
    gzipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    try:
        raw = (gzip.GzipFile(fileobj=stream) if gzipped else stream).read(MAX_BYTES + 1)
    except EOFError:
        raise _RefusedError(Reason.TRUNCATED, "the gzip stream ends before its end mark") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _RefusedError(Reason.CHECKSUM, f"the gzip stream is damaged: {_named(error)}") from None
    _require(len(raw) <= MAX_BYTES, Reason.TOO_LARGE, f"expected at most {MAX_BYTES} bytes decompressed, got more")
    got = f"{len(raw)} bytes beginning {raw[:9]!r}"
    _require(raw.startswith(b"SIMPLE  ="), Reason.NOT_FITS, f"expected a file that begins 'SIMPLE  =', got {got}")
    _require(_END_CARD in raw, Reason.TRUNCATED, f"expected a whole header, got {len(raw)} bytes without END")
    return raw


def _read(hdus: Any, n_bytes: int, source: str) -> SpectrumRecord:
    header = _checked_header(hdus, 0, n_bytes)
    _check_instrument(header, source)
    axes = header["NAXIS"]
    _require(axes <= 1, Reason.NO_SPECTRUM, f"expected a 1-D image or a table, got {axes} axes in HDU 0")
    wave, flux = _read_image(hdus[0]) if axes else _read_table(hdus, n_bytes)
    _check_wave(wave, flux)
    flux = _checked_flux(flux)
    berv_kms = _number(header, "ESO DRS BERV")
    _check_gap(wave, flux, berv_kms)
    headers = (header,) if axes else (header, hdus[1].header)
    ra_deg, dec_deg = _position(header)
    radvel_kms = _number(header, "ESO TEL TARG RADVEL")
    return SpectrumRecord(
        dp_id=_product_id(header, source),
        product="s1d" if axes else "ADP",
        source=source,
        object=_text(header, "OBJECT"),
        target_name=_text(header, "ESO OBS TARG NAME"),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        mjd_obs=_number(header, "MJD-OBS"),
        exptime_s=_number(header, "EXPTIME"),
        snr=_snr(header),
        berv_kms=berv_kms,
        airmass=_airmass(header),
        prog_id=_text(header, "PROG_ID", "ESO OBS PROG ID"),
        pipeline=_text(header, "ESO DRS VERSION", "PROCSOFT"),
        origin=_text(header, "ORIGIN"),
        simulated=next(filter(None, (simulated_by(*_made_by(cards)) for cards in headers)), ""),
        radvel_guess_kms=np.nan if radvel_kms <= -99999 else radvel_kms,
        wave_aa=wave,
        flux=flux,
    )


# --- structure ---------------------------------------------------------------------------------------


def _checked_header(hdus: Any, index: int, n_bytes: int) -> Any:
    """The header of an HDU whose data are known to be all there, before any of them is touched.

    Needed because astropy fills up what is missing at the end of a file, with a warning at most.
    """
    header = hdus[index].header
    pixels = math.prod(header[f"NAXIS{i + 1}"] for i in range(header["NAXIS"])) if header["NAXIS"] else 0
    detail = f"expected at most {MAX_PIXELS} pixels, the header of HDU {index} promises {pixels}"
    _require(0 <= pixels <= MAX_PIXELS, Reason.TOO_LARGE, detail)
    promised = _end_of(hdus, index)
    detail = f"the header of HDU {index} promises data up to byte {promised}, the file ends at {n_bytes}"
    _require(n_bytes >= promised, Reason.TRUNCATED, detail)
    return header


def _end_of(hdus: Any, index: int) -> int:
    place = hdus[index].fileinfo()  # that of the list would write all headers out first
    return place["datLoc"] + place["datSpan"]


def _check_instrument(header: Any, source: str) -> None:
    instrument, category = _text(header, "INSTRUME"), _text(header, "ESO DPR CATG")
    detail = f"expected INSTRUME = 'HARPS', got {instrument!r}"
    _require(instrument in ("", "HARPS"), Reason.WRONG_INSTRUMENT, detail)
    detail = f"expected ESO DPR CATG = 'SCIENCE', got {category!r}"
    _require(category in ("", "SCIENCE"), Reason.NOT_SCIENCE, detail)
    detail = "expected fibre A (the star), got fibre B (sky or lamp)"
    _require(not is_fibre_b(source), Reason.WRONG_FIBRE, detail)


def is_fibre_b(source: str) -> bool:
    """Whether a file's name says that it is an s1d of the fibre on sky or lamp."""
    name = _S1D_NAME.search(source)
    return name is not None and name[4] == "B"


def _read_table(hdus: Any, n_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """WAVE and FLUX of a Phase 3 spectrum in HDU 1: (n,) float64 and (n,)."""
    try:
        hdu = hdus[1]
    except IndexError:
        _require(n_bytes <= _end_of(hdus, 0), Reason.TRUNCATED, "the file ends in the header of HDU 1")
        raise _RefusedError(Reason.NO_SPECTRUM, "expected a table in HDU 1, got HDU 0 alone") from None
    header = _checked_header(hdus, 1, n_bytes)
    kind = header["XTENSION"]
    _require(kind == "BINTABLE", Reason.NO_SPECTRUM, f"expected a BINTABLE in HDU 1, got {kind!r}")
    rows = header["NAXIS2"]
    _require(rows == 1, Reason.NO_SPECTRUM, f"expected one row of vectors, got {rows} rows")
    column = {_text(header, f"TTYPE{i + 1}").upper(): i + 1 for i in range(header["TFIELDS"])}
    detail = f"expected columns WAVE and FLUX, got {', '.join(column)}"
    _require({"WAVE", "FLUX"} <= column.keys(), Reason.MISSING_COLUMN, detail)
    _check_unit(_text(header, f"TUNIT{column['WAVE']}"), f"TUNIT{column['WAVE']}")
    _check_frame(_text(header, "SPECSYS") or _text(hdus[0].header, "SPECSYS"))
    # ESO's rule is 'em.wl' for vacuum and 'em.wl;obs.atmos' for air, but products of the HARPS DRS, whose
    # s1d is in air, carry a bare 'em.wl'.
    meaning = _text(header, f"TUCD{column['WAVE']}").lower()
    from_drs = _text(hdus[0].header, "ESO DRS VERSION", "PROCSOFT").startswith("HARPS_")
    detail = "expected air wavelengths (UCD 'em.wl;obs.atmos', or a product of the HARPS DRS), got UCD 'em.wl'"
    _require(meaning != "em.wl" or from_drs, Reason.VACUUM, detail)
    detail = "the data of HDU 1 do not add up to the header's DATASUM"
    _require(hdu.verify_datasum() != 0, Reason.CHECKSUM, detail)  # 1: right, 2: there is none
    row = hdu.data[0]
    wave, flux = (np.ravel(row[column[name] - 1]) for name in ("WAVE", "FLUX"))
    return wave.astype(np.float64), flux


def _read_image(hdu: Any) -> tuple[np.ndarray, np.ndarray]:
    """Wavelength and flux of a DRS s1d in HDU 0: (n,) float64 and (n,).

    Its DATASUM, where there is one, is left over from the raw frame and says nothing.
    """
    header = hdu.header
    start, step = _number(header, "CRVAL1"), _number(header, "CDELT1", "CD1_1")
    detail = f"expected numbers in CRVAL1 and CDELT1, got {start} and {step}"
    _require(np.isfinite([start, step]).all(), Reason.MISSING_FIELD, detail)
    kind = _text(header, "CTYPE1").upper()  # the DRS writes the unit here
    detail = f"expected air wavelengths, got CTYPE1 = {kind!r} (vacuum)"
    _require(not kind.startswith(("WAVE", "VAC")), Reason.VACUUM, detail)
    _check_unit("" if kind.startswith("AWAV") else kind, "CTYPE1")
    _check_unit(_text(header, "CUNIT1"), "CUNIT1")
    _check_frame(_text(header, "SPECSYS"))
    reference = _number(header, "CRPIX1")
    first = 1.0 - (reference if np.isfinite(reference) else 1.0)
    return start + step * (first + np.arange(hdu.data.size)), hdu.data


# --- physics -----------------------------------------------------------------------------------------


def _check_unit(unit: str, where: str) -> None:
    known = unit.lower() in ("", "angstrom", "angstroms", "a", "aa")
    _require(known, Reason.WRONG_UNIT, f"expected wavelengths in Angstrom, got {where} = {unit!r}")


def _check_frame(frame: str) -> None:
    barycentric = not frame or frame.upper().startswith("BARYCENT")
    _require(barycentric, Reason.WRONG_FRAME, f"expected SPECSYS = 'BARYCENT', got {frame!r}")


def _check_wave(wave: np.ndarray, flux: np.ndarray) -> None:
    detail = f"expected as many wavelengths as fluxes, two at least, got {wave.size} and {flux.size}"
    _require(wave.size == flux.size >= 2, Reason.LENGTH_MISMATCH, detail)
    increasing = np.isfinite(wave).all() and (np.diff(wave) > 0).all()
    _require(increasing, Reason.NOT_INCREASING, "expected finite, strictly increasing wavelengths")
    low, high = WAVE_RANGE_AA
    detail = f"expected {low:.0f}..{high:.0f} Angstrom, got {wave[0]:.6g}..{wave[-1]:.6g}"
    _require(low <= wave[0] and wave[-1] <= high, Reason.WRONG_UNIT, detail)


def _checked_flux(flux: np.ndarray) -> np.ndarray:
    """(n,) float32, NaN where not finite."""
    with np.errstate(over="ignore"):
        flux = flux.astype(np.float32)
    finite = np.isfinite(flux)
    _require(finite.any(), Reason.NO_FINITE_FLUX, f"expected flux, got {flux.size} values, none of them finite")
    _require(flux[finite].any(), Reason.ALL_ZERO, f"expected flux, got {finite.sum()} zeros")
    median = float(np.median(flux[finite]))
    _require(median > 0, Reason.NEGATIVE, f"expected a positive median flux, got {median:.4g}")
    flux[~finite] = np.nan
    return flux


def _check_gap(wave: np.ndarray, flux: np.ndarray, berv_kms: float) -> None:
    """Refuse vacuum wavelengths that the header does not own up to, by where the detector gap lies."""
    empty = ~(np.abs(flux) > 0) & (wave > GAP_AA[0] - 10) & (wave < GAP_AA[1] + 10)
    index = np.flatnonzero(empty)
    gap = max(np.split(index, np.flatnonzero(np.diff(index) > 1) + 1), key=len)
    width_aa = wave[gap[-1]] - wave[gap[0]] if len(gap) else 0.0
    if abs(width_aa - (GAP_AA[1] - GAP_AA[0])) > 0.2:
        return  # filled or cut out: no evidence
    doppler = 1.0 + (berv_kms if np.isfinite(berv_kms) else 0.0) / C_KMS
    shift_aa = wave[gap[0]] / doppler - GAP_AA[0]
    detail = f"expected the detector gap at {GAP_AA[0]} Angstrom (air), got it {shift_aa:.2f} Angstrom redward"
    _require(abs(shift_aa - GAP_VACUUM_SHIFT_AA) > GAP_VACUUM_SHIFT_AA / 2, Reason.VACUUM, detail)


# --- header ------------------------------------------------------------------------------------------


def _card(header: Any, key: str) -> Any:
    try:
        return header.get(key)
    except Exception:  # a card astropy cannot parse, such as `KEY = NaN`, counts as missing
        return None


def _number(header: Any, *keys: str) -> float:
    """The first finite number among the cards, else NaN."""
    for key in keys:
        value = _card(header, key)
        if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            return float(value)
    return float("nan")


def _text(header: Any, *keys: str) -> str:
    """The first text among the cards that is not blank, else ''."""
    for key in keys:
        value = _card(header, key)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def _product_id(header: Any, source: str) -> str:
    """The archive's own id where the header has it, else the file name (s1d: with colons restored)."""
    archived = _text(header, "DP.ID", "ARCFILE")
    if archived.startswith("ADP."):
        return archived.removesuffix(".fits")
    if name := _S1D_NAME.search(source):
        return "{}:{}:{}_s1d_{}".format(*name.groups())
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if source.lower().endswith(s)), "")
    return source[: len(source) - len(suffix)]


def _made_by(header: Any) -> tuple[str, str, list[str]]:
    """Origin and software of a file, and the names of all its cards."""
    return _text(header, "ORIGIN"), _text(header, "PROCSOFT"), list(header)


def _snr(header: Any) -> float:
    snr = _number(header, "SNR")
    if np.isfinite(snr):
        return snr
    orders = [_number(header, key) for key in header if re.fullmatch(r"ESO DRS SPE EXT SN\d+", key)]
    return float(np.nanmedian(orders)) if np.isfinite(orders).any() else float("nan")


def _airmass(header: Any) -> float:
    ends = [_number(header, f"ESO TEL AIRM {end}") for end in ("START", "END")]
    ends = [value for value in ends if value >= 1.0]
    mean = float(np.mean(ends)) if ends else _number(header, "AIRMASS")
    return mean if mean >= 1.0 else float("nan")


def _position(header: Any) -> tuple[float, float]:
    """J2000 right ascension and declination [deg] of the target the observer asked for, else the pointing's.

    The pointing is 6-51 arcsec off that in the genuine files (proper motion, pointing model), too far for a
    cross-match; a target entry more than 0.1 deg from it, such as a template's leftover, is not trusted.
    """
    pointing = _number(header, "RA"), _number(header, "DEC")
    alpha, delta = (_number(header, f"ESO TEL TARG {axis}") for axis in ("ALPHA", "DELTA"))
    target = 15.0 * _unpacked(alpha), _unpacked(delta)
    equinox = _number(header, "ESO TEL TARG EQUINOX")
    if not np.isfinite(target).all() or (np.isfinite(equinox) and equinox != 2000.0):
        return pointing
    if np.isfinite(pointing).all():
        east = (target[0] - pointing[0] + 180.0) % 360.0 - 180.0
        if np.hypot(east * np.cos(np.radians(target[1])), target[1] - pointing[1]) > 0.1:
            return pointing
    return target


def _unpacked(packed: float) -> float:
    """ESO's packed sexagesimal: -74320.2 is -7 deg 43 min 20.2 s. NaN where minutes or seconds reach 60."""
    whole, rest = divmod(abs(packed), 10000.0)
    minutes, seconds = divmod(rest, 100.0)
    if not (minutes < 60 and seconds < 60):
        return float("nan")
    return float(np.copysign(whole + minutes / 60 + seconds / 3600, packed))


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
