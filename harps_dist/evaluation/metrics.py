"""The numbers of the paper's Sects. 3.4-3.6, as functions of arrays.

One rule throughout: a missing truth is left out, a failed prediction is shown. NaN truths (and invalid
pixels) do not count; a NaN prediction where there is a truth makes the score NaN. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harps_dist.errors import GridError
from harps_dist.spectra.labels import EXTRINSIC, INTRINSIC, LABEL
from harps_dist.text import NAN

RVIS_RANGE_AA = (6050.0, 6250.0)  # hardly any telluric lines (paper, Eq. 16)
GROUPS = {"intrinsic": INTRINSIC, "extrinsic": EXTRINSIC}


@dataclass(frozen=True)
class LabelScore:
    """Errors of one label over a set of spectra; mae, bias, scatter and both errors are in `unit`.

    mae: mean |predicted - true| (Eq. 12). standard_error: of the mae, every spectrum independent, as in the
    paper. standard_error_stars: of the mae, every star independent; repeat visits to a star share most of
    their error, so this is the honest one. nmae: mae over the deviation in the training split (Eq. 13).
    nmae_paper: mae over the divisor behind the printed tables. bias, scatter: mean and standard deviation of
    predicted - true. count, stars: spectra that have a truth, and the stars they show.
    """

    name: str
    unit: str
    mae: float
    standard_error: float
    standard_error_stars: float
    nmae: float
    nmae_paper: float
    bias: float
    scatter: float
    count: int
    stars: int


@dataclass(frozen=True)
class GroupScore:
    """Mean NMAE over the labels of a group, the column "All" of the paper's tables; dimensionless.

    labels: those that went in. The errors hold the correlation between labels of one spectrum (or star).
    """

    name: str
    labels: tuple[str, ...]
    nmae: float
    standard_error: float
    standard_error_stars: float
    nmae_paper: float
    standard_error_paper: float
    standard_error_paper_stars: float = NAN


def label_scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    sigma: Mapping[str, float],
    stars: np.ndarray,
) -> list[LabelScore]:
    """Score every label (paper, Sect. 3.4).

    truth: (n, K) in physical units, NaN where missing. predicted: (n, K); a column that is NaN throughout
    is a label the model does not have. names: K label names. sigma: standard deviation in the training
    split, by label; nmae is NaN for a label without one. stars: (n,) target identifiers, any dtype.
    A label without truths has count 0 and NaN scores. Raises ValueError where shapes disagree.
    """
    residual, present = _residuals(truth, predicted, names, stars)
    return [
        _label_score(name, residual[rows, column], np.asarray(stars)[rows], sigma.get(name))
        for column, (name, rows) in enumerate(zip(names, present.T, strict=True))
    ]


def _label_score(name: str, residual: np.ndarray, stars: np.ndarray, sigma: float | None) -> LabelScore:
    mae, standard_error = mean_with_error(np.abs(residual))
    count = len(residual)
    return LabelScore(
        name=name,
        unit=LABEL[name].unit,
        mae=mae,
        standard_error=standard_error,
        standard_error_stars=clustered_error(np.abs(residual), stars),
        nmae=mae / (sigma or NAN),
        nmae_paper=mae / (LABEL[name].paper_mad or NAN),
        bias=mean_with_error(residual)[0],
        scatter=float(residual.std(ddof=1)) if count > 1 else NAN,
        count=count,
        stars=len(np.unique(stars)),
    )


def group_scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    sigma: Mapping[str, float],
    stars: np.ndarray,
) -> list[GroupScore]:
    """Mean NMAE over the intrinsic (teff, mh, logg) and the extrinsic (rv, berv, airmass) labels.

    Arguments as for `label_scores`. Labels count equally, however many spectra have them, as in the printed
    tables; labels without truths, predictions or sigma are left out (so the paper does with BERV of CNN
    (ETC)). A group without labels is NaN.
    """
    residual, present = _residuals(truth, predicted, names, stars)
    scores = []
    for group, members in GROUPS.items():
        known = np.array([name in members and sigma.get(name, 0.0) > 0.0 for name in names])
        columns = np.flatnonzero(known & present.any(axis=0)).tolist()
        labels = tuple(names[column] for column in columns)
        error, mask = np.abs(residual[:, columns]), present[:, columns]
        nmae, by_spectrum, by_star = _mean_of_means(error / [sigma[name] for name in labels], mask, stars)
        printed = _mean_of_means(error / [LABEL[name].paper_mad for name in labels], mask, stars)
        scores.append(GroupScore(group, labels, nmae, by_spectrum, by_star, *printed))
    return scores


def mean_with_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of `values` (any shape) and its standard error, std (ddof 1) over √n; NaN where undefined."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if values.size else NAN
    return mean, float(values.std(ddof=1) / values.size**0.5) if values.size > 1 else NAN


def clustered_error(values: np.ndarray, stars: np.ndarray) -> float:
    """Standard error of the mean of `values` (n,) with stars (n,) as the independent unit.

    Cluster-robust (sandwich) error with the usual G/(G-1) for G stars; equals the plain standard error
    where every star was observed once. NaN for fewer than two stars.
    """
    values = np.asarray(values, dtype=np.float64)[:, None]
    return _mean_of_means(values, np.ones(values.shape, dtype=bool), stars)[2]


def reconstruction_mae(truth: np.ndarray, predicted: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean absolute reconstruction error of every spectrum, MAE' (paper, Eq. 14), over valid pixels.

    truth, predicted: (n, L) flux over median flux; truth may be NaN where not valid. valid: (L,) or (n, L)
    bool. Returns (n,) float64, NaN for a spectrum without valid pixels.
    """
    return _masked_mean(np.subtract(truth, predicted, dtype=np.float64), valid)


