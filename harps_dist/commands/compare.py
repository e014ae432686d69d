"""A new model against an old one: `torchrun --nproc_per_node=4 launch/compare.py NEW [OLD] --release R [-o FOLDER]`.

Both predict the same spectra of the release. Writes comparison.json, which launch/promote.py judges, comparison.md and
figures: the error of every label and every score, on stars that older releases held (frozen), on new ones and on all,
by teff, logg, mh, S/N and era, paired by star. Interrupted, it goes on where it was; done, it does nothing again.

Example: `harps-dist compare runs/next models/current --release R2 -o runs/next/comparison`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Which = Literal["newest", "best"]


@dataclass
class Arguments:
    """The command line."""

    new: Annotated[Path, tyro.conf.Positional]
    """Folder that train.py wrote, or a model of a registry."""
    old: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder or model that it is compared with, such as models/current; before the first promotion there is none."""
    release: str | None = None
    """Release that both predict; default is the one that the new run was trained on."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Which of its spectra they predict."""
    checkpoint: Which = "newest"
    """Checkpoint of the new run: the newest, or that with the least validation loss."""
    old_checkpoint: Which = "newest"
    """Checkpoint of the old run, likewise."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of the comparison; default is NEW/comparison."""
    max_minutes: float | None = None
    """Stop after so long, to be continued [min]."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.commands.releases import release_for
    from harps_dist.console import console_for
    from harps_dist.promotion.compare import compare_runs
    from harps_dist.promotion.comparison_report import REPORT, comparison_table
    from harps_dist.ranks.world import join_world
    from harps_dist.runs.run import Run

    out = arguments.out or arguments.new / "comparison"
    with join_world(arguments.max_minutes) as world:
        release = release_for(Run(arguments.new), arguments.release, world)
        console = console_for(quiet=not world.is_main)
        which = (arguments.checkpoint, arguments.old_checkpoint)
        made = compare_runs(arguments.new, arguments.old, release, arguments.split, out, world, console, which)
        console.print(comparison_table(made, "frozen"), comparison_table(made, "new"))
        console.print(f"Report: {out / REPORT}", soft_wrap=True)
    return 0
