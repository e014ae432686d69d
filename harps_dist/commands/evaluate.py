"""Evaluate a run: `torchrun --nproc_per_node=4 launch/evaluate.py RUN [--release R] [--split test]`.

Writes RUN/evaluation/SPLIT-KIND/: report.md, scores.csv, scores.json, predictions.parquet and figures as PNG and PDF,
for the observed (real) and the simulated spectra of the release and its generative set, and prints one table of
them. RUN/evaluation/index.html shows all of it on one page that needs no other file, with how the run learned.
`launch/evaluate.py RUN --redraw` makes figures and page of what was evaluated anew, without model, release or GPU.

Example: `harps-dist evaluate runs/first --split validation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class Arguments:
    """The command line."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that train.py wrote."""
    release: str | None = None
    """Release that is predicted; default is the one that the run was trained on."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Which of its spectra are predicted."""
    checkpoint: Literal["newest", "best"] = "newest"
    """Checkpoint of the run: the newest, or that with the least validation loss."""
    out: Path | None = None
    """Folder of the reports; default is RUN/evaluation."""
    refine: Literal["nothing", "velocities", "labels"] = "nothing"
    """What is refined by Gauss-Newton steps on what the model draws: velocities (rv, berv), all labels, or nothing."""
    samples: int = 0
    """Read labels by so many blankings, such as 16: their median, and their spread as a part of the uncertainty.
    Takes as many times as long, and a model that was trained with blanked pieces.
    """
    redraw: bool = False
    """Draw the figures of every evaluation in OUT anew from its tables and write its page, whatever else is given."""
    max_minutes: float | None = None
    """Stop after so long, to be continued [min]."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.console import console_for

    out = arguments.out or arguments.run / "evaluation"
    if arguments.redraw:
        from harps_dist.evaluation.drawing import redraw

        for line in redraw(out):
            console_for().print(line, soft_wrap=True)
        return 0
    from harps_dist.commands.releases import release_for
    from harps_dist.evaluation.evaluate import evaluate_run
    from harps_dist.evaluation.terminal import console_table
    from harps_dist.ranks.world import join_world
    from harps_dist.runs.run import Run

    with join_world(arguments.max_minutes) as world:
        release = release_for(Run(arguments.run), arguments.release, world)
        console = console_for(quiet=not world.is_main)
        reports = evaluate_run(
            *(arguments.run, release, arguments.split, out, world, console),
            *(arguments.checkpoint, arguments.refine, arguments.samples),
        )
        if reports:
            console.print(console_table(list(reports.values())))
        console.print(f"Page: {out / 'index.html'}", soft_wrap=True)
    return 0
