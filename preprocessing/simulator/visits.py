"""Simulated stars of the demo, and the exposures taken of them.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Star:
    """What is true of a star, and the names observers use for it."""

    tic: int
    hd: int
    ra_deg: float
    dec_deg: float
    teff_k: float
    logg: float
    mh: float
    rv_kms: float
    known: frozenset[str]  # labels the catalogue has


@dataclass(frozen=True)
class Visit:
    """The circumstances of one exposure."""

    star: Star
    dp_id: str
    object: str
    start: datetime
    berv_kms: float
    airmass: float
    pwv_mm: float
    snr: float  # per extracted pixel, median
    exptime_s: float
    radvel_guess_kms: float  # -99999 for none
