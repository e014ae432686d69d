"""The paper's tables from runs: `torchrun --nproc_per_node=4 launch/reproduce.py RUNS [--train missing] …`.

Reads RUNS/RECIPE/evaluation of every recipe behind Tables 4-8, and writes RUNS/tables.md, each cell beside the printed
one. With --train missing it first trains and evaluates what is not there; interrupted, it goes on where it was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from harps_dist.errors import HarpsDistError


@dataclass
class Arguments:
    """runs: folder of runs, each named as its recipe. train: whether to train and evaluate what is missing. scale: the
    paper's recipes, or those of the demo. steps, precision: of runs that are trained; default is their recipes'.
    sweeps: train Figs. 2 and D.1 too."""

    runs: Annotated[Path, tyro.conf.Positional] = Path("runs")
    train: Literal["none", "missing"] = "none"
    scale: Literal["paper", "demo"] = "paper"
    release: str = "demo"
    steps: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    sweeps: bool = False


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.console import console_for
    from harps_dist.data.reader import Release
    from harps_dist.evaluation.evaluate import evaluate_run
    from harps_dist.evaluation.reproduce import reproduced_tables, table_recipes, write_tables
    from harps_dist.recipes import find_recipe
    from harps_dist.training.distributed import join_world
    from harps_dist.training.loop import train_run
    from preprocessing.demo import resolve_release

    demo, changes = arguments.scale == "demo", {"steps": arguments.steps, "precision": arguments.precision}
    changes = {name: value for name, value in changes.items() if value is not None}
    with join_world() as world:
        console = console_for(quiet=not world.is_main)
        if world.is_main:
            resolve_release(arguments.release)
        world.barrier()
        release = Release(resolve_release(arguments.release))
        for name in table_recipes(demo, arguments.sweeps) if arguments.train == "missing" else ():
            run = arguments.runs / name
            recipe = find_recipe(name).changed(data={"release": arguments.release}, training=changes)
            train_run(recipe, name, release, run, world)
            if not (run / "evaluation/test-simulated/report.md").exists():  # the last that is written
                evaluate_run(run, release, "test", run / "evaluation", world, console)
                world.barrier()
        if world.is_main:
            tables = reproduced_tables(arguments.runs, demo)
            write_tables(tables, arguments.runs, release.manifest)
            for table in tables:
                console.print(table.console())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HarpsDistError as error:
        sys.exit(f"{type(error).__name__}: {error}")
