"""The figures of an evaluation, drawn from the tables beside its report, without model or release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.columns import read_columns
from harps_dist.errors import ConfigError
from harps_dist.evaluation.calibration import Calibration
from harps_dist.evaluation.calibration_report import calibration_figure
from harps_dist.evaluation.captions import brightest
from harps_dist.evaluation.figures import intervention_figure, parts_figure, residual_figure, spectrum_figure
from harps_dist.evaluation.page import EVALUATION_PAGE, write_page
from harps_dist.evaluation.report import EVALUATED, SCORES, origin_name, read_scores
from harps_dist.evaluation.templates import PAGE
from harps_dist.ownership import claimed
from harps_dist.spectra.labels import INTRINSIC, LABEL

Columns = dict[str, np.ndarray]
PREDICTIONS, SPECTRUM, PARTS = "predictions.parquet", "spectrum.parquet", "parts.parquet"
INTERVENTIONS = {f"{label}_intervention.parquet": label for label in ("rv", *INTRINSIC)}
TABLES = (PREDICTIONS, SPECTRUM, PARTS, *INTERVENTIONS)


def draw(
    folder: Path, labels: Sequence[str], calibrated: Sequence[Calibration], origin: str, split: str
) -> dict[str, Path]:
    """Draw every figure that the tables in a folder allow; caption to PNG beside them.

    labels: those that are predicted. calibrated: of the labels whose uncertainty is. origin, split: what titles call
    the spectra. predictions.parquet: a row a spectrum. spectrum.parquet: wave_aa, observed and reconstructed, a row a
    pixel. parts.parquet: wave_aa, reconstructed, and the star, sky and continuum behind it.
    LABEL_intervention.parquet: change of the label, wave_aa, and the spectra without (base), after (decoded) and that
    should be (due).
    """
    predictions, figures = _read(folder / PREDICTIONS), {}
    if calibrated:
        path = figures["Calibration of the uncertainties"] = folder / "calibration.png"
        calibration_figure(path, calibrated)
    if labels:
        path = figures["Residuals by label"] = folder / "residuals.png"
        truth, predicted = (np.stack([predictions[f"{name}{end}"] for name in labels], axis=1) for end in ("_true", ""))
        residual_figure(path, truth, predicted, labels, predictions["star"], f"{origin}, {split} split")
    if (folder / SPECTRUM).is_file():
        spectrum = _read(folder / SPECTRUM)
        path = figures["Spectrum and reconstruction"] = folder / "spectrum.png"
        title = f"{brightest(predictions)}, {origin}"
        spectrum_figure(path, spectrum["wave_aa"], spectrum["observed"], spectrum["reconstructed"], title)
    if (folder / PARTS).is_file():
        path = figures["What the reconstruction is made of"] = folder / "parts.png"
        parts_figure(path, _read(folder / PARTS), f"{brightest(predictions)}, {origin}")
    for table, label in INTERVENTIONS.items():
        if (folder / table).is_file():
            caption = f"Intervention{' on the radial velocity' if label == 'rv' else f's on {label}'}"
            path = figures[caption] = (folder / table).with_suffix(".png")
            intervention_figure(path, *_curves(_read(folder / table)), label, LABEL[label].unit)
    return figures


def redraw(folder: Path) -> list[str]:
    """Draw the figures of an evaluation anew from its tables, and write its page; returns a line for each, and one on
    what is left. The page's is the last.

    No model, release or GPU takes part. A figure whose table an older version did not keep is left as it is. Raises
    ConfigError, before anything is drawn, where nothing was evaluated there or a table is missing or damaged.
    """
    reports = sorted(path.parent for path in folder.glob(f"*/{SCORES}"))
    if not reports:
        raise ConfigError(f"{folder} holds no evaluation: no folder in it has a {SCORES}. Evaluate the run first.")
    with claimed(folder, EVALUATED, (folder / PAGE, EVALUATION_PAGE)):
        checked = {report: _checked(report) for report in reports}
        lines, left = [], []
        for report, scores in checked.items():
            drawn = _drawn(report, scores)
            lines += [f"{caption}: {path}" for caption, path in drawn.items()]
            left += [f"{caption} ({report.name})" for caption in scores["figures"] if caption not in drawn]
        write_page(folder)
    if left:
        lines.append(f"Not drawn anew, since their tables were not kept: {', '.join(left)}. Evaluate the run again.")
    return [*lines, f"Page: {folder / PAGE}"]


def _checked(folder: Path) -> dict[str, Any]:
    """scores.json of a report whose predictions are there and whose tables are those it was written with."""
    scores = read_scores(folder, TABLES)
    if not (folder / PREDICTIONS).is_file():  # reports of an older version do not say which tables they have
        raise ConfigError(f"{folder / PREDICTIONS} is missing: figures are drawn from it. Evaluate the run again.")
    for table in TABLES:
        _read(folder / table)
    return scores


def _drawn(folder: Path, scores: Mapping[str, Any]) -> dict[str, Path]:
    calibrated = [Calibration.of(content) for content in scores.get("calibrations", ())]
    labels = [label["name"] for label in scores["labels"]]
    origin = origin_name(scores["origin"], scores.get("not_genuine", "not genuine"))
    return draw(folder, labels, calibrated, origin, scores["split"])


def _read(path: Path) -> Columns:
    """Columns of a table; none where it is missing. Raises ConfigError where it cannot be read."""
    try:
        return read_columns(path) or {}
    except (OSError, ValueError) as error:  # pyarrow's are such
        raise ConfigError(f"{path} is damaged: {error} Evaluate the run again.") from None


def _curves(table: Columns) -> tuple[np.ndarray, np.ndarray, dict[float, tuple[np.ndarray, np.ndarray]]]:
    """Wavelengths, the spectrum without intervention, and (decoded, due) by change."""
    of = {float(change): table["change"] == change for change in np.unique(table["change"])}
    first = next(iter(of.values()))
    changes = {change: (table["decoded"][rows], table["due"][rows]) for change, rows in of.items()}
    return table["wave_aa"][first], table["base"][first], changes
