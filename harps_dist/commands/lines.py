"""Corrections of line depths from a star of known labels: `launch/lines.py INPUT… --teff T --logg G --mh M -o FILE`.

INPUT is ESO Phase 3 products or DRS s1d files, folders, patterns, an archive or a release, all of one star. What the
packaged model spectra lack in its lines is learned at rest over 5990-6318 Å, from the median over its visits; three or
more rid it of cosmic hits and tellurics. `harps-dist fit --lines lines.npz` and training
(`--data.augment.nuisance.lines lines.npz`) apply it to other stars.

Example: `harps-dist lines HARPS.2012*.fits --teff 5207 --logg 4.53 --mh 0.24 -o lines.npz`.
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
    """Files, folders, patterns, an archive or a release: spectra of one star."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """File of corrections to write, its name ending in .npz."""
    teff: float
    """Effective temperature of the star [K]."""
    logg: float
    """Surface gravity of the star, log g [dex]."""
    mh: float
    """Metallicity of the star, [M/H] [dex]."""
    vmic: float | None = None
    """Microturbulence of the star [km/s]; without it, what fits its spectra best is held."""
    continuum: int = 16
    """Degree of the Chebyshev polynomial that stands for the continuum."""
    workers: int = 0
    """Processes that read files."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.console import console_for
    from harps_dist.fitting.lines import learn_from_files
    from harps_dist.fitting.solve import Settings
    from harps_dist.progress import progress_bars

    labels = {"teff": arguments.teff, "logg": arguments.logg, "mh": arguments.mh}
    if arguments.vmic is not None:
        labels["vmic"] = arguments.vmic
    with progress_bars() as progress:
        report = learn_from_files(
            arguments.inputs,
            labels,
            arguments.output,
            Settings(continuum=arguments.continuum),
            arguments.workers,
            progress=progress,
        )
    console = console_for()
    for line in report.lines():
        console.print(line, soft_wrap=True)
    return 1 if report.failed else 0
