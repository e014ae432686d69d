"""Interpolation between samples at any positions, the same in every bit on every machine.

Libraries' splines go through LAPACK, whose roundings follow the processor; here all is elementwise, in a fixed order.

Tested in tests/unit/test_exact.py.
"""

from __future__ import annotations

import numpy as np

_NEGLIGIBLE = 2.0**-60  # share of a neighbour in a slope


def cubic_spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of the cubic spline through samples, its ends not-a-knot, which go on beyond the samples.

    x: (n,) strictly increasing, n >= 4; y: (n,) or (n, column), any unit; at: (m,). Returns float64, (m,) or
    (m, column).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    y = np.ascontiguousarray(y.T)  # samples along the last axis, so that columns share the loops over them
    width = np.diff(x)
    rise = np.diff(y) / width
    slopes = _slopes(width, rise)
    bend = (slopes[..., :-1] + slopes[..., 1:] - 2 * rise) / width
    square, cube = (rise - slopes[..., :-1]) / width - bend, bend / width
    interval = np.searchsorted(x[1:-1], at, side="right")
    t = at - x[interval]
    start, slope, square, cube = (np.take(each, interval, axis=-1) for each in (y, slopes, square, cube))
    return (start + t * (slope + t * (square + t * cube))).T


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
    return _solved(lower, upper, 1.5 * samples)


def _slopes(width: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """Slopes of the spline at its samples, from widths (n - 1,) and mean slopes (…, n - 1) of the intervals."""
    before, after = width[:-1], width[1:]
    right = 3 * (after * rise[..., :-1] + before * rise[..., 1:])
    diagonal = 2 * (before + after)
    lower, upper = after.copy(), before.copy()
    ends = []  # what the outermost slopes are, besides a multiple of their neighbours
    for coupled, near, far in ((lower, 0, 1), (upper, -1, -2)):
        both, nearest, next_one = width[near] + width[far], rise[..., near], rise[..., far]
        known = ((width[near] + 2 * both) * width[far] * nearest + width[near] ** 2 * next_one) / both / width[far]
        share = both / width[far]
        right[..., near] -= coupled[near] * known
        diagonal[near] -= coupled[near] * share
        coupled[near] = 0
        ends.append((known, share))
    inner = _solved(lower / diagonal, upper / diagonal, right / diagonal)
    (first, of_second), (last, of_before) = ends
    first, last = first - of_second * inner[..., 0], last - of_before * inner[..., -1]
    return np.concatenate([first[..., None], inner, last[..., None]], axis=-1)


def _solved(lower: np.ndarray, upper: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a tridiagonal system (n,) with ones on its diagonal by cyclic reduction, for right sides (…, n).

    Each pass couples an unknown to others twice as far away, and about squares the share that these have in it.
    """
    reach = 1
    while reach < len(lower) and max(np.abs(lower).max(), np.abs(upper).max()) > _NEGLIGIBLE:
        back, ahead = slice(None, -reach), slice(reach, None)
        cross = lower[ahead] * upper[back]
        diagonal, reduced = np.ones_like(lower), right.copy()
        diagonal[ahead] -= cross
        diagonal[back] -= cross
        reduced[..., ahead] -= lower[ahead] * right[..., back]
        reduced[..., back] -= upper[back] * right[..., ahead]
        below, above = np.zeros_like(lower), np.zeros_like(upper)
        below[ahead], above[back] = -lower[ahead] * lower[back], -upper[back] * upper[ahead]
        lower, upper, right = below / diagonal, above / diagonal, reduced / diagonal
        reach *= 2
    return right
