"""Interpolation between samples at any positions, the same in every bit on every machine.

Libraries' splines go through LAPACK, whose roundings follow the processor; here all is elementwise, in a fixed order.

Tested in tests/unit/test_exact.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

KEPT_SAMPLES = 2**20  # up to 180 MB; an ETC run and an SED have 600,000, 100 MB
_NEGLIGIBLE = 2.0**-60  # share of a neighbour in a slope
_kept: OrderedDict[tuple[int, float, float], _CubicSpline] = OrderedDict()


class _Pass(NamedTuple):
    """Cyclic reduction of a tridiagonal system, its coefficients (n,) below, above and on the diagonal."""

    reach: int  # how far away the unknowns are that are coupled before it
    lower: np.ndarray
    upper: np.ndarray
    diagonal: np.ndarray  # after it


class _CubicSpline:
    """What depends on the x (n,) of a cubic spline alone, most of the work; for one use, or for many if kept."""

    def __init__(self, x: np.ndarray):
        self.x = np.array(x, np.float64)
        self.width = np.diff(self.x)
        before, after = self.width[:-1], self.width[1:]
        self._diagonal = 2 * (before + after)
        lower, upper = after.copy(), before.copy()
        for coupled, near, far in ((lower, 0, 1), (upper, -1, -2)):
            self._diagonal[near] -= coupled[near] * self._share(near, far)
            coupled[near] = 0
        self._passes = _passes(lower / self._diagonal, upper / self._diagonal)

    def keep(self) -> None:
        """Keep what is made while it is used, 150 bytes a sample."""
        self._passes = list(self._passes)

    def through(self, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Values at positions (m,) of the splines through y (n,) or (n, column): float64, (m,) or (m, column)."""
        y = np.ascontiguousarray(np.asarray(y, np.float64).T)  # samples last, so that columns share the loops over them
        x, width = self.x, self.width
        rise = np.diff(y) / width
        slopes = self._slopes(rise)
        bend = (slopes[..., :-1] + slopes[..., 1:] - 2 * rise) / width
        square, cube = (rise - slopes[..., :-1]) / width - bend, bend / width
        interval = np.searchsorted(x[1:-1], at, side="right")
        t = at - x[interval]
        start, slope, square, cube = (np.take(each, interval, axis=-1) for each in (y, slopes, square, cube))
        return (start + t * (slope + t * (square + t * cube))).T

    def _slopes(self, rise: np.ndarray) -> np.ndarray:
        """Slopes at the samples, from the mean slopes (…, n - 1) of the intervals."""
        width = self.width
        before, after = width[:-1], width[1:]
        right = 3 * (after * rise[..., :-1] + before * rise[..., 1:])
        known = []  # what the outermost slopes are, besides a multiple of their neighbours
        for coupled, near, far in ((after, 0, 1), (before, -1, -2)):
            both, nearest, next_one = width[near] + width[far], rise[..., near], rise[..., far]
            slope = ((width[near] + 2 * both) * width[far] * nearest + width[near] ** 2 * next_one) / both / width[far]
            right[..., near] -= coupled[near] * slope
            known.append(slope)
        inner = _solved(self._passes, right / self._diagonal)
        first = known[0] - self._share(0, 1) * inner[..., 0]
        last = known[1] - self._share(-1, -2) * inner[..., -1]
        return np.concatenate([first[..., None], inner, last[..., None]], axis=-1)

    def _share(self, near: int, far: int) -> float:
        """The multiple of its neighbour's slope that an outermost slope holds, with the opposite sign."""
        return (self.width[near] + self.width[far]) / self.width[far]


def cubic_spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of the cubic spline through samples, its ends not-a-knot, which go on beyond the samples.

    x: (n,) strictly increasing, n >= 4; y: (n,) or (n, column), any unit; at: (m,). Returns float64, (m,) or
    (m, column).
    """
    return _CubicSpline(x).through(y, at)


def repeated_spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """What `cubic_spline` returns, to the bit, in less than half the time where the same x came before in this process.

    For spectra by the thousand that share their wavelengths. What depends on these is kept, of those used last.
    """
    key = len(x), float(x[0]), float(x[-1])
    spline = _kept.pop(key, None)
    if spline is None or not np.array_equal(spline.x, x):
        spline = _CubicSpline(x)
        spline.keep()
    _kept[key] = spline
    while len(_kept) > 1 and sum(each.x.size for each in _kept.values()) > KEPT_SAMPLES:
        _kept.popitem(last=False)
    return spline.through(y, at)


def linear(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Straight lines between samples (n,) at increasing x, held beyond the ends; at: (m,). Returns float64 (m,)."""
    at = np.clip(at, x[0], x[-1])
    right = np.searchsorted(x, at).clip(1, len(x) - 1)
    left = right - 1
    share = (at - x[left]) / (x[right] - x[left])
    return y[left] * (1 - share) + y[right] * share


def bspline_coefficients(samples: np.ndarray) -> np.ndarray:
    """Coefficients (n,) of the cubic B-spline through samples (n,) one apart, its ends mirrored; as in `doppler`."""
    quarter = np.full(len(samples), 0.25)
    lower, upper = quarter.copy(), quarter
    lower[0], lower[-1], upper[0], upper[-1] = 0, 0.5, 0.5, 0
    return _solved(_passes(lower, upper), 1.5 * samples)


def _passes(lower: np.ndarray, upper: np.ndarray) -> Iterable[_Pass]:
    """The passes of cyclic reduction that solve a tridiagonal system (n,) with ones on its diagonal.

    Each couples an unknown to others twice as far away, and about squares the share that these have in it.
    """
    reach = 1
    while reach < len(lower) and max(np.abs(lower).max(), np.abs(upper).max()) > _NEGLIGIBLE:
        back, ahead = slice(None, -reach), slice(reach, None)
        cross = lower[ahead] * upper[back]
        diagonal = np.ones_like(lower)
        diagonal[ahead] -= cross
        diagonal[back] -= cross
        yield _Pass(reach, lower, upper, diagonal)
        below, above = np.zeros_like(lower), np.zeros_like(upper)
        below[ahead], above[back] = -lower[ahead] * lower[back], -upper[back] * upper[ahead]
        lower, upper = below / diagonal, above / diagonal
        reach *= 2


def _solved(passes: Iterable[_Pass], right: np.ndarray) -> np.ndarray:
    """The unknowns of the system of those passes, for right sides (…, n)."""
    for reach, lower, upper, diagonal in passes:
        back, ahead = slice(None, -reach), slice(reach, None)
        reduced = right.copy()
        reduced[..., ahead] -= lower[ahead] * right[..., back]
        reduced[..., back] -= upper[back] * right[..., ahead]
        reduced /= diagonal
        right = reduced
    return right
