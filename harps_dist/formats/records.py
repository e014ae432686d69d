"""What a reader hands on: a spectrum with what its header says, or a refusal with its reason.

Tested in tests/unit/test_readers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import numpy as np

from harps_dist.errors import Interrupted
from harps_dist.intake import Fault, IntakeError, named
from harps_dist.text import sentence


@dataclass(frozen=True, eq=False)
class SpectrumRecord:
    """One spectrum as ESO or the DRS delivered it, and the header values the archive keeps.

    Numbers the header does not give are NaN, texts it does not give are ''.
    """

    dp_id: str  # ESO data-product id: 'ADP.2014-09-16T11:04:45.123', 'HARPS.2012-03-24T08:37:45.581_s1d_A'
    instrument: str  # its name in `spectra.instrument.INSTRUMENTS`
    product: str  # as `layouts` names it: 'ADP', 's1d' or 's1d, rewritten', 'S1D_FINAL_A', 'S1D_A', 'S1D_FLUXCAL_A'
    source: str  # file name
    object: str  # OBJECT, as typed by the observer
    target_name: str  # HIERARCH ESO OBS TARG NAME
    ra_deg: float  # J2000; the target's catalogue position where it is given, else the telescope's pointing
    dec_deg: float
    mjd_obs: float  # start of the exposure
    exptime_s: float
    snr: float  # median over the orders, per extracted pixel
    berv_kms: float  # barycentric Earth radial velocity
    airmass: float  # mean of start and end
    prog_id: str
    pipeline: str  # DRS version
    radvel_guess_kms: float  # HIERARCH ESO TEL TARG RADVEL, the observer's guess
    wave_aa: np.ndarray  # (n,) float64, air, barycentric, strictly increasing
    flux: np.ndarray  # (n,) float32, any scale; NaN where the file has no value that can be
    origin: str = ""  # ORIGIN, who made the file: 'ESO', 'TEST' of the DRS, 'SIMULATED' …
    simulated: str = ""  # what in the header says that no telescope took it, such as 'ORIGIN = SIMULATED'
    out_of_range: tuple[str, ...] = ()  # header values that cannot be, by their names in the archive; they are NaN
    sigma: np.ndarray | None = None  # (n,) float32, errors in the flux's unit, NaN where not known; None without any
    unit: str = ""  # of the flux, as the file writes it
    wild: float = 0.0  # share of pixels that are NaN because their value lies beyond all reason


class Reason(StrEnum):
    """Why a file was refused. The names are what counts, logs and quarantine lists show."""

    # the file
    UNREADABLE = "unreadable"
    NOT_FITS = "not_fits"
    TRUNCATED = "truncated"
    CHECKSUM = "checksum"
    TOO_LARGE = "too_large"
    # what it holds
    NO_SPECTRUM = "no_spectrum"
    WRONG_INSTRUMENT = "wrong_instrument"
    WRONG_FIBRE = "wrong_fibre"
    NOT_SCIENCE = "not_science"
    MISSING_COLUMN = "missing_column"
    MISSING_FIELD = "missing_field"
    LENGTH_MISMATCH = "length_mismatch"
    # wavelength
    WRONG_UNIT = "wrong_unit"
    VACUUM = "vacuum"
    WRONG_FRAME = "wrong_frame"
    NOT_INCREASING = "not_increasing"
    COVERAGE = "coverage"
    # flux
    NO_FINITE_FLUX = "no_finite_flux"
    ALL_ZERO = "all_zero"
    NEGATIVE = "negative"
    # the set
    DUPLICATE = "duplicate"
    # exposure-time-calculator output
    NOT_JSON = "not_json"
    MISSING_ORDER = "missing_order"
    ZERO_DISPERSION = "zero_dispersion"
    NO_SED = "no_sed"
    # any of them
    OUT_OF_RANGE = "out_of_range"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True)
class Refusal:
    """A file that was not taken in. detail: one sentence, what was expected against what was found.

    Of one that covers too little, grid: of what, by its name. span_aa: first and last wavelength with data [Å].
    """

    source: str
    reason: Reason
    detail: str
    span_aa: tuple[float, float] | None = field(default=None, compare=False)  # not in the list of an archive
    grid: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", sentence(self.detail))

    def __str__(self) -> str:
        return f"{self.source}: {self.reason} ({self.detail})"

    @classmethod
    def coverage(cls, source: str, share: float, grid: str, least: float, wave_aa: np.ndarray | None = None) -> Refusal:
        """A refusal of what covers too little.

        share, least: found and expected, of the grid's valid pixels. wave_aa: (n,) increasing wavelengths with data.
        """
        detail = f"coverage {100 * share:.1f} % of grid {grid}, expected {100 * least:.0f} %"
        span = None if wave_aa is None or not len(wave_aa) else (float(wave_aa[0]), float(wave_aa[-1]))
        return cls(source, Reason.COVERAGE, detail, span, grid)


class RefusedError(Exception):
    """Ends the reading of a file, whose name its reader knows."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def require(condition: object, reason: Reason, detail: str) -> None:
    """Raise RefusedError unless the condition holds."""
    if not condition:
        raise RefusedError(reason, detail)


Read = TypeVar("Read")
_REASONS: dict[Fault, Reason] = {
    "unreadable": Reason.UNREADABLE,
    "too_large": Reason.TOO_LARGE,
    "truncated": Reason.TRUNCATED,
    "checksum": Reason.CHECKSUM,
}


def refusing(source: str, foreign: Reason, read: Callable[[], Read | Refusal]) -> Read | Refusal:
    """What a reader of one file gives, or why not: whatever is wrong with a file ends that file alone.

    source: the file's name, printable. foreign: why a file of another kind is refused, or what is no file. A reader
    may raise RefusedError or IntakeError; any other exception is a fault of the reader, and one line of the quarantine
    all the same. Want of memory and requests to stop pass.
    """
    try:
        return read()
    except RefusedError as refused:
        return Refusal(source, refused.reason, refused.detail)
    except IntakeError as refused:
        return Refusal(source, _REASONS.get(refused.fault, foreign), str(refused))
    except (MemoryError, Interrupted):
        raise
    except Exception as error:
        return Refusal(source, Reason.UNEXPECTED, f"reading it failed: {named(error)}")