def paper_comparable(mae: np.ndarray, valid_fraction: float) -> np.ndarray:
    """(n,) MAE' as the reference computes it: masked zeros averaged in, so smaller by valid over all pixels."""
    return mae * valid_fraction


def rvis_mask(wave_aa: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(L,) bool: valid pixels within 6050-6250 Å, the range Λ of Eq. 16.

    wave_aa: (L,) air wavelength [Å]. valid: (L,) bool. Raises GridError where no pixel is left.
    """
    low, high = RVIS_RANGE_AA
    mask = (wave_aa >= low) & (wave_aa <= high) & valid
    if not mask.any():
        raise GridError(
            f"RVIS is measured over {low:.0f}-{high:.0f} Å, but the grid covers {wave_aa[0]:.2f}-"
            f"{wave_aa[-1]:.2f} Å and has no valid pixel there. Evaluate on a grid that does."
        )
    return mask


def intervention_error(decoded: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean |decoded - expected| over pixels, for every spectrum and intervention (Eqs. 16 and 17).

    decoded: (n, v, L) spectra decoded after each of v interventions. expected: (n, v, L) what they should
    be: the shifted reconstruction for RVIS, the re-encoded or the simulated spectrum for GIS; may be NaN
    outside the mask. mask: bool, broadcast to (n, v, L). Returns (n, v) float64.
    """
    return _masked_mean(np.subtract(decoded, expected, dtype=np.float64), mask)


def rvis(decoded_after_intervention: np.ndarray, shifted_reconstruction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Radial velocity intervention score of every spectrum (Eq. 16), the mean over its interventions.

    Both spectra (n, v, L), mask from `rvis_mask`. Returns (n,). A decoder that ignores its input and draws
    no lines scores a perfect 0: report `sensitivity` beside it.
    """
    return intervention_error(decoded_after_intervention, shifted_reconstruction, mask).mean(axis=-1)


def sensitivity(
    decoded: np.ndarray,
    decoded_base: np.ndarray,
    expected: np.ndarray,
    expected_base: np.ndarray,
    mask: np.ndarray,
) -> np.ndarray:
    """How much the decoder answers to an intervention: mean |Δŝ| / mean |Δs|, 1 for a faithful decoder.

    decoded, expected: (n, v, L) after the interventions; decoded_base, expected_base: (n, L) without. mask:
    bool, broadcast to (n, v, L). Means run over interventions and pixels. Returns (n,) float64: 0 where the
    decoder does not answer, NaN where the expected spectrum does not change.
    """
    answered = intervention_error(decoded, decoded_base[:, None, :], mask).mean(axis=-1)
    due = intervention_error(expected, expected_base[:, None, :], mask).mean(axis=-1)
    return np.divide(answered, due, out=np.full_like(due, NAN), where=due != 0)


def response_to(answered: np.ndarray, due: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How much of the change due a decoder makes: 1 for a faithful one, 0 for one that changes something else.

    answered, due: (n, v, L) changes after v interventions. mask: bool, broadcast to (n, v, L). Returns (n,), the
    least-squares coefficient of `due` in `answered`, NaN where nothing is due.
    """
    a, x = _changes(mask, answered, due)
    xx = (x * x).sum(1)
    return _share((a * x).sum(1), xx, xx > 0)


def response_and_leakage(
    answered: np.ndarray, own: np.ndarray, other: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How a decoder's change divides between what should have changed and what should not.

    answered: (n, v, L) change of the decoded spectrum after v interventions on one velocity. own: the change due, as
    the simulator shows it. other: what the same interventions on the other velocity would do (stellar lines for BERV,
    telluric ones for the radial velocity). mask: bool, broadcast to (n, v, L).
    Returns (n,) each: coefficients of `own` (1 for a faithful decoder) and of `other` (0) in the least-squares fit
    answered = a own + b other over interventions and pixels; NaN where the two cannot be told apart.
    """
    a, x, y = _changes(mask, answered, own, other)
    xx, yy, xy = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
    ax, ay, determinant = (a * x).sum(1), (a * y).sum(1), xx * yy - xy**2
    apart = determinant > 1e-6 * xx * yy
    return _share(ax * yy - ay * xy, determinant, apart), _share(ay * xx - ax * xy, determinant, apart)


def _changes(mask: np.ndarray, *changes: np.ndarray) -> list[np.ndarray]:
    """Changes (n, v, L) as (n, v * L) float64, 0 outside the mask."""
    return [
        np.where(np.broadcast_to(mask, change.shape), change, 0.0).astype(np.float64).reshape(len(change), -1)
        for change in changes
    ]


def _share(part: np.ndarray, whole: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) part over whole; NaN where it is not known."""
    return np.divide(part, whole, out=np.full(len(whole), NAN), where=known)


def _residuals(
    truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], stars: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """predicted - true (n, K) and which of it counts (n, K) bool."""
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if truth.shape != predicted.shape or truth.shape != (len(stars), len(names)):
        raise ValueError(
            f"label scores need one row a spectrum and one column a label: got truth {truth.shape}, "
            f"predicted {predicted.shape}, {len(names)} names and {len(stars)} stars. Pass arrays of shape "
            f"(spectra, labels)."
        )
    return predicted - truth, ~np.isnan(truth) & ~np.isnan(predicted).all(axis=0)


def _masked_mean(difference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean |difference| (..., L) over the pixels in `mask`; NaN where there are none."""
    mask = np.broadcast_to(mask, difference.shape)
    total, count = np.where(mask, np.abs(difference), 0.0).sum(axis=-1), mask.sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, NAN), where=count > 0)


def _mean_of_means(values: np.ndarray, mask: np.ndarray, stars: np.ndarray) -> tuple[float, float, float]:
    """Unweighted mean over columns of their masked means, and its error by spectrum and by star.

    values: (n, K). mask: (n, K) bool with a True in every column. stars: (n,). Each row pulls the result by
    Σ_k (x_ik - m_k) / (n_k K); the squares of these pulls, summed by row or by star, are its variance,
    correlations between columns included. The factor u/(u-1) for u independent units makes the error of a
    single column std(ddof=1)/√n.
    """
    if not mask.size:
        return NAN, NAN, NAN
    count = mask.sum(axis=0)
    means = np.where(mask, values, 0.0).sum(axis=0) / count
    pull = np.where(mask, (values - means) / (count * len(count)), 0.0)
    used = mask.any(axis=1)
    _, star = np.unique(np.asarray(stars)[used], return_inverse=True)
    by_spectrum = _root_sum_square(pull[used].sum(axis=1))
    by_star = _root_sum_square(np.bincount(star, weights=pull[used].sum(axis=1)))
    return float(means.mean()), by_spectrum, by_star


def _root_sum_square(pulls: np.ndarray) -> float:
    units = len(pulls)
    return float(np.sqrt((pulls**2).sum() * units / (units - 1))) if units > 1 else NAN
