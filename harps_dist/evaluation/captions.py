"""What the figures of an evaluation show: what lines and colours mean, and on how many spectra they rest.

Tested in tests/integration/test_evaluation_page.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from harps_dist.columns import read_columns
from harps_dist.spectra.labels import LABEL

if TYPE_CHECKING:
    from pathlib import Path

    from harps_dist.evaluation.report import Report

LEARNING = (
    "Above: mean loss of the training batches since the line before in the log (solid), and of the whole validation "
    "split (dashed), a colour for each part of the loss. Beneath: what the parts of a step took, one upon the other."
)


def brightest(predictions: Mapping[str, np.ndarray]) -> str:
    """Name and S/N of the spectrum that is drawn: the one of the highest S/N."""
    place = np.argmax(np.nan_to_num(predictions["snr"]))
    return f"{predictions['object'][place]}, S/N {predictions['snr'][place]:.0f}"


def caption(report: Report, path: Path) -> str:
    """What a figure of a report shows."""
    sample = f"{report.spectra:,} spectra of {report.stars:,} stars"
    if path.stem == "calibration":
        return (
            f"{sample}, of which those count that have the label. Above: distribution of the probability integral "
            "transform (blue). Black: the uniform one of exact uncertainties; grey: its standard error for as many "
            "stars. Beneath: share of truths within the central interval against the nominal share, as predicted "
            "(blue, bars: standard error by star) and after the conformal correction (orange); on the black line both "
            "agree."
        )
    if path.stem == "residuals":
        return (
            f"{sample}; each point is a spectrum. Circle: mean over the visits to a star, where there are several and "
            "the label is the star's own. Black line: no error. Orange, where a label has 32 spectra or more: running "
            "median, in bins of equally many spectra. Above each panel: mean absolute error, spectra that have the "
            "label, and how many lie outside the axes or failed."
        )
    if path.stem == "spectrum":
        predictions = read_columns(path.with_name("predictions.parquet")) or {}
        return (
            f"One spectrum, that of the highest S/N of {report.spectra:,}: {brightest(predictions)}. Black: observed; "
            "orange: reconstructed; gaps are invalid pixels. In the middle: their difference. Beneath: windows of it."
        )
    label = path.stem.removesuffix("_intervention")
    if label in LABEL:
        shifted = label == "rv" and report.origin in ("real", "observed-like")
        due = "the reconstruction, shifted" if shifted else "what the simulator makes of the new value, without noise"
        return (
            f"One spectrum of {report.spectra:,}, decoded again after its {LABEL[label].meaning} alone was changed "
            f"(orange, dashed), a panel for each change. Grey: decoded without a change. Black: what is due, {due}."
        )
    return f"{sample}."
