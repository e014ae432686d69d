"""Read HARPS spectra: products of ESO's archive, of the HARPS DRS and of the newer pipeline.

A bad file is a `Refusal` with its reason, never an exception: an archive of a quarter of a million files
always holds some, and one of them must not stop the rest.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from harps_dist.formats.air import in_air
from harps_dist.formats.belonging import belonging
from harps_dist.formats.folders import MACOS
from harps_dist.formats.headers import Header
from harps_dist.formats.layouts import find
from harps_dist.formats.packing import SUFFIXES, unpacked_hdus
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord, refusing, require
from harps_dist.intake import open_regular
from harps_dist.spectra.quantities import QUANTITIES, expected, in_range
from harps_dist.spectra.standardise import without_wild
from harps_dist.text import printable

WAVE_RANGE_AA = QUANTITIES["wave"].low, QUANTITIES["wave"].high

_COLON = r"(?:[:_ .-]|%3A)"  # as file systems and downloads write it
_S1D_NAME = re.compile(
    rf"([A-Z][\w-]*\.\d{{4}}-\d\d-\d\dT\d\d){_COLON}(\d\d){_COLON}(\d\d\.\d+)_((?:s1d|S1D)(?:_[A-Z]+)?_[AB])(?![A-Za-z])"
)
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
    """Read one spectrum, plain or packed; a file that cannot be used gives a Refusal, never an error.

    `formats.layouts` has the products with their sources, `formats.packing` what they may be packed in. Wavelengths
    come out in air and in the barycentric frame.
    """

    def read() -> SpectrumRecord:
        with open_regular(path) as stream:  # the only time the file is opened
            return _of_stream(stream, path.name)

    return refusing(printable(path.name), Reason.NOT_FITS, read)


def read_stream(stream: IO[bytes], source: str) -> SpectrumRecord | Refusal:
    """Read a spectrum from a binary stream at its beginning; source: the name of the file, which may say what it is."""
    return refusing(printable(source), Reason.NOT_FITS, lambda: _of_stream(stream, source))


def _of_stream(stream: IO[bytes], source: str) -> SpectrumRecord:
    with unpacked_hdus(stream, source) as (hdus, name):
        return _read(hdus, printable(name))


def _read(hdus: Any, source: str) -> SpectrumRecord:
    header, found = Header(hdus[0].header), find(hdus)
    instrument = belonging(header, source)
    for axis in found.axes:
        _check_wave(axis.wave_aa)
    _check_frame(found.frame)
    flux, wild = _narrow_flux(found.flux, found.bad)
    berv_kms = header.quantity("berv", "ESO DRS BERV", "ESO QC BERV")
    wave_aa = in_air(instrument, header, found.axes, flux, berv_kms)
    headers = (header,) if found.is_image else (header, Header(hdus[1].header))
    ra_deg, dec_deg = header.position
    snr = header.snr
    return SpectrumRecord(
        dp_id=_product_id(header, source),
        instrument=instrument.name,
        product=found.product,
        source=source,
        object=header.text("OBJECT"),
        target_name=header.text("ESO OBS TARG NAME"),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        mjd_obs=header.quantity("mjd", "MJD-OBS"),
        exptime_s=header.quantity("exptime", "EXPTIME"),
        snr=_snr_of(flux, found.sigma) if np.isnan(snr) else snr,
        berv_kms=berv_kms,
        airmass=header.airmass,
        prog_id=header.text("PROG_ID", "ESO OBS PROG ID"),
        pipeline=header.text("ESO DRS VERSION", "PROCSOFT", "ESO PRO REC1 PIPE ID"),
        origin=header.text("ORIGIN"),
        simulated=next((one.simulated for one in headers if one.simulated), ""),
        radvel_guess_kms=header.radvel_guess,
        wave_aa=wave_aa,
        flux=flux,
        sigma=None if found.sigma is None else np.where(np.isfinite(flux), found.sigma, np.float32(np.nan)),
        unit=found.unit,
        out_of_range=header.out_of_range,
        wild=wild,
    )


# --- physics -----------------------------------------------------------------------------------------


def _check_frame(frame: str) -> None:
    barycentric = not frame or frame.upper().startswith("BARYCENT")
    require(barycentric, Reason.WRONG_FRAME, f"expected SPECSYS = 'BARYCENT', got {frame!r}")


def _check_wave(wave: np.ndarray) -> None:
    steps = np.diff(wave) if np.isfinite(wave).all() else np.zeros(1)
    require((steps > 0).all(), Reason.NOT_INCREASING, "expected finite, strictly increasing wavelengths")
    detail = f"expected wavelengths of {expected('wave')}, got {wave[0]:.6g}..{wave[-1]:.6g}"
    require(in_range("wave", wave[0]) and in_range("wave", wave[-1]), Reason.WRONG_UNIT, detail)
    step = float(np.median(steps))
    require(
        in_range("wave_step", step), Reason.OUT_OF_RANGE, f"expected steps of {expected('wave_step')}, got {step:g}"
    )


def _narrow_flux(flux: np.ndarray, bad: np.ndarray | None) -> tuple[np.ndarray, float]:
    """(n,) float32, NaN where bad, not finite or beyond all reason, and the share of the latter."""
    numbers = flux.dtype.kind in "fiu"
    require(numbers, Reason.NO_FINITE_FLUX, f"expected flux in numbers, got values of type {flux.dtype}")
    held = np.isfinite(flux)
    require(held.any(), Reason.NO_FINITE_FLUX, f"expected flux, got {flux.size} values, none of them finite")
    if bad is not None:
        held &= ~bad
        require(held.any(), Reason.NO_FINITE_FLUX, f"expected flux of quality 0, got {flux.size} values, none of it")
    with np.errstate(over="ignore"):
        narrow = flux.astype(np.float32)
    finite = held & np.isfinite(narrow)
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


def _snr_of(flux: np.ndarray, sigma: np.ndarray | None) -> float:
    """The median of flux over its errors, NaN where no errors are known."""
    ratio = flux / sigma if sigma is not None else np.empty(0, np.float32)
    ratio = ratio[np.isfinite(ratio)]
    snr = float(np.median(ratio)) if len(ratio) else np.nan
    return snr if in_range("snr", snr) else np.nan


# --- header ------------------------------------------------------------------------------------------


def _product_id(header: Header, source: str) -> str:
    """The archive's own id where the header has it, else the file name (s1d: with colons restored)."""
    archived = header.text("DP.ID", "ARCFILE").removesuffix(".fits")
    if _PRODUCT_ID.fullmatch(archived):
        return archived
    if name := _S1D_NAME.search(source):
        return "{}:{}:{}_{}".format(*name.groups())
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if source.lower().endswith(s)), "")
    return source[: len(source) - len(suffix)]
