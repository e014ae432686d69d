"""From two models' predictions of the same spectra to the entries of a comparison.

The rule of `metrics` holds: a missing truth is left out, a failed prediction is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from harps_dist.evaluation.measures import MEASURE, is_coverage, label_measure
from harps_dist.evaluation.significance import mean_by_star
from harps_dist.promotion.comparison import (
    BYS,
    COVERAGES,
    EDGES,
    UNKNOWN,
    By,
    Entry,
    Population,
    SpectraKind,
    bin_names,
)
from harps_dist.promotion.paired import FEWEST_STARS, paired
from harps_dist.spectra.instrument import HARPS
from harps_dist.spectra.labels import INTRINSIC, LABEL, NAMES
from harps_dist.text import NAN

Columns = Mapping[str, np.ndarray]


class Spectra(NamedTuple):
    """What is known of n spectra, whoever predicts them.

    Their stars, whether the star is new in the release, S/N, time of observation [d], the label that varies in a
    generative subset, and labels by name; NaN where unknown. changes_mjd: when the instrument changed; the first
    change parts the eras.
    """

    stars: np.ndarray
    new_star: np.ndarray
    snr: np.ndarray
    mjd: np.ndarray
    varied: np.ndarray
    truth: Columns
    changes_mjd: tuple[float, ...] = HARPS.changes_mjd


class Errors(NamedTuple):
    """(n,) values of one measure, and where there should be one: NaN there is a failed prediction."""

    values: np.ndarray
    due: np.ndarray


def errors_of(spectra: Spectra, labels: Sequence[str], predicted: Columns, inside: Columns) -> dict[str, Errors]:
    """All measures that a model has, by their name in `MEASURES`.

    labels: that it predicts. predicted: these by name, and scores as `Predictions` names them. inside: 1 or 0, by
    coverage and label, NaN where the prediction failed.
    """
    errors: dict[str, Errors] = {}
    for name in NAMES:
        known = np.isfinite(spectra.truth[name])
        if name in labels and known.any():
            errors[name] = Errors(np.abs(predicted[name] - spectra.truth[name]), known)
        for coverage in (label_measure(coverage, name) for coverage in COVERAGES):
            if coverage in inside:
                errors[coverage] = Errors(inside[coverage], known)
    everywhere = np.ones(len(spectra.stars), dtype=bool)
    for score, values in predicted.items():
        if (measure := MEASURE.get(score)) is None:
            continue
        name, error = measure.error_name, measure.error(values)
        # Where nothing is due, or two changes look the same, a share of the change due is no number.
        due = everywhere if measure.best is None else np.isfinite(values)
        if not measure.of_label:
            errors[name] = Errors(error, due)
            continue
        for label in INTRINSIC:
            if (of_label := due & (spectra.varied == label)).any():
                errors[label_measure(name, label)] = Errors(error, of_label)
    return errors


def entries_of(
    kind: SpectraKind, spectra: Spectra, new: dict[str, Errors], old: dict[str, Errors] | None
) -> Iterator[Entry]:
    """Entries of one kind: every measure that either model has, in every population that holds spectra, overall and,
    but for coverages and the generative set, by bins. old: None where there is no old model."""
    nothing = np.full(len(spectra.stars), NAN)
    known: dict[tuple[str, bytes], dict] = {}  # all and frozen are often the same spectra
    for measure in dict.fromkeys((*new, *(old or {}))):
        due = np.zeros(len(nothing), dtype=bool)
        for errors in (new, old or {}):
            due |= errors[measure].due if measure in errors else False
        of_new, of_old = (errors[measure].values if measure in errors else nothing for errors in (new, old or {}))
        for population, member in populations(spectra.new_star).items():
            for by, name, inside in _parts(kind, measure, spectra):
                rows = np.flatnonzero(due & member & inside)
                if len(rows):
                    key = (measure, rows.tobytes())
                    if key not in known:
                        known[key] = _figures(of_new[rows], of_old[rows] if old is not None else None, spectra, rows)
                    unit = LABEL[measure].unit if measure in LABEL else ""
                    yield Entry(
                        kind=kind, population=population, by=by, bin=name, measure=measure, unit=unit, **known[key]
                    )


def populations(new_star: np.ndarray) -> dict[Population, np.ndarray]:
    """Which of n spectra belong to each: all, those of stars that older releases held, those of new stars."""
    return {"all": np.ones_like(new_star), "frozen": ~new_star, "new": new_star}


def _parts(kind: SpectraKind, measure: str, spectra: Spectra) -> Iterator[tuple[By, str, np.ndarray]]:
    """By what, name of the bin, and which spectra (n,) are in it."""
    everywhere = np.ones(len(spectra.stars), dtype=bool)
    yield "overall", "", everywhere
    if kind == "generative" or is_coverage(measure):
        return
    of = {"snr": spectra.snr, "era": spectra.mjd} | {name: spectra.truth[name] for name in INTRINSIC}
    for by in BYS[1:]:
        values, names = of[by], (*bin_names(by), UNKNOWN)
        edges = spectra.changes_mjd[:1] if by == "era" else EDGES[by]
        number = np.where(np.isfinite(values), np.digitize(values, edges), len(names) - 1)
        if (number < len(names) - 1).any():
            yield from ((by, name, number == place) for place, name in enumerate(names))


def _figures(new: np.ndarray, old: np.ndarray | None, spectra: Spectra, rows: np.ndarray) -> dict:
    """The numbers of an entry, from errors (n,) of both models where there should be some."""
    stars = spectra.stars[rows]
    figures = {
        "new": _mean(new, stars),
        "by_spectrum_new": float(new.mean()),
        "failed_new": int((~np.isfinite(new)).sum()),
        "spectra": len(rows),
        "stars": len(np.unique(stars)),
    }
    if old is None:
        return figures
    both = paired(old, new, stars)
    failed_new, failed_old = figures["failed_new"], int((~np.isfinite(old)).sum())
    notes = {
        "the new model does not have it": failed_new == len(rows),
        "the old model does not have it": failed_old == len(rows),
        f"fewer than {FEWEST_STARS} stars: no interval": 0 < both.stars < FEWEST_STARS,
    }
    return figures | {
        "old": _mean(old, stars),
        "by_spectrum_old": float(old.mean()),
        "reference": both.old,
        "difference": both.difference,
        "low": both.low,
        "high": both.high,
        "p_value": both.p_value,
        "failed_old": failed_old,
        "note": "; ".join(note for note, holds in notes.items() if holds),
    }


def _mean(errors: np.ndarray, stars: np.ndarray) -> float:
    """Every star counts once; NaN where a prediction failed."""
    return float(mean_by_star(errors, stars).mean()) if np.isfinite(errors).all() else NAN
