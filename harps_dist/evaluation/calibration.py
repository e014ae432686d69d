"""Whether the uncertainties that a model predicts are right: coverage, PIT, and a split-conformal correction.

The rule of `metrics` holds: a missing truth is left out, a failed prediction makes the score NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from harps_dist.evaluation.measures import LEVELS
from harps_dist.evaluation.metrics import clustered_error, mean_with_error
from harps_dist.text import NAN

Likelihood = Literal["gaussian", "laplace"]
BINS = 3
PIT_BINS = 10


class LabelPredictions(NamedTuple):
    """One label of a set of spectra, (n,) each: truth (NaN where missing), prediction, the standard deviation that is
    predicted with it, whose spectra they are, their S/N and true teff [K]."""

    truth: np.ndarray
    predicted: np.ndarray
    sigma: np.ndarray
    stars: np.ndarray
    snr: np.ndarray
    teff_k: np.ndarray

    @property
    def known(self) -> LabelPredictions:
        """The predictions whose truth is known."""
        rows = ~np.isnan(self.truth)
        return LabelPredictions(*(column[rows] for column in self))

    @property
    def deviations(self) -> np.ndarray:
        """(n,) |predicted - true| in predicted standard deviations."""
        return np.abs(self.predicted - self.truth) / self.sigma


@dataclass(frozen=True)
class Coverage:
    """Share of truths within the central interval of a nominal level, as predicted and after conformal correction.

    error, error_stars: standard error of `raw`, spectra or stars independent. factor: half-width of the corrected
    interval in predicted standard deviations, infinite where too few stars calibrate it.
    """

    level: float
    raw: float
    error: float
    error_stars: float
    factor: float
    conformal: float


@dataclass(frozen=True)
class CoverageBin:
    """Coverages, one a level, of the spectra whose teff or S/N lies within low..high."""

    by: Literal["teff", "snr"]
    low: float
    high: float
    spectra: int
    stars: int
    raw: tuple[float, ...]
    conformal: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """How well one label's uncertainties are calibrated.

    ks: largest distance of the PIT's distribution from the uniform one. pit: share of the PIT values in each of ten
    equal bins. stars_calibrating: stars that the conformal factors rest on.
    """

    name: str
    spectra: int
    stars: int
    stars_calibrating: int
    ks: float
    pit: tuple[float, ...]
    coverage: tuple[Coverage, ...]
    bins: tuple[CoverageBin, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Calibration:
        """A calibration as scores.json has it, where null stands for NaN."""

        def known(value: Any) -> Any:
            if isinstance(value, list):
                return tuple(map(known, value))
            return NAN if value is None else value

        facts = {name: known(value) for name, value in content.items() if name not in ("coverage", "bins")}
        of_levels, of_bins = (
            [{name: known(value) for name, value in part.items()} for part in content[parts]]
            for parts in ("coverage", "bins")
        )
        return cls(
            **facts,
            coverage=tuple(Coverage(**part) for part in of_levels),
            bins=tuple(CoverageBin(**p) for p in of_bins),
        )


def calibrate(name: str, test: LabelPredictions, held_out: LabelPredictions, likelihood: Likelihood) -> Calibration:
    """Score one label on test spectra; `held_out`, the validation split, gives the conformal factors."""
    test, held_out = test.known, held_out.known
    factors = [conformal_factor(held_out.deviations, held_out.stars, level) for level in LEVELS]
    values = pit(test, likelihood)
    return Calibration(
        name=name,
        spectra=len(test.truth),
        stars=len(np.unique(test.stars)),
        stars_calibrating=len(np.unique(held_out.stars)),
        ks=_distance_from_uniform(values),
        pit=tuple((np.histogram(values, PIT_BINS, (0, 1))[0] / max(1, len(values))).tolist()),
        coverage=tuple(
            _coverage(test, level, factor, likelihood) for level, factor in zip(LEVELS, factors, strict=True)
        ),
        bins=tuple(_bins(test, factors, likelihood)),
    )


def pit(predictions: LabelPredictions, likelihood: Likelihood) -> np.ndarray:
    """(n,) probability integral transform F(truth) under the predicted distribution; uniform where that is right."""
    return _distribution(likelihood).cdf((predictions.truth - predictions.predicted) / predictions.sigma)


def half_width(level: float, likelihood: Likelihood) -> float:
    """Half the central interval that holds `level`, in standard deviations."""
    return float(_distribution(likelihood).ppf((1 + level) / 2))


def conformal_factor(deviations: np.ndarray, stars: np.ndarray, level: float) -> float:
    """The deviation that a new star's spectrum stays below with probability `level`, at least, whatever the model.

    deviations: (n,) |predicted - true| over predicted sigma of held-out spectra. stars: (n,). Visits to a star are not
    exchangeable with other stars', stars are: each of K stars weighs 1/(K+1), shared among its visits, and the rest
    lies at infinity (hierarchical conformal prediction, Lee, Barber & Willett 2023). With one visit each this is the
    ceil((n+1) level)-th smallest. Infinite for fewer than level/(1-level) stars; NaN where a deviation is.
    """
    if np.isnan(deviations).any():
        return NAN
    _, star, visits = np.unique(stars, return_inverse=True, return_counts=True)
    order = np.argsort(deviations)
    reached = np.cumsum(1 / visits[star[order]]) / (len(visits) + 1)
    enough = np.flatnonzero(reached >= level - 1e-12)
    return float(deviations[order[enough[0]]]) if len(enough) else float("inf")


def _coverage(test: LabelPredictions, level: float, factor: float, likelihood: Likelihood) -> Coverage:
    within = inside(test, half_width(level, likelihood))
    return Coverage(
        level, *mean_with_error(within), clustered_error(within, test.stars), factor, _share(inside(test, factor))
    )


def inside(test: LabelPredictions, width: float) -> np.ndarray:
    """(n,) 1 where the truth lies within `width` standard deviations, else 0; NaN where the prediction failed."""
    deviations = test.deviations
    return np.where(np.isnan(deviations) | np.isnan(width), NAN, (deviations <= width).astype(np.float64))


def _share(within: np.ndarray) -> float:
    return mean_with_error(within)[0]


def _bins(test: LabelPredictions, factors: Sequence[float], likelihood: Likelihood) -> list[CoverageBin]:
    """Bins of equally many spectra by teff and by S/N, of those where these are known."""
    bins = []
    by: tuple[tuple[Literal["teff", "snr"], np.ndarray], ...] = (("teff", test.teff_k), ("snr", test.snr))
    for name, values in by:
        known = np.flatnonzero(np.isfinite(values))
        for rows in np.array_split(known[np.argsort(values[known], kind="stable")], BINS):
            if not len(rows):
                continue
            part = LabelPredictions(*(column[rows] for column in test))
            raw = tuple(_share(inside(part, half_width(level, likelihood))) for level in LEVELS)
            conformal = tuple(_share(inside(part, factor)) for factor in factors)
            low, high = float(values[rows].min()), float(values[rows].max())
            bins.append(CoverageBin(name, low, high, len(rows), len(np.unique(part.stars)), raw, conformal))
    return bins


def _distance_from_uniform(values: np.ndarray) -> float:
    from scipy.stats import kstest

    return float(kstest(values, "uniform").statistic) if len(values) and not np.isnan(values).any() else NAN


def _distribution(likelihood: Likelihood):
    """The likelihood's distribution with unit standard deviation."""
    from scipy.stats import laplace, norm

    return norm() if likelihood == "gaussian" else laplace(scale=0.5**0.5)
