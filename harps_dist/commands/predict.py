"""Labels of spectra: `torchrun --nproc_per_node=4 launch/predict.py RUN_OR_EXPORT INPUT… -o labels.fits [--latents]`.

INPUT is ESO Phase 3 products or DRS s1d files, folders, patterns, an archive or a release. Writes one row an exposure
as FITS, ECSV, CSV or Parquet, by the table's ending, and what could not be predicted with its reason to
TABLE.failed.csv. Of an exposure in several forms, that of the newest pipeline has the row and names the others.
Interrupted or killed, the same command goes on; with new files in a folder, it predicts these alone.

Example: `harps-dist predict model spectra -o labels.fits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from harps_dist.data.reader import Release


@dataclass
class Arguments:
    """The command line."""

    model: Annotated[Path, tyro.conf.Positional]
    """Folder that export.py wrote, or a run, which is exported to RUN/export first."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files, folders, patterns, an archive or a release."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Table to write: FITS, ECSV, CSV or Parquet, by its ending."""
    latents: bool = False
    """Write the latent vectors too."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the encoder; auto is fp32, so that labels do not depend on where they were predicted."""
    refine: Literal["nothing", "velocities", "labels"] = "nothing"
    """What is refined by Gauss-Newton steps on what the model draws: velocities (rv, berv), all labels, or nothing."""
    samples: int = 0
    """Predict by so many blankings, such as 16: their median, and their spread as a part of the uncertainty.
    Takes as many times as long, and a model that was trained with blanked pieces.
    """
    fits: Path | None = None
    """Table that `harps-dist fit` wrote of the same spectra.
    Where a label differs from the fit's by more than 3 combined standard deviations, the flag fit_disagrees says so.
    """
    batch_size: int = 16
    """Spectra that are predicted at once."""
    workers: int = 0
    """Processes of each rank that read files."""
    checkpoint: Literal["newest", "best"] = "best"
    """Checkpoint of a run that is exported: that with the least validation loss, or the newest."""
    release: str | None = None
    """Release that calibrates a run that is exported; default is the one that it was trained on."""
    max_minutes: float | None = None
    """Stop after so long, to be continued [min]."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.commands.releases import release_for
    from harps_dist.console import console_for
    from harps_dist.formats.fit_tables import read_fits
    from harps_dist.inference.predict import check_table, open_model, predict_files
    from harps_dist.progress import progress_bars
    from harps_dist.ranks.world import World, join_world
    from harps_dist.runs.run import Run

    with join_world(arguments.max_minutes) as world, progress_bars(quiet=not world.is_main) as progress:
        world.of_main(lambda: check_table(arguments.output))
        fits = world.of_main(partial(read_fits, arguments.fits)) if arguments.fits else None

        def calibrating() -> Release:  # on the main rank alone
            return release_for(Run(arguments.model), arguments.release, World.alone(world.device))

        exported = open_model(arguments.model, calibrating, world, arguments.checkpoint, progress, arguments.precision)
        report = predict_files(
            exported,
            arguments.inputs,
            arguments.output,
            arguments.latents,
            arguments.batch_size,
            arguments.workers,
            world,
            progress,
            arguments.refine,
            arguments.samples,
            fits,
        )
    console = console_for(quiet=not world.is_main)
    for line in report.lines("predicted", f", in {exported.computing.precision}"):
        console.print(line, soft_wrap=True)
    return 1 if report.failed else 0
