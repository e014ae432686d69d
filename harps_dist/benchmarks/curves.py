"""How runs learned, side by side, from their logs."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from harps_dist.errors import ConfigError
from harps_dist.evaluation.figures import curve_figure
from harps_dist.files import atomic_write
from harps_dist.ownership import OutputKind, claimed, first_line, png_file
from harps_dist.runs.log import read_log

FIGURE = png_file("figure of curves", "--out")
TABLE = OutputKind(
    "table of curves", "--out", lambda path: re.fullmatch(r"run,step,loss_\w+", first_line(path)) is not None
)


def draw_curves(runs: Sequence[Path], out: Path, loss: str) -> None:
    """Write a PNG of one part of the training loss against the step, and a CSV of the same numbers beside it.

    Raises ConfigError where a run has no log, or none of that part, or `out` is no PNG; OutputError where something
    else stands there.
    """
    table = out.with_suffix(".csv")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"expected a figure's name that ends in .png, got {out.name!r}. A CSV is written beside.")
    curves = {run.name: _curve(run, loss) for run in runs}
    with claimed(out, FIGURE, (table, TABLE)):
        curve_figure(out, curves, f"{loss} loss", FIGURE)
        with atomic_write(table) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "step", f"loss_{loss}"])
            writer.writerows([name, *point] for name, points in curves.items() for point in points)


def _curve(run: Path, loss: str) -> list[tuple[int, float]]:
    lines = read_log(run)
    points = [(line["step"], line[f"loss_{loss}"]) for line in lines if f"loss_{loss}" in line]
    if not points:
        parts = sorted({key.removeprefix("loss_") for line in lines for key in line if key.startswith("loss_")})
        raise ConfigError(
            f"{run} logged no {loss} loss; it has {', '.join(parts) or 'no log'}. "
            f"Give folders that train.py wrote, and one of their losses with --loss."
        )
    return points
