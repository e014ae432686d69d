"""Two models on the same spectra: the difference of their errors star by star, its interval, and a paired test.

The star is the independent unit: its spectra are averaged first, as repeat visits share most of their error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harps_dist.evaluation.significance import mean_by_star
from harps_dist.text import NAN

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0  # of the resampling: the same errors always have the same interval
FEWEST_STARS = 5  # for an interval and a test
BCA_STARS = (20, 1000)  # below, the bootstrap is too narrow; above, corrections are negligible and cost stars squared


class Paired(NamedTuple):
    """Means over stars of the old and the new error and of new - old; low, high: its interval of 95 %; p_value: two-
    sided. All in the errors' unit; interval and test are NaN for fewer than five stars."""

    old: float
    new: float
    difference: float
    low: float
    high: float
    p_value: float
    stars: int


def paired(old: np.ndarray, new: np.ndarray, stars: np.ndarray) -> Paired:
    """Compare errors (n,) of two models on the same spectra, of stars (n,); pairs that are not finite are left out."""
    both = np.isfinite(old) & np.isfinite(new)
    if not both.any():
        return Paired(NAN, NAN, NAN, NAN, NAN, NAN, 0)
    of_old, of_new = (mean_by_star(errors[both], stars[both]) for errors in (old, new))
    change = of_new - of_old
    low, high = interval(change)
    means = float(of_old.mean()), float(of_new.mean()), float(change.mean())
    return Paired(*means, low, high, p_value(change), len(change))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Interval of 95 % for the mean of independent values (n,); NaN for fewer than five.

    By the bootstrap, bias-corrected and accelerated (BCa) for 20 to 1,000 values, as percentiles for more. Fewer leave
    the bootstrap nothing to draw from: five values hold the truth of a normal distribution between their least and
    largest 94 times in a hundred. There it is Student's.
    """
    from scipy.stats import bootstrap, sem, t

    count = len(values)
    if count < FEWEST_STARS:
        return NAN, NAN
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    if count < BCA_STARS[0]:
        low, high = t.interval(CONFIDENCE, count - 1, values.mean(), sem(values))
    else:
        low, high = bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=100,
            confidence_level=CONFIDENCE,
            method="BCa" if count <= BCA_STARS[1] else "percentile",
            random_state=np.random.default_rng(SEED),
        ).confidence_interval
    return float(low), float(high)


def p_value(change: np.ndarray) -> float:
    """p of Wilcoxon's signed-rank test that changes (n,) go up as often and as far as down; NaN for fewer than five."""
    from scipy.stats import wilcoxon

    if len(change) < FEWEST_STARS:
        return NAN
    return float(wilcoxon(change).pvalue) if change.any() else 1.0
