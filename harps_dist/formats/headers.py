"""What a HARPS header says: texts cleaned, numbers within what they can be, everything else missing.

Tested in tests/unit/test_hostile_fits.py.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from harps_dist.spectra.quantities import in_range, number
from harps_dist.text import cleaned

LONGEST_TEXT = 100  # characters; a FITS card holds 68
NO_VELOCITY = -99999  # and less: ESO's word for an unknown radial velocity

_SIMULATED = re.compile("simul|synth|mock", re.IGNORECASE)  # in ORIGIN
_SIGNAL_TO_NOISE = re.compile(r"(?:ESO|TNG) (?:DRS SPE EXT SN\d+|QC ORDER\d+ SNR)")  # old and newer pipeline


class Header:
    """An astropy header. out_of_range: numbers that cannot be and count as missing, by their quantities' names.

    HARPS-N writes TNG where HARPS has ESO: a card that is asked for as 'ESO …' may stand there as 'TNG …'.
    """

    def __init__(self, cards: Any):
        self._cards = cards
        self._wrong: dict[str, None] = {}

    @property
    def out_of_range(self) -> tuple[str, ...]:
        return tuple(self._wrong)

    def text(self, *keys: str) -> str:
        """The first text among the cards that is not blank, cleaned, else ''."""
        for key in keys:
            value = self._card(key)
            if isinstance(value, str) and value.strip():
                return cleaned(value.strip(), LONGEST_TEXT)
        return ""

    def number(self, *keys: str) -> float:
        """The first number among the cards, which may be infinite, else NaN."""
        return next((value for key in keys if not math.isnan(value := number(self._card(key)))), math.nan)

    def quantity(self, name: str, *keys: str) -> float:
        """The first value among the cards that the quantity can have, else NaN."""
        return self.checked(name, [self.number(key) for key in keys])

    def checked(self, name: str, values: list[float]) -> float:
        """The first of the values that the quantity can have, else NaN; it is noted where there are others."""
        for value in values:
            if in_range(name, value):
                return value
        if not all(map(math.isnan, values)):
            self._wrong[name] = None
        return math.nan

    @property
    def simulated(self) -> str:
        """What says that no telescope took the spectrum, '' where nothing does.

        ORIGIN, the software that made it, or the cards of simulated spectra. ORIGIN is 'ESO' or, in files of the DRS,
        'TEST'; ESO INS SWSIM and its kin are in genuine files too.
        """
        origin, software = self.text("ORIGIN"), self.text("PROCSOFT")
        if _SIMULATED.search(origin):
            return f"ORIGIN = {origin}"
        if software.lower().startswith("harps_dist"):
            return f"PROCSOFT = {software}"
        return next((f"HIERARCH {key}" for key in self._cards if key.startswith("SIM ")), "")

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio, the median over the orders."""
        whole = self.number("SNR")
        if math.isnan(whole):
            orders = [self.number(key) for key in self._cards if _SIGNAL_TO_NOISE.fullmatch(key)]
            known = [value for value in orders if not math.isnan(value)]
            whole = float(np.median(known)) if known else math.nan
        return self.checked("snr", [whole])

    @property
    def airmass(self) -> float:
        """Mean of start and end, or the one of them that can be."""
        ends = [self.number(f"ESO TEL AIRM {end}") for end in ("START", "END")]
        good = [value for value in ends if in_range("airmass", value)]
        mean = [float(np.mean(good))] if good else []
        return self.checked("airmass", [*mean, self.number("AIRMASS"), *ends])

    @property
    def radvel_guess(self) -> float:
        """The observer's guess of the radial velocity [km/s]."""
        guess = self.number("ESO TEL TARG RADVEL", "ESO OCS OBJ RV")
        return self.checked("radvel_guess", [math.nan if guess <= NO_VELOCITY else guess])

    def has_prefix(self, prefix: str) -> bool:
        """Whether any card's key begins so."""
        return any(key.startswith(prefix) for key in self._cards)

    @property
    def position(self) -> tuple[float, float]:
        """J2000 right ascension and declination [deg] of the target the observer asked for, else the pointing's.

        The pointing is 6-51 arcsec off that in the genuine files (proper motion, pointing model), too far for a
        cross-match; a target entry more than 0.1 deg from it, such as a template's leftover, is not trusted. Files of
        the TNG name the unit of a pointing in its key; without one in degrees their target is not trusted either.
        """
        of_tng = self.has_prefix("TNG ")
        names = ("RA-DEG", "DEC-DEG") if of_tng else ("RA", "DEC")
        pointing = self.quantity("ra", names[0]), self.quantity("dec", names[1])
        if of_tng and not np.isfinite(pointing).all():
            return pointing
        alpha, delta = (_unpacked(self.number(f"ESO TEL TARG {axis}")) for axis in ("ALPHA", "DELTA"))
        target = 15.0 * alpha, delta
        equinox = self.number("ESO TEL TARG EQUINOX")
        known = in_range("ra", target[0]) and in_range("dec", target[1])
        if not known or not (math.isnan(equinox) or equinox == 2000.0):
            return pointing
        if np.isfinite(pointing).all():
            east = (target[0] - pointing[0] + 180.0) % 360.0 - 180.0
            if np.hypot(east * np.cos(np.radians(target[1])), target[1] - pointing[1]) > 0.1:
                return pointing
        return target

    def _card(self, key: str) -> Any:
        try:
            found = self._cards.get(key)
            return self._cards.get(f"TNG {key[4:]}") if found is None and key.startswith("ESO ") else found
        except Exception:  # a card astropy cannot parse, such as `KEY = NaN`, counts as missing
            return None


def _unpacked(packed: float) -> float:
    """ESO's packed sexagesimal: -74320.2 is -7 deg 43 min 20.2 s. NaN where minutes or seconds reach 60."""
    if not math.isfinite(packed):
        return math.nan
    whole, rest = divmod(abs(packed), 10000.0)
    minutes, seconds = divmod(rest, 100.0)
    if not (minutes < 60 and seconds < 60):
        return math.nan
    return float(np.copysign(whole + minutes / 60 + seconds / 3600, packed))
