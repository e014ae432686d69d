"""Calibration in tables and a figure.

Tested in tests/unit/test_calibration.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harps_dist.evaluation.calibration import LEVELS, PIT_BINS, Calibration
from harps_dist.evaluation.figures import BLACK, BLUE, GREY, VERMILLION, styled_figure
from harps_dist.spectra.labels import LABEL
from harps_dist.text import NAN, Shown, format_pair, format_value, markdown_table


def calibration_tables(calibrations: Sequence[Calibration]) -> str:
    """`calibration_rows` as Markdown."""
    return "\n\n".join(markdown_table(*table) for table in calibration_rows(calibrations))


def calibration_rows(calibrations: Sequence[Calibration]) -> tuple[Shown, Shown]:
    """Coverage of every label, then by bins."""
    header = ["label", "level", "coverage", "± by star", "conformal", "factor", "PIT distance", "spectra", "stars"]
    rows: list[list[str]] = []
    bins: list[list[str]] = []
    for label in calibrations:
        for place, at in enumerate(label.coverage):
            first = [f"{label.ks:.3f}", f"{label.spectra:,}", f"{label.stars:,}"]
            rows.append(
                [
                    label.name if not place else "",
                    f"{at.level:.0%}",
                    format_pair(at.raw, at.error),
                    format_value(at.error_stars, at.error_stars),
                    format_value(at.conformal, at.error),
                    f"{at.factor:.2f} σ" if np.isfinite(at.factor) else "∞",
                    *(first if not place else ["", "", ""]),
                ]
            )
        for part in label.bins:
            shares = [f"{raw:.2f} / {conformal:.2f}" for raw, conformal in zip(part.raw, part.conformal, strict=True)]
            limits = f"{part.low:.0f}-{part.high:.0f}" + (" K" if part.by == "teff" else "")
            by = LABEL["teff"].name if part.by == "teff" else "S/N"
            bins.append([label.name, f"{by} {limits}", *shares, f"{part.spectra:,}", f"{part.stars:,}"])
    of_bins = ["label", "bin", *(f"{level:.0%}: raw / conformal" for level in LEVELS), "spectra", "stars"]
    return (header, rows), (of_bins, bins)


def calibration_figure(path: Path, calibrations: Sequence[Calibration]) -> None:
    """PIT of every label, and observed against nominal coverage."""
    columns = len(calibrations)
    with styled_figure(path, 2.2 * columns + 0.5, 4.6) as figure:
        panels = figure.subplots(2, columns, squeeze=False, sharey="row")
        edges = np.linspace(0, 1, PIT_BINS + 1)
        for (top, beneath), label in zip(panels.T, calibrations, strict=True):
            expected = 1 / PIT_BINS
            spread = (expected * (1 - expected) / max(1, label.stars)) ** 0.5
            top.axhspan(expected - spread, expected + spread, color=GREY, alpha=0.25, linewidth=0)
            top.axhline(expected, color=BLACK, linewidth=0.8)
            top.stairs(label.pit, edges, color=BLUE, linewidth=1.4)
            top.set(title=LABEL[label.name].symbol, xlabel="PIT", xlim=(0, 1))
            levels = [at.level for at in label.coverage]
            beneath.plot([0.6, 1], [0.6, 1], color=BLACK, linewidth=0.8)
            error = [np.nan_to_num(at.error_stars) for at in label.coverage]
            beneath.errorbar(
                levels, [at.raw for at in label.coverage], error, color=BLUE, fmt="o-", capsize=2, label="predicted"
            )
            conformal = [at.conformal if np.isfinite(at.factor) else NAN for at in label.coverage]
            beneath.plot(levels, conformal, "s--", color=VERMILLION, markersize=5, label="conformal")
            beneath.set(xlabel="nominal", xlim=(0.6, 1))
        panels[0, 0].set_ylim(bottom=0)
        panels[0, 0].set_ylabel("share of spectra")
        panels[1, 0].set_ylabel("observed coverage")
        figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
