"""Export a run for others to use: `launch/export.py RUN DIR [--release R] [--checkpoint best]`.

Writes DIR/model.safetensors, config.json, reference.safetensors and README.md, a model card with what the model was
trained on, its errors and how far its uncertainties can be trusted. `harps_dist.load(DIR)` opens it.

Example: `harps-dist export runs/first model`.
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
    folder: Annotated[Path, tyro.conf.Positional]
    """Folder that the export goes to."""
    release: str | None = None
    """Release that calibrates and scores it; default is the one that the run was trained on."""
    checkpoint: Literal["newest", "best"] = "best"
    """Checkpoint of the run: that with the least validation loss, or the newest."""
    spectra: int = 2048
    """Most spectra of a kind and split that are tried."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.commands.releases import release_for
    from harps_dist.console import console_for
    from harps_dist.inference.export import export_run
    from harps_dist.progress import progress_bars
    from harps_dist.ranks.world import join_world
    from harps_dist.runs.run import Run

    with join_world() as world, progress_bars() as progress:
        release = release_for(Run(arguments.run), arguments.release, world)
        folder = export_run(
            arguments.run,
            arguments.folder,
            release,
            arguments.checkpoint,
            arguments.spectra,
            progress,
            world.device,
        )
        console_for().print(f"{folder}: {folder / 'README.md'} says what it is", soft_wrap=True)
    return 0
