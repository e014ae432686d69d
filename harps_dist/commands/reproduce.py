"""The paper's tables and figures from runs: `torchrun --nproc_per_node=4 launch/reproduce.py RUNS [--train missing] …`.

Reads RUNS/RECIPE/evaluation of every recipe behind Tables 3-9 and Figs. 1-8 and D.1, and RUNS/speed*.json and
RUNS/genuine*.json of `benchmark speed` and `benchmark genuine`; writes RUNS/index.html, which holds all of it beside
what is printed, tables.md, tables.json and figures/*.png. With --train missing it first trains and evaluates what is
not there; interrupted, it goes on where it was.

Example: `harps-dist reproduce runs --train missing --scale demo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from harps_dist.config import Precision


@dataclass
class Arguments:
    """The command line."""

    runs: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Folder of runs, each named as its recipe."""
    train: Literal["none", "missing"] = "none"
    """Train and evaluate what is missing, or nothing."""
    scale: Literal["paper", "demo"] = "paper"
    """The paper's recipes, or those of the demo."""
    release: str = "demo"
    """Release to train and evaluate on: a folder, a URL, or "demo" for the embedded one."""
    steps: int | None = None
    """Steps of runs that are trained; default is what their recipes say."""
    precision: Precision | None = None
    """Precision of runs that are trained; default is what their recipes say."""
    sweeps: bool = False
    """Train Figs. 2 and D.1 too."""
    slurm: str | None = None
    """Options of sbatch, as "--gres=gpu:4": submit what is missing as arrays, and a report that follows them."""
    only: str | None = None
    """Recipe that alone is trained and evaluated, without a report."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.cluster.submit import submit_rows
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.paper.reproduce import check_outputs, complete, missing_rows, reproduce
    from harps_dist.ranks.world import join_world

    demo, changes = arguments.scale == "demo", {"steps": arguments.steps, "precision": arguments.precision}
    changes = {name: value for name, value in changes.items() if value is not None}
    with join_world() as world:
        console = console_for(quiet=not world.is_main)
        release = open_release(world, arguments.release)
        rows = [arguments.only] if arguments.only else []
        if arguments.train == "missing":
            rows = missing_rows(arguments.runs, release, demo, arguments.sweeps)
        world.of_main(lambda: check_outputs(arguments.runs, rows))
        if arguments.slurm is not None:
            settings = {"scale": arguments.scale, "release": arguments.release, **changes}
            jobs = submit_rows(rows, arguments.runs, settings, arguments.slurm)
            console.print(f"submitted jobs {', '.join(jobs)}")
            return 0
        for name in rows:
            complete(name, arguments.runs, release, arguments.release, changes, world, console)
        if world.is_main and not arguments.only:
            made = reproduce(arguments.runs, demo, release)
            for table in made.tables:
                console.print(table.console())
            console.print(f"Page: {arguments.runs / 'index.html'}", soft_wrap=True)
    return 0
