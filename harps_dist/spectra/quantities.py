"""What numbers from headers, tables and settings may be: outside these ranges they are errors, not measurements.

Tested in tests/unit/test_intake.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from harps_dist.spectra.labels import LABELS

C_KMS = 299_792.458  # speed of light


class Quantity(NamedTuple):
    """unit, and the least and largest value that there can be."""

    unit: str
    low: float
    high: float


QUANTITIES = {label.name: Quantity(label.unit, *label.physical) for label in LABELS} | {
    # of an exposure
    "mjd": Quantity("d", 40_000.0, 90_000.0),  # 1968 to 2105
    "exptime": Quantity("s", 1e-3, 1e6),
    "snr": Quantity("", 0.0, 1e5),
    "ra": Quantity("deg", 0.0, 360.0),
    "dec": Quantity("deg", -90.0, 90.0),
    "radvel_guess": Quantity("km/s", -1000.0, 1000.0),
    # of a spectrum's samples
    "wave": Quantity("Å", 3000.0, 11000.0),  # nm, micrometre, metre and log-wavelength all lie far outside
    "wave_step": Quantity("Å", 1e-3, 0.5),  # the median one; HARPS 0.01
    "median_flux": Quantity("any", 1e-25, 1e20),  # in float32 its square and its sum over a spectrum stay finite
    # of stars' models
    "sed_wave": Quantity("Å", 100.0, 1e6),
    "vmic": Quantity("km/s", 0.0, 50.0),
    # of runs of the exposure time calculator
    "mag": Quantity("mag", -30.0, 40.0),
    "order": Quantity("", 1, 300),
    "dit": Quantity("s", 1e-6, 1e6),
    "ndit": Quantity("", 1, 1e6),
    "nspat": Quantity("px", 1e-3, 1e3),
    "nspec": Quantity("px", 1e-3, 1e3),
    "dark": Quantity("e/s/px", 0.0, 1e6),
    "ron2": Quantity("e²/px", 0.0, 1e6),
    "target": Quantity("e/px", 0.0, 1e15),
    "sky": Quantity("e/px", 0.0, 1e15),
    "blaze": Quantity("", 0.0, 10.0),
    "dispersion_m_per_px": Quantity("m/px", 1e-15, 1e-9),
    "response": Quantity("any", 1e-30, 1e30),  # in float32, and so that its logarithm is finite
    # of what is asked to be drawn
    "unknown": Quantity("standard deviations", -1e3, 1e3),
    "seed": Quantity("", -(2.0**62), 2.0**62),
}


def number(value: Any) -> float:
    """A number as a float: NaN for what is none (texts and truth values are none), infinite where it is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def in_range(name: str, value: float) -> bool:
    """Whether a value is one that the quantity can have; NaN is not."""
    return QUANTITIES[name].low <= value <= QUANTITIES[name].high


def in_range_each(name: str, values: np.ndarray) -> np.ndarray:
    """Which values of an array a quantity can have; bool, of the array's shape."""
    with np.errstate(invalid="ignore"):
        return (values >= QUANTITIES[name].low) & (values <= QUANTITIES[name].high)


def expected(name: str) -> str:
    """'1000..100000 K', for messages."""
    unit, low, high = QUANTITIES[name]
    return f"{low:g}..{high:g} {unit}".rstrip()
