"""Evaluate a run: predict every sample of a split once, score, draw, and write it all beside the run.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from rich.console import Console

from harps_dist.data.reader import Release
from harps_dist.data.split import SplitName
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.evaluation.drawing import PREDICTIONS, TABLES, draw
from harps_dist.evaluation.measures import SpectraKind
from harps_dist.evaluation.predicting import Columns, Evaluator, Predictions
from harps_dist.evaluation.report import EVALUATED, Report
from harps_dist.evaluation.scoring import calibrations, predicted_labels, score
from harps_dist.files import atomic_write
from harps_dist.ownership import claimed
from harps_dist.ranks.world import World
from harps_dist.runs.run import Run, Which
from harps_dist.sealed import sealed, unsealed
from harps_dist.spectra.labels import NAMES

EVALUATION = "evaluation"


def evaluate_run(
    run: Path,
    release: Release,
    split: SplitName | Literal["all"],
    out: Path,
    world: World,
    console: Console,
    which: Which = "newest",
) -> dict[Path, Report]:
    """Evaluate a run's newest or best checkpoint on every kind of spectrum; folder out/SPLIT-KIND to its report, on the
    main rank. Raises OutputError, on all ranks, where `out` is something else or another process evaluates into it."""
    with world.claiming(lambda: claimed(out, EVALUATED)):
        opened = Run(run)
        name, step = opened.name, opened.checkpoint(which).step
        evaluator = Evaluator(opened.model(which, release.manifest), opened.recipe, release, world, console)
        folders = {kind: out / f"{split}-{kind}" for kind in evaluator.kinds}
        reports = {folder: evaluate(evaluator, name, step, kind, split, folder) for kind, folder in folders.items()}
        if world.is_main:
            with atomic_write(out / f"{split}.json") as aside:
                aside.write_text(json.dumps(sealed({"step": step, "release_digest": release.digest})) + "\n")
    return {folder: report for folder, report in reports.items() if report}


def is_evaluated(run: Path, release: Release, split: SplitName | Literal["all"]) -> bool:
    """Whether a run's newest checkpoint has been evaluated on every kind of spectrum of this release.

    A run without a checkpoint that is whole has not: it is trained on first.
    """
    path = run / EVALUATION / f"{split}.json"
    try:
        step = Run(run).checkpoint().step
        stated = unsealed(json.loads(path.read_text(encoding="utf-8")), required=False)
    except (ConfigError, ResumeError, OSError, ValueError):
        return False
    return stated == {"step": step, "release_digest": release.digest}


def evaluate(
    evaluator: Evaluator, name: str, step: int, kind: SpectraKind, split: SplitName | Literal["all"], folder: Path
) -> Report | None:
    """Evaluate one kind and split into `folder`; None where the release has no such sample, or on other ranks."""
    release = evaluator.release
    if not len(release.index.rows(kind, split)):
        return None
    predictions = evaluator.predict_split(kind, split)
    held_out = evaluator.predict_held_out(kind)
    if not evaluator.world.is_main:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for table in TABLES:  # of an evaluation before, which this one may not have
        (folder / table).unlink(missing_ok=True)
    write_predictions(folder / PREDICTIONS, release, predictions)
    for curve, columns in evaluator.curves(kind, predictions.rows).items():
        _write_table(folder / f"{curve}.parquet", columns)
    calibrated = calibrations(evaluator, predictions, held_out)
    figures = draw(folder, predicted_labels(predictions), calibrated, evaluator.origin_name(kind), split)
    report = score(evaluator, name, step, kind, split, predictions, calibrated, figures)
    report.write(folder)
    return report


Writing = Callable[[Path], AbstractContextManager[Path]]  # such as `atomic_write`


def write_predictions(path: Path, release: Release, predictions: Predictions, writing: Writing = atomic_write) -> None:
    """One row a sample: key, object, star, split, S/N, true and predicted labels, scores."""
    index = release.index
    columns = {name: index[name][predictions.rows] for name in ("key", "object", "star", "split", "snr", "varied")}
    columns |= {f"{name}_true": predictions.truth[:, number] for number, name in enumerate(NAMES)}
    columns |= {name: predictions.labels[:, number] for number, name in enumerate(NAMES)}
    _write_table(path, columns | predictions.scores, writing)


def _write_table(path: Path, columns: Columns, writing: Writing = atomic_write) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with writing(path) as aside:
        pq.write_table(pa.table(columns), aside)
