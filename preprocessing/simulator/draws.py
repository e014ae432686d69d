"""Random draws that are the same in every bit on every machine.

NumPy's own go through the C library where they are not whole numbers or uniform. Its `binomial` and `poisson` compare
with what that returns and no more: a draw comes out otherwise with a probability of 1e-16, that of a rounding.

Tested in tests/unit/test_exact.py.
"""

from __future__ import annotations

import math

import numpy as np

from harps_dist.spectra.exact import log, sin_cos


def uniform(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> np.ndarray:
    """Evenly spread over low..high; (size,), or a scalar without one."""
    return low + (high - low) * np.asarray(rng.random(size))


def normals(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size,) standard normal, in pairs by Box and Muller's method."""
    half = -(-size // 2)
    radius = np.sqrt(2 * exponentials(rng, half))
    sine, cosine = sin_cos(2 * math.pi * rng.random(half))
    return np.concatenate([radius * cosine, radius * sine])[:size]


def exponentials(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size,) exponential, of mean 1."""
    return -log(1 - rng.random(size))
