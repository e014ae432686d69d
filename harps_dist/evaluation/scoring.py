"""From predictions to a report: errors of labels, means of scores, calibration.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from harps_dist.data.split import SplitName
from harps_dist.evaluation.calibration import Calibration, LabelPredictions, calibrate
from harps_dist.evaluation.measures import COMPARABLE, MAE, MEASURE, Measured, SpectraKind, label_measure
from harps_dist.evaluation.metrics import group_scores, label_scores, paper_comparable
from harps_dist.evaluation.predicting import Evaluator, Predictions
from harps_dist.evaluation.printed import PAPER_ROWS
from harps_dist.evaluation.report import Report
from harps_dist.models.refine import refined_labels
from harps_dist.runs.run import label_scale
from harps_dist.spectra.labels import INTRINSIC, NAMES

REFINED = "{} are refined by Gauss-Newton steps on what the model draws."
BLANKED = "Labels are medians over {} blankings, whose spread is a part of the uncertainties that are predicted."
DOWNSTREAM_NOTE = (
    "The labels come from the latent means by ordinary least squares (Eq. 6), fitted on the training split, each "
    "latent with the labels of its own spectrum. The paper's public code joins them by a mismatched row index, so "
    "the printed Table 6 reads like predicting the mean label and may differ much."
)


def score(
    evaluator: Evaluator,
    name: str,
    step: int,
    kind: SpectraKind,
    split: SplitName | Literal["all"],
    predictions: Predictions,
    calibrated: Sequence[Calibration],
    figures: Mapping[str, Path],
) -> Report:
    """The report of predictions of a kind and split. name, step: of the run and its checkpoint. calibrated: see
    `calibrations`. figures: caption to file."""
    release, rows = evaluator.release, predictions.rows
    stars = release.index["star"][rows].astype(str)
    known = predicted_labels(predictions)
    columns = [NAMES.index(label) for label in known]
    truth, labels = predictions.truth[:, columns], predictions.labels[:, columns]
    _, sigma = label_scale(release.manifest, evaluator.recipe.data.augment)
    sigma |= dict(zip(evaluator.model.labels, evaluator.model.label_std.tolist(), strict=True))
    notes = [release.manifest.description] if release.manifest.description else []
    refined = refined_labels(evaluator.refine, evaluator.model.labels)
    notes += [REFINED.format(", ".join(refined))] if refined else []
    notes += [BLANKED.format(evaluator.samples)] if evaluator.samples else []
    row = name.removeprefix("demo-")
    return Report(
        run=name,
        step=step,
        release_digest=release.digest,
        split=split,
        origin=evaluator.origin(kind),
        not_genuine=release.manifest.not_genuine,
        spectra=len(rows),
        stars=len(np.unique(stars)),
        labels=label_scores(truth, labels, known, sigma, stars),
        groups=group_scores(truth, labels, known, sigma, stars) if known else (),
        measures=measured(predictions, release.index["varied"][rows], stars, float(evaluator.valid.mean())),
        calibrations=calibrated,
        paper_row=row if row in PAPER_ROWS else None,
        figures=figures,
        notes=[*notes, DOWNSTREAM_NOTE] if evaluator.unsupervised else notes,
    )


def predicted_labels(predictions: Predictions) -> list[str]:
    """Labels that the model predicts, or that were fitted on its nodes."""
    return [name for name, column in zip(NAMES, predictions.labels.T, strict=True) if np.isfinite(column).any()]


def calibrations(evaluator: Evaluator, predictions: Predictions, held_out: Predictions | None) -> list[Calibration]:
    """Calibration of every label that has an uncertainty. held_out: corrects it, see `Evaluator.predict_held_out`."""
    likelihood, index = evaluator.model.uncertainty, evaluator.release.index
    if likelihood == "none" or held_out is None:
        return []

    def of_label(name: str, said: Predictions) -> LabelPredictions:
        column, rows = NAMES.index(name), said.rows
        return LabelPredictions(
            truth=said.truth[:, column],
            predicted=said.labels[:, column],
            sigma=said.scores[f"{name}_sigma"],
            stars=index["star"][rows].astype(str),
            snr=index["snr"][rows],
            teff_k=said.truth[:, NAMES.index("teff")],
        )

    labels = [name for name in evaluator.model.labels if np.isfinite(of_label(name, predictions).truth).any()]
    return [calibrate(name, of_label(name, predictions), of_label(name, held_out), likelihood) for name in labels]


def measured(predictions: Predictions, varied: np.ndarray, stars: np.ndarray, valid: float) -> list[Measured]:
    """The mean of every score; of those of the generative set by the label that was varied."""
    means = []
    for name, values in predictions.scores.items():
        if name == MAE.name:
            comparable = paper_comparable(values, valid)
            means.append(Measured.of(name, values, stars))
            means.append(Measured.of(COMPARABLE.name, comparable, stars, "masked zeros averaged in"))
        elif name in MEASURE and MEASURE[name].of_label:
            of_label = {label: varied == label for label in INTRINSIC}
            means += [
                Measured.of(label_measure(name, key), values[rows], stars[rows]) for key, rows in of_label.items()
            ]
        elif not name.endswith("_sigma"):
            means.append(Measured.of(name, values, stars))
    return means
