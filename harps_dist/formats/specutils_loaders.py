"""HARPS spectra as specutils objects: `Spectrum.read(FILE)` for ESO Phase 3, DRS s1d and the newer pipeline's S1D.

FILE is a path, an open file or an open HDUList, plain or packed. Files of HARPS-N are read where a format is named.

Importing this module registers the loaders; once the package is installed, importing specutils does it
(`harps_dist.formats.specutils_hook`). What the files say is kept: flux in its unit (ADU per pixel of 0.01 Å where it
says none), the barycentric frame, the star's radial velocity left in. Wavelengths are in Angstrom, in air. specutils
has no place for medium and frame: they stand in `meta` with the header values. The radial velocity of the object stays
unset, for a header knows but the observer's guess.

Tested in tests/unit/test_specutils.py.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from specutils.io.registers import data_loader

from harps_dist.errors import ConfigError, SpectrumError
from harps_dist.formats.belonging import is_fibre_b
from harps_dist.formats.layouts import SCIENCE
from harps_dist.formats.readers import read_stream
from harps_dist.formats.records import Refusal, SpectrumRecord
from harps_dist.intake import IntakeError, named, open_regular, unpacking
from harps_dist.spectra.instrument import HARPS, named_instrument
from harps_dist.spectra.quantities import in_range
from harps_dist.text import printable

if TYPE_CHECKING:
    from specutils import Spectrum

ADP, S1D, NEWER = "HARPS phase 3", "HARPS s1d", "HARPS S1D"  # format names, as in Spectrum.read(FILE, format=ADP)
EXTENSIONS = ["fits", "fit"]
PRIORITY = 20  # before what reads any table (6) or any image with a linear axis (5)

_BLOCK = 2880  # bytes of a FITS block, of 36 cards
_MOST_BLOCKS = 64
_VALUE = re.compile(r"= *(?:'((?:[^']|'')*)'|([^/ ]+))")

Uncertainty = Literal["file", "none", "photon"]


def identify_adp(origin: str, path: Any, fileobj: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is an ESO Phase 3 spectrum of HARPS: a primary HDU without data that says so."""
    cards = _leading_cards(origin, path, fileobj, {"INSTRUME", "NAXIS", "PRODCATG"}, args)
    return cards.get("NAXIS") == "0" and cards.get("PRODCATG") == SCIENCE


