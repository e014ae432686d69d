"""The way of the paper's public code, written to its description, as what ours is measured against.

A simulated sample is nine arrays: the SED, and of the even and of the odd orders throughput, blaze times dispersion,
sky and read-out noise. Each time it is seen, NumPy shifts the SED linearly, makes both orders' flux and variance,
combines them, draws the noise and divides by the median. A real sample is its flux.

Tested in tests/unit/test_data_speed.py.
"""

from __future__ import annotations

import numpy as np

from harps_dist.data.reader import Release
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import Grid, fill_invalid
from harps_dist.spectra.observation import combine_orders

ORDERS = 72
OVERLAP = 0.3  # of an order that its neighbour covers too


def nine_arrays(release: Release, row: int) -> np.ndarray:
    """(9, pixel) float32 of a simulated sample: SED, then T, h, B and n, of even and of odd orders each.

    Orders cover the grid as HARPS' do, NaN outside; where two overlap each has twice the variance, so that both
    together are the response that the release stores.
    """
    inner = release.grid.within(release.source_grid)
    keys = release.index["key"].tolist()
    log_mean, log_ratio, log_floor = release.array(keys.index(release.index["response"][row])).astype(np.float64)[
        :, inner
    ]
    mean, ratio, floor = np.exp(log_mean), np.exp(log_ratio), np.exp(log_floor)
    width = release.grid.length / ORDERS
    within = (np.arange(release.grid.length) / width) % 2
    covered = np.stack([within < 1 + OVERLAP / 2, (within > 1 - OVERLAP / 2) | (within < OVERLAP / 2)])
    doubled = np.where(covered.all(axis=0), 2.0, 1.0)
    h = 1 / (ratio * doubled)  # T / h = R and T / h^2 = R2, twice that where orders overlap
    arrays = [mean * h, h, 0.5 * floor * doubled * h**2, 0.5 * floor * doubled * h**2]
    parts = [np.where(side, array, np.nan) for array in arrays for side in covered]
    return np.stack([release.array(row)[inner].astype(np.float64), *parts]).astype(np.float32)


def simulated_spectrum(arrays: np.ndarray, rv_kms: float, grid: Grid, noise: np.random.Generator | None) -> np.ndarray:
    """(pixel,) standardised spectrum of nine arrays (9, pixel), with noise unless that is None."""
    sed, t_even, t_odd, h_even, h_odd, b_even, b_odd, n_even, n_odd = arrays
    pixel = np.arange(grid.length)
    beta = rv_kms / C_KMS
    source = pixel - beta / (1 + beta) * (pixel + grid.start + grid.instrument.origin_steps)
    sed = np.interp(source, pixel, sed) / (1 + beta)
    flux, variance = [], []
    for t, h, b, n in ((t_even, h_even, b_even, n_even), (t_odd, h_odd, b_odd, n_odd)):
        signal = t * sed
        flux.append(signal / h)
        variance.append((signal + b + n) / h**2)
    observed = combine_orders(flux[0], flux[1], 1 / 2)
    if noise is not None:
        deviation = np.sqrt(combine_orders(variance[0], variance[1], 1 / 4))
        observed = observed + noise.standard_normal(grid.length) * deviation
    return standardised(observed, grid)


def standardised(flux: np.ndarray, grid: Grid) -> np.ndarray:
    """(pixel,) float32 flux over the median of its valid pixels, the others filled."""
    return fill_invalid(flux / np.median(flux[grid.valid]), grid).astype(np.float32)
