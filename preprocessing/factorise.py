"""Responses as combinations of a few vectors, one set for a whole release.

What lies between a star and its counts differs from exposure to exposure by airmass, water vapour, exposure time and
sky: log R, log R2 / R and log V0 are each of low rank. The vectors are runs themselves, picked greedily with the pixels
that tell them apart (empirical interpolation: Barrault et al. 2004), so that coefficients follow from a few pixels by
substitution, in operations that round alike on every machine.

Tested in tests/unit/test_codec.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harps_dist.spectra.exact import exp, log
from harps_dist.spectra.observation import of_terms

TRAINING_RUNS = 64
MOST_VECTORS = 24
TOLERANCES = (1.5e-4, 2e-3, 2e-3)  # the worst pixel's; the first weighted by sqrt(R): 0.05 sigma at S/N 300
_DEEPEST = math.log(1e-4)  # of the median response; what is darker counts as this


class Terms(NamedTuple):
    """log R, log R2 / R and log V0, (3, pixel) float64, of R in medians of itself; that median, in counts."""

    values: np.ndarray
    level: float


def terms_of(response: np.ndarray) -> Terms:
    """Terms of a response (3, pixel): mean, variance and floor, all positive."""
    mean, variance, floor = np.asarray(response, np.float64)
    level = float(np.median(mean))
    log_mean = np.maximum(log(mean / level), _DEEPEST)
    floor = np.maximum(floor / (level * level), 1e-12)
    return Terms(np.stack([log_mean, log(variance / mean / level), log(floor)]), level)


class TermBasis(NamedTuple):
    """Vectors (k, pixel) float32, each 1 at its own pixel of pixels (k,) and 0 at those before it."""

    vectors: np.ndarray
    pixels: np.ndarray

    def coefficients(self, values: np.ndarray) -> np.ndarray:
        """(k,) float32 coefficients of one term (pixel,), met exactly at the basis' pixels."""
        found: list[float] = []
        for vector_pixel in self.pixels:
            known = math.fsum(c * float(v[vector_pixel]) for c, v in zip(found, self.vectors, strict=False))
            found.append(float(values[vector_pixel]) - known)
        return np.array(found, np.float32)


def fit_term(values: np.ndarray, weights: np.ndarray, tolerance: float) -> TermBasis:
    """The fewest runs of values (run, pixel) whose combinations meet all within a tolerance on weights |error|."""
    residual = np.array(values, np.float64)
    vectors: list[np.ndarray] = []
    pixels: list[int] = []
    while len(vectors) < MOST_VECTORS:
        error = np.abs(residual) * weights
        run, pixel = map(int, np.unravel_index(np.argmax(error), error.shape))
        if error[run, pixel] <= tolerance:
            break
        vector = residual[run] / residual[run, pixel]
        residual -= residual[:, pixel : pixel + 1] * vector
        vectors.append(vector)
        pixels.append(pixel)
    empty = np.empty((0, values.shape[1]))
    return TermBasis(np.array(vectors or empty, np.float32), np.array(pixels, np.int64))


class ResponseBasis(NamedTuple):
    """The bases of the three terms."""

    terms: tuple[TermBasis, TermBasis, TermBasis]

    @property
    def vectors(self) -> np.ndarray:
        """(k, pixel) float32, those of all terms."""
        return np.concatenate([term.vectors for term in self.terms])

    @property
    def counts(self) -> tuple[int, int, int]:
        first, second, third = (len(term.pixels) for term in self.terms)
        return first, second, third

    def coefficients(self, terms: Terms) -> np.ndarray:
        """(k,) float32."""
        return np.concatenate([basis.coefficients(v) for basis, v in zip(self.terms, terms.values, strict=True)])

    def combined(self, coefficients: np.ndarray) -> np.ndarray:
        """(3, pixel) terms that these coefficients stand for."""
        parts = of_terms(coefficients.astype(np.float64), self.counts)
        terms = np.zeros((3, self.vectors.shape[1]))
        for term, part, basis in zip(terms, parts, self.terms, strict=True):
            for coefficient, vector in zip(part, basis.vectors, strict=True):
                term += coefficient * vector
        return terms

    def missed(self, terms: Terms, combined: np.ndarray) -> bool:
        """Whether some pixel is off by more than the tolerances."""
        return misses(terms.values, combined)


def fit_basis(runs: Sequence[Terms]) -> ResponseBasis:
    """Fit the three bases to some runs."""
    values = np.stack([run.values for run in runs])
    weights = np.stack([_weights(run.values) for run in runs])
    first, second, third = (fit_term(values[:, k], weights[:, k], TOLERANCES[k]) for k in range(3))
    return ResponseBasis((first, second, third))


def misses(values: np.ndarray, stored: np.ndarray, grain: float = 1.0) -> bool:
    """Whether some pixel of terms (3, pixel) is off by more than the tolerances, times a factor for rounding."""
    error = np.abs(stored - values) * _weights(values)
    return bool((error.max(axis=1) > 2 * grain * np.array(TOLERANCES)).any())


def _weights(values: np.ndarray) -> np.ndarray:
    weights = np.ones_like(values)
    weights[0] = exp(np.minimum(values[0], 0) / 2)
    return weights


def spread_out(features: np.ndarray, count: int) -> np.ndarray:
    """Numbers of `count` rows of features (row, feature) that lie far apart (Gonzalez' greedy), the same everywhere."""
    features = np.nan_to_num(np.asarray(features, np.float64))
    span = np.ptp(features, axis=0)
    scaled = (features - features.min(axis=0)) / np.where(span > 0, span, 1)
    chosen = [0]
    distance = ((scaled - scaled[0]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(features)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((scaled - scaled[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)
