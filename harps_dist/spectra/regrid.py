"""From any wavelength sampling onto the lattice.

Tested in tests/unit/test_doppler.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harps_dist.spectra.grid import Grid
from harps_dist.spectra.spline import cubic_spline

Spline = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_ON_LATTICE = 1e-4  # pixels, 0.05 m/s: nearer than this a sample is copied, not resampled
_GUARD = 16  # samples kept either side of the grid, so that the spline's ends lie outside it


def regrid(wave_aa: np.ndarray, flux: np.ndarray, grid: Grid) -> np.ndarray:
    """Bring a spectrum onto the grid: copied bit by bit where it lies on the lattice, else by cubic spline.

    wave_aa: (sample,) strictly increasing air wavelengths [Å], even or uneven; flux: (sample,) any unit per
    wavelength, NaN where missing. Returns (grid.length,) of the flux's dtype, NaN outside the samples and
    next to missing ones.
    """
    regridded = np.full(grid.length, np.nan, flux.dtype)
    pixel, values = regrid_covered(wave_aa, flux, grid)
    regridded[pixel] = values
    return regridded


def regrid_covered(
    wave_aa: np.ndarray, flux: np.ndarray, grid: Grid, spline: Spline = cubic_spline
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that spectra cover, (pixel,) increasing, and their flux there, (…, pixel), as `regrid` has it.

    For spectra that are much shorter than the grid, and several on the same wavelengths at once: flux (…, sample). A
    sample that is missing in one of them is missing in all. spline: `repeated_spline` where many come on the same
    wavelengths.
    """
    position = (wave_aa - grid.instrument.origin_aa) / grid.step_aa - grid.start
    keep = slice(*np.searchsorted(position, [-_GUARD, grid.length + _GUARD]))
    position, flux = position[keep], flux[..., keep]
    nothing = np.empty(0, np.int64), flux[..., :0]
    if not len(position):
        return nothing
    nearest = np.rint(position).astype(np.int64)
    if np.abs(position - nearest).max() < _ON_LATTICE:
        inside = (nearest >= 0) & (nearest < grid.length)
        return nearest[inside], flux[..., inside]
    finite = np.isfinite(flux).all(axis=tuple(range(flux.ndim - 1)))
    if finite.sum() < 4:
        return nothing
    covered = np.arange(max(0, np.ceil(position[0])), min(grid.length, np.floor(position[-1]) + 1)).astype(np.int64)
    if not finite.all():
        right = np.searchsorted(position, covered).clip(1, len(position) - 1)
        covered = covered[finite[right] & finite[right - 1]]
        position, flux = position[finite], flux[..., finite]
    return covered, spline(position, flux.T, covered).T.astype(flux.dtype, copy=False)
