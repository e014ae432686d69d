"""Statistics of labels that were read off several visits to stars: of one star, and over stars.

Tested in tests/unit/test_visits.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harps_dist.text import NAN

LINE_VISITS = 4  # that a scatter about a straight line in time takes, two more than the line has parameters
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
Sample = Literal["unflagged", "all"]


@dataclass(frozen=True)
class StarScore:
    """How a method reads one label of a star, in the label's unit; NaN where it is not known.

    star: its id in the catalogue; name: OBJECT of its first spectrum. visits: spectra that the method has a row of;
    flagged: of these, how many it flags. used: what the numbers rest on: visits with a value and without a flag, or, of
    a star of which all values are flagged (`trusted` is false), visits with a value. median: over visits. bias: of the
    median against the reference. scatter: among visits, `robust_scatter`. about_line: `scatter_about_line`, of
    velocities alone. stated: median of the errors that the method states. ratio: scatter over stated.
    """

    star: str
    name: str
    method: str
    label: str
    reference: float
    reference_error: float
    visits: int
    flagged: int
    used: int
    trusted: bool
    median: float
    bias: float
    scatter: float
    about_line: float
    stated: float
    ratio: float


@dataclass(frozen=True)
class MethodScore:
    """How a method reads one label over stars that have a reference, in the label's unit; NaN where it is not known.

    sample: "unflagged", stars with an unflagged visit, or "all". stars, spectra: that the numbers rest on. bias: median
    of the stars' biases. scatter: `robust_scatter` of them. stars_with_errors: whose reference states an error.
    intrinsic: their scatter without the references' errors, `without_errors`. mae, mae_error: mean |bias| and its
    standard error.
    """

    method: str
    label: str
    sample: Sample
    stars: int
    spectra: int
    bias: float
    scatter: float
    stars_with_errors: int
    intrinsic: float
    mae: float
    mae_error: float


def robust_scatter(values: np.ndarray) -> float:
    """1.4826 times the median absolute deviation from the median of (n,) values; NaN for fewer than two."""
    return float(_NORMAL * np.median(np.abs(values - np.median(values)))) if len(values) > 1 else NAN


def scatter_about_line(days: np.ndarray, values: np.ndarray) -> float:
    """Standard deviation of (n,) values about the straight line in time that fits them best, of n - 2 degrees of
    freedom; NaN for fewer than LINE_VISITS, or where all were taken at one time."""
    known = np.isfinite(days)
    days, values = days[known] - np.mean(days[known]) if known.any() else days[:0], values[known]
    if len(values) < LINE_VISITS or not days.any():
        return NAN
    left = values - np.polyval(np.polyfit(days, values, 1), days)
    return float(np.sqrt(np.sum(left**2) / (len(values) - 2)))


def without_errors(values: np.ndarray, errors: np.ndarray) -> float:
    """Robust scatter of (n,) values less the median of their (n,) errors, in quadrature; 0 where errors explain all."""
    scatter = robust_scatter(values)
    return scatter if np.isnan(scatter) else float(np.sqrt(max(0.0, scatter**2 - float(np.median(errors)) ** 2)))


def star_score(
    star: str,
    name: str,
    method: str,
    label: str,
    reference: tuple[float, float],
    values: np.ndarray,
    stated: np.ndarray,
    flagged: np.ndarray,
    mjd: np.ndarray,
) -> StarScore:
    """Score (n,) values of a label of one star. reference: value and error. stated: errors of the values, NaN
    where there are none. flagged: which visits are. mjd: of the visits [d], NaN where not known."""
    known = np.isfinite(values)
    trusted = bool((known & ~flagged).any())
    used = known & ~flagged if trusted else known
    values, stated, mjd = values[used], stated[used], mjd[used]
    median = float(np.median(values)) if len(values) else NAN
    scatter = robust_scatter(values)
    error = float(np.median(stated[np.isfinite(stated)])) if np.isfinite(stated).any() else NAN
    return StarScore(
        star=star,
        name=name,
        method=method,
        label=label,
        reference=reference[0],
        reference_error=reference[1],
        visits=len(flagged),
        flagged=int(flagged.sum()),
        used=int(used.sum()),
        trusted=trusted,
        median=median,
        bias=median - reference[0],
        scatter=scatter,
        about_line=scatter_about_line(mjd, values) if label == "rv" else NAN,
        stated=error,
        ratio=scatter / error if error > 0 else NAN,
    )


def method_score(scores: Sequence[StarScore], method: str, label: str, sample: Sample) -> MethodScore:
    """Score a method on a label over the stars of a sample."""
    scores = [score for score in scores if (score.method, score.label) == (method, label) and np.isfinite(score.bias)]
    scores = [score for score in scores if score.trusted or sample == "all"]
    bias, errors = (np.array([getattr(score, name) for score in scores]) for name in ("bias", "reference_error"))
    stated = np.isfinite(errors)
    return MethodScore(
        method=method,
        label=label,
        sample=sample,
        stars=len(scores),
        spectra=sum(score.used for score in scores),
        bias=float(np.median(bias)) if len(bias) else NAN,
        scatter=robust_scatter(bias),
        stars_with_errors=int(stated.sum()),
        intrinsic=without_errors(bias[stated], errors[stated]),
        mae=float(np.abs(bias).mean()) if len(bias) else NAN,
        mae_error=float(np.abs(bias).std(ddof=1) / len(bias) ** 0.5) if len(bias) > 1 else NAN,
    )
