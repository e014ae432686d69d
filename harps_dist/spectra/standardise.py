"""Division by the median, Eq. 2, over the pixels that carry data.

Tested in tests/unit/test_observation.py.
"""

from __future__ import annotations

import numpy as np

from harps_dist.errors import SpectrumError
from harps_dist.spectra.grid import Grid, fill_invalid

MINIMUM_COVERAGE = 0.98
WILD = 1e5  # medians of the flux; the sound genuine spectra reach 3.6e3, at their noisy blue end
BROKEN_SHARE = 1e-3  # of the pixels


def standardise(flux: np.ndarray, grid: Grid, minimum_coverage: float = MINIMUM_COVERAGE) -> tuple[np.ndarray, float]:
    """Divide a spectrum by the median of its valid pixels and fill what no pixel covers.

    flux: (grid.length,), any unit, NaN where the spectrum has no data. Returns the standardised spectrum,
    (grid.length,) float32 and finite everywhere, and the median. Missing pixels inside the valid range are
    bridged by straight lines, as are those beyond `WILD` medians. Raises SpectrumError where fewer than
    `minimum_coverage` of the valid pixels are finite, or where the median is not positive.
    """
    finite = np.isfinite(flux)
    usable = finite & grid.valid
    coverage = usable.sum() / grid.valid.sum()
    if coverage < minimum_coverage:
        raise SpectrumError(
            f"only {coverage:.1%} of the {grid.valid.sum()} valid pixels of grid {grid.name} carry data, "
            f"expected at least {minimum_coverage:.0%}. Use a narrower grid or leave the spectrum out."
        )
    median = float(np.median(flux[usable]))
    if not median > 0:
        raise SpectrumError(f"the median flux is {median:g}, expected a positive number. Leave the spectrum out.")
    usable &= ~(np.abs(flux) > WILD * median)  # of an archive from before these counted as missing
    pixel = np.arange(grid.length)
    bridged = flux.astype(np.float64)
    bridged[~usable] = np.interp(pixel[~usable], pixel[usable], flux[usable])
    return (fill_invalid(bridged, grid) / median).astype(np.float32), median


def without_wild(flux: np.ndarray, median: float) -> tuple[np.ndarray, int]:
    """The flux with NaN where it lies beyond `WILD` times its median, and how many pixels these are.

    flux: (n,), NaN where missing. No star and no cosmic hit is so bright: such a value is an overflow or a fault of the
    pipeline. It counts as missing, because one of 1e38 would outweigh all others in every sum, and a spline would carry
    it to its neighbours; and it is one pixel, for which a spectrum need not be lost. The limit is relative since flux
    scales differ by 1e20 between products. A spectrum with more than a thousandth of them is broken, see `is_broken`.
    """
    with np.errstate(invalid="ignore"):
        wild = np.abs(flux) > WILD * median
    count = int(np.count_nonzero(wild))
    return (np.where(wild, flux.dtype.type(np.nan), flux), count) if count else (flux, 0)


def is_broken(standardised: np.ndarray, grid: Grid) -> bool:
    """Whether a spectrum is numerically broken: over 0.1 % of its valid pixels beyond 100 times the median.

    Cosmic hits touch fewer pixels and emission lines stay lower. Some products of the HARPS pipeline diverged in
    its interpolation to +-1e20 while the median stayed sane; one of them outweighs all others in a loss.
    """
    return bool(np.mean(np.abs(standardised[grid.valid]) > 100) > BROKEN_SHARE)
