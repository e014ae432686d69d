"""Evaluate a run: `torchrun --nproc_per_node=4 launch/evaluate.py RUN [--release R] [--split test]`.

Writes RUN/evaluation/SPLIT-KIND/: report.md, scores.csv, scores.json, predictions.parquet and figures, for the observed
(real) and the simulated spectra of the release and its generative set, and prints the tables of label errors.
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
    """run: folder that train.py wrote. release: default is the one it was trained on. out: default is
    RUN/evaluation."""

    run: Annotated[Path, tyro.conf.Positional]
    release: str | None = None
    split: Literal["train", "validation", "test", "all"] = "test"
    out: Path | None = None


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    from harps_dist.console import console_for
    from harps_dist.data.reader import Release
    from harps_dist.evaluation.evaluate import evaluate_run
    from harps_dist.evaluation.report import print_report
    from harps_dist.training.distributed import join_world
    from harps_dist.training.run import read_run
    from preprocessing.demo import resolve_release

    out = arguments.out or arguments.run / "evaluation"
    with join_world() as world:
        data = read_run(arguments.run).recipe.data
        release = Release(resolve_release(arguments.release or data.release), data.cache)
        console = console_for(quiet=not world.is_main)
        for folder, report in evaluate_run(arguments.run, release, arguments.split, out, world, console).items():
            print_report(report, folder, console)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HarpsDistError as error:
        sys.exit(f"{type(error).__name__}: {error}")
