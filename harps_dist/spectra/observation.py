"""The observation model of Appendix A, folded from nine arrays into the four that matter.

A and B are the even and odd echelle orders. Where both cover a pixel they are averaged, elsewhere the one
that covers it is taken:
    R  = comb(T/h, 1/2)     mean response              S  = R SED_v           (Eq. A.1)
    R2 = comb(T/h^2, 1/4)   variance per SED           var = R2 SED_v + V0    (Eq. A.2)
    V0 = comb((B+n)/h^2, 1/4)  variance floor
T is the total throughput (signal over SED), h blaze times relative dispersion, B the sky signal, n the
read-out and dark variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Signal = TypeVar("Signal", "Tensor", np.ndarray)


class Response(NamedTuple):
    """Everything between the star's SED and the mean and variance of the flux; (..., pixel) each."""

    mean: np.ndarray
    variance: np.ndarray
    floor: np.ndarray


def of_terms(values: np.ndarray, counts: tuple[int, int, int]) -> list[np.ndarray]:
    """The parts of basis vectors, or of their coefficients, (k, …), that belong to log R, log R2 / R and log V0."""
    return np.split(values, np.cumsum(counts)[:2])


def combine_orders(even: np.ndarray, odd: np.ndarray, weight: float) -> np.ndarray:
    """`weight` times the sum where both orders cover a pixel, else the one that does; NaN where neither."""
    both = np.isfinite(even) & np.isfinite(odd)
    return np.where(both, weight * (even + odd), np.where(np.isfinite(even), even, odd))


def fold_response(
    throughput: tuple[np.ndarray, np.ndarray],
    blaze_dispersion: tuple[np.ndarray, np.ndarray],
    sky: tuple[np.ndarray, np.ndarray],
    readout: tuple[np.ndarray, np.ndarray],
) -> Response:
    """Fold T, h, B, n of the even and odd orders, each (even, odd) of (pixel,) with NaN outside the orders."""
    pairs = [
        tuple(np.asarray(array, np.float64) for array in pair) for pair in (throughput, blaze_dispersion, sky, readout)
    ]
    per_order = []
    for t, h, b, n in zip(*pairs, strict=True):
        per_order.append((t / h, t / h**2, (b + n) / h**2))
    (mean_a, variance_a, floor_a), (mean_b, variance_b, floor_b) = per_order
    return Response(
        mean=combine_orders(mean_a, mean_b, 1 / 2),
        variance=combine_orders(variance_a, variance_b, 1 / 4),
        floor=combine_orders(floor_a, floor_b, 1 / 4),
    )


def observe(sed: Signal, mean: Signal, variance: Signal, floor: Signal) -> tuple[Signal, Signal]:
    """Mean flux and its standard deviation (Eqs. A.1, A.2).

    sed: (batch, pixel) SED shifted to the star's velocity. mean, variance, floor: (batch, pixel) of
    `Response`, in the frame of the flux. Tensors or arrays. Returns flux and sigma, (batch, pixel), in counts.
    """
    return mean * sed, (variance * sed + floor) ** 0.5
