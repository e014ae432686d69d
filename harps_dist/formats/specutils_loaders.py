"""HARPS spectra as specutils objects: `Spectrum.read(FILE)` for ESO Phase 3 (ADP) and DRS s1d, plain or gzipped.

Importing this module registers the loaders; once the package is installed, importing specutils does it
(`harps_dist.formats.specutils_hook`). What the files say is kept: flux in ADU per pixel of 0.01 Å, wavelengths in
Angstrom, in air, in the barycentric frame, with the star's radial velocity left in. specutils has no place for medium
and frame: they stand in `meta` with the header values. The radial velocity of the object stays unset, for a header
knows but the observer's guess.

Tested in tests/unit/test_specutils.py.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from specutils.io.registers import data_loader

from harps_dist.errors import ConfigError, SpectrumError
from harps_dist.formats.belonging import is_fibre_b
from harps_dist.formats.readers import read_stream
from harps_dist.formats.records import Refusal, SpectrumRecord
from harps_dist.intake import IntakeError, open_regular
from harps_dist.spectra.instrument import instrument_of, named_instrument
from harps_dist.spectra.quantities import in_range
from harps_dist.text import printable

if TYPE_CHECKING:
    from specutils import Spectrum

ADP, S1D = "HARPS phase 3", "HARPS s1d"  # format names, as in Spectrum.read(FILE, format=ADP)
EXTENSIONS = ["fits", "fit"]
PRIORITY = 20  # before what reads any table (6) or any image with a linear axis (5)

_BLOCK = 2880  # bytes of a FITS block, of 36 cards
_MOST_BLOCKS = 64
_VALUE = re.compile(r"= *(?:'((?:[^']|'')*)'|([^/ ]+))")

Uncertainty = Literal["none", "photon"]


def identify_adp(origin: str, path: Any, fileobj: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is an ESO Phase 3 spectrum of HARPS: a primary HDU without data that says so."""
    cards = _leading_cards(origin, path, fileobj, {"INSTRUME", "NAXIS", "PRODCATG"})
    return cards.get("NAXIS") == "0" and cards.get("PRODCATG") == "SCIENCE.SPECTRUM"


def identify_s1d(origin: str, path: Any, fileobj: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is a DRS s1d of HARPS, fibre A: one axis of wavelengths. Fibre B and bisectors are none."""
    cards = _leading_cards(origin, path, fileobj, {"INSTRUME", "NAXIS", "CRVAL1"})
    try:
        begins_aa = float(cards.get("CRVAL1", "nan"))
    except ValueError:
        return False
    return cards.get("NAXIS") == "1" and in_range("wave", begins_aa) and not is_fibre_b(_name(path or fileobj))


@data_loader(ADP, identifier=identify_adp, extensions=EXTENSIONS, priority=PRIORITY, force=True)
def read_adp(file: Any, uncertainty: Uncertainty = "none") -> Spectrum:
    """An ESO Phase 3 spectrum of HARPS; see `as_spectrum`. Raises SpectrumError with the reason where it is refused."""
    return _read(file, uncertainty)


@data_loader(S1D, identifier=identify_s1d, extensions=EXTENSIONS, priority=PRIORITY, force=True)
def read_s1d(file: Any, uncertainty: Uncertainty = "none") -> Spectrum:
    """A DRS s1d of HARPS; see `as_spectrum`. Raises SpectrumError with the reason where it is refused."""
    return _read(file, uncertainty)


def as_spectrum(record: SpectrumRecord, uncertainty: Uncertainty = "none") -> Spectrum:
    """A specutils Spectrum of what a reader delivered.

    Pixels without data are masked: those that are not finite, and zeros, which the pipeline fills the detector gap
    with. uncertainty: "none", as neither product has one (the ERR column of HARPS is all NaN), or "photon" for a
    standard deviation estimated from the spectrum's own scatter, `harps_dist.spectra.noise.photon_sigma`.
    """
    from astropy import units
    from astropy.nddata import StdDevUncertainty
    from specutils import Spectrum

    if uncertainty not in ("none", "photon"):
        raise ConfigError(f"expected uncertainty 'none' or 'photon', got {uncertainty!r}.")
    missing = ~np.isfinite(record.flux) | (record.flux == 0)
    sigma = StdDevUncertainty(_photon_sigma(record.flux, missing) * units.adu) if uncertainty == "photon" else None
    return Spectrum(
        flux=record.flux * units.adu,
        spectral_axis=record.wave_aa * units.AA,
        uncertainty=sigma,
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


def _photon_sigma(flux: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """(n,) float64 in the unit of the flux, NaN where it is missing."""
    from harps_dist.spectra.noise import photon_sigma

    sigma, median = np.full(len(flux), np.nan), float(np.median(flux[~missing]))
    sigma[~missing] = photon_sigma(flux[~missing] / median) * median
    return sigma


def _name(file: Any) -> str:
    """The file name of a path or of an open file, '' where it has none."""
    name = file if isinstance(file, str | Path) else getattr(file, "name", "")
    return Path(name).name if isinstance(name, str | Path) else ""


@contextmanager
def _opened(file: Any) -> Iterator[IO[bytes]]:
    """The binary stream of a path or of an open file, which is left open."""
    if hasattr(file, "read"):
        file.seek(0)
        yield file
    else:
        with open_regular(Path(file)) as stream:
            yield stream


def _leading_cards(origin: str, path: Any, fileobj: Any, needed: set[str]) -> dict[str, str]:
    """The first cards of a HARPS file that is to be read, so far as needed; none of other files. It reads some
    kilobytes."""
    if origin != "read" or (fileobj is None and path is None):
        return {}
    try:
        with _opened(path if fileobj is None else fileobj) as stream:
            return _cards_of(stream, needed)
    except (IntakeError, OSError, EOFError, zlib.error):  # damaged: not known to be ours
        return {}


def _cards_of(stream: IO[bytes], needed: set[str]) -> dict[str, str]:
    gzipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    source = gzip.GzipFile(fileobj=stream) if gzipped else stream
    try:
        cards: dict[str, str] = {}
        for _ in range(_MOST_BLOCKS):
            block = source.read(_BLOCK)
            if len(block) < _BLOCK or not (cards or block.startswith(b"SIMPLE  =")):
                break
            lines = [block[first : first + 80].decode("latin-1") for first in range(0, _BLOCK, 80)]
            found = ((line[:8].rstrip(), _VALUE.match(line[8:])) for line in lines)
            cards |= {key: (value[1] or value[2] or "").strip() for key, value in found if value}
            if needed <= cards.keys() or any(line.rstrip() == "END" for line in lines):
                return cards if instrument_of(cards.get("INSTRUME", "")) else {}
        return {}
    finally:
        stream.seek(0)