def identify_newer(origin: str, path: Any, fileobj: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is an S1D of the newer pipeline, fibre A, in the form that it has before Phase 3."""
    cards = _leading_cards(origin, path, fileobj, {"INSTRUME", "NAXIS", "ESO PRO CATG"}, args)
    return cards.get("ESO PRO CATG", "") in ("S1D_A", "S1D_FLUXCAL_A") and cards.get("PRODCATG") != SCIENCE


def identify_s1d(origin: str, path: Any, fileobj: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is a DRS s1d of HARPS, fibre A: one axis of wavelengths. Fibre B and bisectors are none."""
    cards = _leading_cards(origin, path, fileobj, {"INSTRUME", "NAXIS", "CRVAL1"}, args)
    try:
        begins_aa = float(cards.get("CRVAL1", "nan"))
    except ValueError:
        return False
    name = _name(path or fileobj or (args[0] if args else None))
    return cards.get("NAXIS") == "1" and in_range("wave", begins_aa) and not is_fibre_b(name)


@data_loader(ADP, identifier=identify_adp, extensions=EXTENSIONS, priority=PRIORITY, force=True)
def read_adp(file: Any, uncertainty: Uncertainty = "file") -> Spectrum:
    """An ESO Phase 3 spectrum of HARPS; see `as_spectrum`. Raises SpectrumError with the reason where it is refused."""
    return _read(file, uncertainty)


@data_loader(S1D, identifier=identify_s1d, extensions=EXTENSIONS, priority=PRIORITY, force=True)
def read_s1d(file: Any, uncertainty: Uncertainty = "file") -> Spectrum:
    """A DRS s1d of HARPS; see `as_spectrum`. Raises SpectrumError with the reason where it is refused."""
    return _read(file, uncertainty)


@data_loader(NEWER, identifier=identify_newer, extensions=EXTENSIONS, priority=PRIORITY, force=True)
def read_newer(file: Any, uncertainty: Uncertainty = "file") -> Spectrum:
    """An S1D of the newer pipeline; see `as_spectrum`. Raises SpectrumError with the reason where it is refused."""
    return _read(file, uncertainty)


def as_spectrum(record: SpectrumRecord, uncertainty: Uncertainty = "file") -> Spectrum:
    """A specutils Spectrum of what a reader delivered.

    Pixels without data are masked: those that are not finite, and zeros, which the pipeline fills the detector gap
    with. uncertainty: "file" for the errors of the file, which products of the HARPS DRS have none of (their ERR is all
    NaN); "none"; or "photon" for a standard deviation estimated from the spectrum's own scatter,
    `harps_dist.spectra.noise.photon_sigma`.
    """
    from astropy import units
    from astropy.nddata import StdDevUncertainty
    from specutils import Spectrum

    if uncertainty not in ("file", "none", "photon"):
        raise ConfigError(f"expected uncertainty 'file', 'none' or 'photon', got {uncertainty!r}.")
    unit = units.Unit(_unit(record.unit))
    missing = ~np.isfinite(record.flux) | (record.flux == 0)
    sigma = _photon_sigma(record.flux, missing) if uncertainty == "photon" else None
    sigma = record.sigma if uncertainty == "file" else sigma
    return Spectrum(
        flux=record.flux * unit,
        spectral_axis=record.wave_aa * units.AA,
        uncertainty=None if sigma is None else StdDevUncertainty(sigma * unit),
        mask=missing,
        meta={
            "instrument": named_instrument(record.instrument).keyword,
            "medium": "air",
            "frame": "barycentric",
            "product": record.product,
            "dp_id": record.dp_id,
            "source": record.source,
            "object": record.object,
            "target_name": record.target_name,
            "ra_deg": record.ra_deg,
            "dec_deg": record.dec_deg,
            "mjd": record.mjd_obs,
            "exptime": record.exptime_s * units.s,
            "snr": record.snr,
            "berv_kms": record.berv_kms,
            "airmass": record.airmass,
            "prog_id": record.prog_id,
            "pipeline": record.pipeline,
            "origin": record.origin,
            "simulated": record.simulated,
        },
    )


def _read(file: Any, uncertainty: Uncertainty) -> Spectrum:
    try:
        with _opened(file) as stream:
            record = read_stream(stream, _name(file))
    except IntakeError as error:
        raise SpectrumError(f"{printable(_name(file))}: {error}. Give another file.") from None
    if isinstance(record, Refusal):
        raise SpectrumError(f"{record}. Read it with another format=, or as astropy.io.fits does.")
    return as_spectrum(record, uncertainty)


def _unit(written: str) -> str:
    """The unit of a flux as astropy writes it; files write it in their own ways."""
    known = written.lower()
    if known in ("e-", "e", "electron", "electrons"):
        return "electron"
    return "erg / (s cm2 Angstrom)" if known.startswith("erg") else "adu"


def _photon_sigma(flux: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """(n,) float64 in the unit of the flux, NaN where it is missing."""
    from harps_dist.spectra.noise import photon_sigma

    sigma, median = np.full(len(flux), np.nan), float(np.median(flux[~missing]))
    sigma[~missing] = photon_sigma(flux[~missing] / median) * median
    return sigma


def _name(file: Any) -> str:
    """The file name of a path, of an open file or HDUList, '' where it has none."""
    if _is_hdus(file):
        return Path(file.filename() or "").name
    name = file if isinstance(file, str | Path) else getattr(file, "name", "")
    return Path(name).name if isinstance(name, str | Path) else ""


@contextmanager
def _opened(file: Any) -> Iterator[IO[bytes]]:
    """The binary stream of a path, of an open HDUList, or of an open file, which is left open."""
    if _is_hdus(file):
        written = BytesIO()
        try:
            file.writeto(written, output_verify="ignore")
        except Exception as error:  # a damaged one makes astropy raise nearly anything
            raise IntakeError("unreadable", f"expected a readable HDUList, got {named(error)}") from None
        written.seek(0)
        yield written
    elif hasattr(file, "read"):
        file.seek(0)
        yield file
    else:
        with open_regular(Path(file)) as stream:
            yield stream


def _is_hdus(file: Any) -> bool:
    from astropy.io import fits

    return isinstance(file, fits.HDUList)


def _leading_cards(origin: str, path: Any, fileobj: Any, needed: set[str], others: tuple[Any, ...]) -> dict[str, str]:
    """The first cards of a HARPS file that is to be read, so far as needed; none of other files. It reads some
    kilobytes."""
    if origin == "read" and others and _is_hdus(others[0]):
        header = others[0][0].header
        cards = {key: str(header[key]).strip() for key in needed | {"PRODCATG"} if key in header}
        return cards if cards.get("INSTRUME") == HARPS.keyword else {}
    if origin != "read" or (fileobj is None and path is None):
        return {}
    try:
        with _opened(path if fileobj is None else fileobj) as stream:
            return _cards_of(stream, needed)
    except (IntakeError, OSError, EOFError, zlib.error):  # damaged: not known to be ours
        return {}


def _key_and_rest(line: str) -> tuple[str, str]:
    """The key of a card, and what follows it."""
    if not line.startswith("HIERARCH "):
        return line[:8].rstrip(), line[8:]
    key, equals, rest = line[9:].partition("=")
    return key.rstrip(), equals + rest


def _cards_of(stream: IO[bytes], needed: set[str]) -> dict[str, str]:
    source = unpacking(stream)
    try:
        cards: dict[str, str] = {}
        for _ in range(_MOST_BLOCKS):
            block = source.read(_BLOCK)
            if len(block) < _BLOCK or not (cards or block.startswith(b"SIMPLE  =")):
                break
            lines = [block[first : first + 80].decode("latin-1") for first in range(0, _BLOCK, 80)]
            found = ((key, _VALUE.match(rest)) for key, rest in map(_key_and_rest, lines))
            cards |= {key: (value[1] or value[2] or "").strip() for key, value in found if value}
            if needed <= cards.keys() or any(line.rstrip() == "END" for line in lines):
                return cards if cards.get("INSTRUME") == HARPS.keyword else {}
        return {}
    finally:
        stream.seek(0)
