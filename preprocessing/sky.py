"""Where stars stand, and where they stood: positions that move with proper motion from a catalogue's epoch.

Tested in tests/unit/test_sky.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

FASTEST_MAS = 10_400.0  # a year, Barnard's star
NAMES_SLOP_ARCSEC = 120.0  # by which the coordinates of a header may be off and still be of the star that it names
SPAN_YEARS = 30.0  # taken where a header has no date
_PLACE = re.compile(r"J\d{6}[+-]\d{6}")
_MAS = np.radians(1 / 3.6e6)


def unit_vectors(ra_deg: Any, dec_deg: Any) -> np.ndarray:
    """(..., 3) for (...,) degrees."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def year_of(mjd: float) -> float:
    """Julian year of a modified Julian date; NaN for NaN."""
    return 2000.0 + (mjd - 51544.5) / 365.25


def is_place(target: str) -> bool:
    """Whether the id of a star is but its place, as 'J200044+224240'."""
    return _PLACE.fullmatch(target) is not None


class Sky:
    """The stars of a catalogue that have a position.

    ra_deg, dec_deg: (row,), NaN where missing. pm_ra (times cos dec), pm_dec: (row,) mas a year, NaN where not known.
    epoch: (row,) Julian year of the position, 2000 where it is NaN.
    """

    def __init__(
        self, ra_deg: np.ndarray, dec_deg: np.ndarray, pm_ra: np.ndarray, pm_dec: np.ndarray, epoch: np.ndarray
    ):
        from scipy.spatial import cKDTree

        self._at = unit_vectors(ra_deg, dec_deg)
        possible = np.hypot(pm_ra, pm_dec) <= 1.1 * FASTEST_MAS  # NaN and what cannot be are not
        self._known = possible
        ra, dec = np.radians(ra_deg), np.radians(dec_deg)
        east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
        north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
        motion = pm_ra[:, None] * east + pm_dec[:, None] * north
        self._motion = np.where(possible[:, None], motion * _MAS, 0.0)  # a year
        self._epoch = np.where((epoch > 1800) & (epoch < 2200), epoch, 2000.0)
        self._placed = np.flatnonzero(np.isfinite(self._at).all(axis=1))
        self._fastest = float(np.linalg.norm(self._motion[self._placed], axis=1).max(initial=0.0))
        self._epochs = np.unique(self._epoch[self._placed])
        self._tree = cKDTree(self._at[self._placed])
        self._grain_arcsec = 3600 * np.sqrt(0.5) * _grain(np.concatenate([ra_deg, dec_deg]))

    def nearest(self, ra_deg: float, dec_deg: float, year: float, radius_arcsec: float) -> int | None:
        """The row of the star nearest to a place within the radius; None where there is none."""
        if not (len(self._placed) and np.isfinite([ra_deg, dec_deg]).all()):
            return None
        place = unit_vectors(ra_deg, dec_deg)
        radius = _chord(radius_arcsec)
        years = np.abs(np.array([2000.0, year if np.isfinite(year) else 2000.0])[:, None] - self._epochs).max()
        near = self._placed[sorted(self._tree.query_ball_point(place, radius + self._fastest * years))]
        if not len(near):
            return None
        distances = self._distances(near, place, year)
        best = int(np.argmin(distances))
        return int(near[best]) if distances[best] <= radius else None

    def too_far(self, row: int, ra_deg: float, dec_deg: float, year: float) -> float | None:
        """How far [deg] the star of a row is from a place, where it cannot have moved there; None where it can, or
        where either place is not known."""
        place = unit_vectors(ra_deg, dec_deg)
        if not (np.isfinite(place).all() and np.isfinite(self._at[row]).all()):
            return None
        distance = float(self._distances(np.array([row]), place, year)[0])
        moved = 0.0
        if not self._known[row]:
            years = (abs(year - self._epoch[row]), abs(2000.0 - self._epoch[row])) if np.isfinite(year) else ()
            moved = FASTEST_MAS / 1000 * max(years, default=SPAN_YEARS)
        apart = float(np.degrees(2 * np.arcsin(min(distance / 2, 1.0))))
        return apart if apart * 3600 > NAMES_SLOP_ARCSEC + self._grain_arcsec + moved else None

    def _distances(self, rows: np.ndarray, place: np.ndarray, year: float) -> np.ndarray:
        """(n,) chords from a place to where stars were in that year, in 2000, or at their catalogue's epoch."""
        epochs = self._epoch[rows]
        dates = [epochs, np.full(len(rows), 2000.0)] + ([np.full(len(rows), year)] if np.isfinite(year) else [])
        found = []
        for date in dates:
            moved = self._at[rows] + self._motion[rows] * (date - epochs)[:, None]
            found.append(np.linalg.norm(moved / np.linalg.norm(moved, axis=1, keepdims=True) - place, axis=1))
        return np.min(found, axis=0)


def _grain(degrees: np.ndarray) -> float:
    """The last decimal [deg] of a catalogue's coordinates, by half of which they are off; 0.001 where it is less."""
    known = degrees[np.isfinite(degrees)]
    grains = (1.0, 0.1, 0.01)
    return next((grain for grain in grains if np.allclose(known / grain, np.round(known / grain), atol=1e-6)), 0.001)


def _chord(arcsec: float) -> float:
    return float(2.0 * np.sin(np.radians(arcsec / 3600.0) / 2.0))
