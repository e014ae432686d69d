"""Numbers of others in the units of this software: what a mask hides is missing, and no unit is passed over.

Tested in tests/unit/test_units.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from harps_dist.errors import ConfigError

_SPELT = {  # units as people write them in headers of columns, where astropy knows another spelling
    "degrees": "deg", "degree": "deg", "d:m:s": "", "h:m:s": "", "kms": "km/s", "km/sec": "km/s", "kms-1": "km/s",
    "kelvin": "K", "hours": "hourangle", "hour": "hourangle", "none": "", "-": "", "---": "",
}  # fmt: skip
_LOGARITHM = re.compile(r"(?:log(?:10)?|dex)\s*[(\[]|\[.*\]|dex|cgs|cm\W", re.IGNORECASE)  # of a label in dex
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")


class UnitError(ConfigError):
    """A unit that is none of the quantity's."""


def unit_named(text: str) -> Any:
    """An astropy unit of any common spelling, VizieR's among them; None for no unit, unrecognised where unknown."""
    from astropy import units

    text = text.strip().strip("\"'").strip()
    text = _SPELT.get(text.lower(), text)
    if not text:
        return None
    for form in (None, "cds"):
        unit = units.Unit(text, format=form, parse_strict="silent")
        if not isinstance(unit, units.UnrecognizedUnit):
            return unit
    return units.Unit(text, parse_strict="silent")


def in_unit(values: np.ndarray, unit: Any, wanted: str, name: str = "it") -> np.ndarray:
    """Values of any shape, converted from their unit, an astropy one or None, to the wanted one.

    wanted: 'dex' for logarithms of cgs units, '' for numbers that have no unit. name: of the quantity, for messages.
    Raises UnitError where the unit is not the quantity's.
    """
    from astropy import units

    if unit is None or unit == units.dimensionless_unscaled:
        return values
    if isinstance(unit, str | units.UnrecognizedUnit):
        unit = unit_named(str(unit))
    if unit is None:
        return values
    if wanted == "dex":
        if isinstance(unit, units.DexUnit) and unit.is_equivalent(units.dex(units.cm / units.s**2)):
            return unit.to(units.dex(units.cm / units.s**2), values)
        if _LOGARITHM.match(str(unit)):
            return values
    elif wanted == "deg" and name.startswith("ra") and unit == units.hour:  # of right ascension, not of time
        return values * 15.0
    elif wanted and not isinstance(unit, units.UnrecognizedUnit):
        try:
            return unit.to(wanted, values, units.spectral() if wanted == "Angstrom" else [])
        except units.UnitConversionError:
            pass
    elif not wanted and str(unit) in ("adu", "electron", "pix", "ct"):
        return values
    raise UnitError(f"{name} is in {unit}, expected {wanted or 'no unit'}. Convert it.")


def plain(values: Any, wanted: str | None = None, name: str = "it") -> np.ndarray:
    """An array of numbers in memory as numpy has it: masked ones are NaN, and a Quantity is in the wanted unit.

    values: number, list, array, masked array, column, Quantity or masked Quantity. wanted: as for `in_unit`; None: in
    its own unit. Floats keep their type, other numbers become float64. Raises UnitError.
    """
    hidden, unit = getattr(values, "mask", None), getattr(values, "unit", None)
    found = np.asarray(np.ma.getdata(getattr(values, "unmasked", values)))
    found = found if found.dtype.kind == "f" else found.astype(np.float64)
    if hidden is not None and np.any(hidden):
        found = np.where(hidden, found.dtype.type(np.nan), found)
    return found if wanted is None or unit is None else in_unit(found, unit, wanted, name)


def number_of(text: str) -> float:
    """A number as people write it, with a point or a decimal comma. Raises ValueError where it is none."""
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    return float(text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text)
