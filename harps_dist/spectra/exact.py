"""Elementary functions and means of float64 arrays, the same in every bit on every machine.

NumPy, SciPy and the C library choose their code by the processor, and the last bits that it returns differ. What is
here is made of operations that IEEE 754 rounds in one way alone (+ - * / sqrt, rint, comparisons), in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

_LN2 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)  # in two parts: a whole number times the first is exact
_HALF_PI = (1.57079632673412561417e00, 6.07710050650619224932e-11)
_EXP = [1 / math.factorial(n) for n in range(13, -1, -1)]
_LOG = [1 / (2 * n + 1) for n in range(9, 0, -1)]
_SIN = [(-1) ** n / math.factorial(2 * n + 1) for n in range(8, 0, -1)]
_COS = [(-1) ** n / math.factorial(2 * n) for n in range(8, -1, -1)]


def exp(x: ArrayLike) -> np.ndarray:
    """e^x of finite x to 3e-16 of itself; 0 below -746. Any shape."""
    x = np.asarray(x, np.float64)
    doublings = np.rint(x * (1 / math.log(2)))
    rest = (x - doublings * _LN2[0]) - doublings * _LN2[1]
    return np.ldexp(_polynomial(_EXP, rest), doublings.astype(np.int32))


def log(x: ArrayLike) -> np.ndarray:
    """Natural logarithm of positive x to 3e-16 of itself. Any shape."""
    mantissa, doublings = np.frexp(np.asarray(x, np.float64))
    low = mantissa < math.sqrt(0.5)
    mantissa, doublings = np.where(low, 2 * mantissa, mantissa), doublings - low
    ratio = (mantissa - 1) / (mantissa + 1)
    square = ratio * ratio
    twice = 2 * ratio
    return doublings * _LN2[0] + (twice + (twice * (square * _polynomial(_LOG, square)) + doublings * _LN2[1]))


def power(base: float, exponent: ArrayLike) -> np.ndarray:
    """base^exponent of a positive base, to 3e-16 times the exponent's logarithm's size."""
    return exp(np.asarray(exponent, np.float64) * log(base))


def sin_cos(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine of x [rad] to 3e-16, |x| below 1e5. Any shape."""
    x = np.asarray(x, np.float64)
    quarters = np.rint(x * (2 / math.pi))
    rest = (x - quarters * _HALF_PI[0]) - quarters * _HALF_PI[1]
    square = rest * rest
    sine, cosine = rest + rest * (square * _polynomial(_SIN, square)), _polynomial(_COS, square)
    turn = quarters.astype(np.int64) & 3
    swapped = (turn & 1).astype(bool)
    sine, cosine = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    return np.where(turn >= 2, -sine, sine), np.where((turn == 1) | (turn == 2), -cosine, cosine)


def arcsin(x: ArrayLike) -> np.ndarray:
    """Arcus sine [rad] of |x| up to 0.99 to 3e-15, by Newton's method. Any shape."""
    x = np.asarray(x, np.float64)
    angle = x + x * x * x * 0.5
    for _ in range(8):
        sine, cosine = sin_cos(angle)
        angle = angle - (sine - x) / cosine
    return angle


def gaussian_blur(values: np.ndarray, sigma_px: float) -> np.ndarray:
    """Convolve (pixel,) with a Gaussian, out to five deviations; 0 leaves the values as they are. Ends are mirrored."""
    reach, pixels = math.ceil(5 * sigma_px), values.size
    if not reach:
        return values
    offset = np.arange(reach + 1) / sigma_px
    weights = exp(-0.5 * offset * offset)
    weights /= weights[0] + 2 * np.cumsum(weights[1:])[-1]
    padded = np.pad(values, reach, mode="reflect")
    blurred = weights[0] * values
    for k, weight in enumerate(weights[1:], start=1):
        blurred += weight * (padded[reach - k :][:pixels] + padded[reach + k :][:pixels])
    return blurred


def mean(values: np.ndarray) -> float:
    """Mean of (n,) values, added one after another."""
    return float(np.cumsum(values, dtype=np.float64)[-1]) / len(values)


def _polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    """Horner's scheme; the highest power's coefficient first."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value
