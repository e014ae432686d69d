"""Wavelengths in air and in vacuum. HARPS spectra, SEDs and this package's grids are in air.

Mixing the two up is an error of 83-85 km/s over the HARPS range.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

import numpy as np


def refractive_index(vacuum_aa: np.ndarray) -> np.ndarray:
    """Refractive index of standard air (15 °C, 1013.25 hPa) at vacuum wavelengths [Å].

    Source: Birch & Downs 1994, as in the VALD documentation; good to a few 1e-9 in the optical.
    """
    s2 = (1e4 / np.asarray(vacuum_aa, np.float64)) ** 2
    return 1 + 8.34254e-5 + 0.02406147 / (130 - s2) + 1.5998e-4 / (38.9 - s2)


def vacuum_to_air(vacuum_aa: np.ndarray) -> np.ndarray:
    """Air wavelengths [Å] of vacuum wavelengths [Å], any shape, float64."""
    return np.asarray(vacuum_aa, np.float64) / refractive_index(vacuum_aa)


def air_to_vacuum(air_aa: np.ndarray) -> np.ndarray:
    """Vacuum wavelengths [Å] of air wavelengths [Å], any shape, float64; undoes `vacuum_to_air` to 1e-12."""
    air_aa = np.asarray(air_aa, np.float64)
    vacuum_aa = air_aa
    for _ in range(3):  # the index hardly varies: each step gains five digits
        vacuum_aa = air_aa * refractive_index(vacuum_aa)
    return vacuum_aa
