"""Labels of spectra by least squares of simulated ones: `launch/fit.py INPUT… -o fits.ecsv [--model MODEL]`.

INPUT is ESO Phase 3 products or DRS s1d files, folders, patterns, an archive or a release. Fits the packaged model
spectra, tellurics and a continuum to 5990-6318 Å. Writes one row a spectrum as FITS, ECSV, CSV or Parquet, by the
table's ending, and what could not be fitted with its reason to TABLE.failed.csv. Interrupted or killed, the same
command goes on.

Example: `harps-dist fit spectra -o fits.ecsv --figures figures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Arguments:
    """The command line."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files, folders, patterns, an archive or a release."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Table to write: FITS, ECSV, CSV or Parquet, by its ending."""
    model: Path | None = None
    """Folder that export.py wrote: its network says where fits begin; without it cross-correlation does."""
    stars: Path | None = None
    """Run or export of a model with physics, whose stars at rest are fitted instead of the packaged ones."""
    lines: Path | None = None
    """Corrections of line depths that `harps-dist lines` learned from another star."""
    vmic: float | None = None
    """Microturbulence to hold [km/s]; without it the fit looks for it."""
    free_berv: bool = False
    """Look for the barycentric velocity too, where the header has it."""
    continuum: int = 16
    """Degree of the Chebyshev polynomial that stands for the continuum."""
    figures: Path | None = None
    """Folder for a figure of every spectrum that is fitted now: data, model, residual, clipped pixels."""
    batch_size: int = 8
    """Spectra that are fitted at once."""
    workers: int = 0
    """Processes of each rank that read files."""
    max_minutes: float | None = None
    """Stop after so long, to be continued [min]."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.console import console_for
    from harps_dist.fitting.emulated import emulated
    from harps_dist.fitting.files import check_outputs, fit_files
    from harps_dist.fitting.fitter import Fitter, Held, Settings, fitting_grid
    from harps_dist.fitting.stellar import with_lines
    from harps_dist.inference.model import load
    from harps_dist.progress import progress_bars
    from harps_dist.ranks.world import join_world

    with join_world(arguments.max_minutes) as world, progress_bars(quiet=not world.is_main) as progress:
        world.of_main(lambda: check_outputs(arguments.output, arguments.figures))
        network = load(arguments.model, world.device) if arguments.model else None
        held = Held({} if arguments.vmic is None else {"vmic": arguments.vmic}, not arguments.free_berv)
        stars = with_lines(emulated(arguments.stars, world.device), arguments.lines, world.device)
        grid, settings = fitting_grid(network.grid if network else None), Settings(continuum=arguments.continuum)
        report = fit_files(
            Fitter(grid, stars, held, settings, world.device),
            arguments.inputs,
            arguments.output,
            network,
            arguments.figures,
            arguments.batch_size,
            arguments.workers,
            world,
            progress,
        )
    console = console_for(quiet=not world.is_main)
    for line in report.lines("fitted"):
        console.print(line, soft_wrap=True)
    return 1 if report.failed else 0
