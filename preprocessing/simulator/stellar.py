"""What a simulated star shows that its labels do not tell: broadening, line-list errors, continuum shape.

As `harps_dist.spectra.nuisance`, which draws them anew for every step of a training on any device; here once, for
files that are the same in every bit on every machine.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

import numpy as np

from harps_dist.spectra.exact import exp, gaussian_blur, log
from harps_dist.spectra.spline import linear


def stellar_flux(flux: np.ndarray, sigma_px: float, line_error: np.ndarray, continuum: np.ndarray) -> np.ndarray:
    """Flux (pixel,) of a star, float64, from that of its labels.

    sigma_px: of its rotation and macroturbulence together, a Gaussian. line_error: (knot,) relative errors of the
    lines' logarithmic depth; continuum: (knot,) relative changes of the flux; both evenly spread over the spectrum.
    """
    flux = np.asarray(flux, np.float64)
    depth = log(flux / pseudo_continuum(flux))
    flux = gaussian_blur(flux * exp(depth * stretched(line_error, flux.size)), sigma_px)
    return flux * (1 + stretched(continuum, flux.size))


def pseudo_continuum(flux: np.ndarray, block: int = 100, reach: int = 4) -> np.ndarray:
    """(pixel,) upper envelope: maxima of blocks of pixels, over `reach` blocks either side, smoothed."""
    width = 2 * reach + 1
    upper = np.maximum.reduceat(flux, np.arange(0, flux.size, block))
    upper = np.lib.stride_tricks.sliding_window_view(np.pad(upper, reach, mode="edge"), width).max(axis=1)
    held = np.pad(upper, reach, mode="edge")
    upper = np.sum([held[k : k + upper.size] for k in range(width)], axis=0) / width  # row by row
    middle = (np.arange(flux.size) + 0.5) * (upper.size / flux.size) - 0.5
    return linear(np.arange(upper.size), upper, middle)


def stretched(knots: np.ndarray, pixels: int) -> np.ndarray:
    """(pixels,) straight lines between knots (knot,) that are evenly spread over a spectrum."""
    return linear(np.arange(knots.size), knots, np.arange(pixels) * ((knots.size - 1) / (pixels - 1)))
