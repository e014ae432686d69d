"""Evaluate a run: predict every sample of a split once, score, draw, and write it all beside the run.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from rich.console import Console

from harps_dist import __version__
from harps_dist.data.reader import Release
from harps_dist.data.split import SPLITS, SplitName
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.evaluation.drawing import PREDICTIONS, TABLES, draw
from harps_dist.evaluation.measures import SpectraKind
from harps_dist.evaluation.page import EVALUATION_PAGE, write_page
from harps_dist.evaluation.predicting import Columns, Evaluator, Predictions, origin_of
from harps_dist.evaluation.record import Record, Sample, Training, read_record, seconds_of, thinned
from harps_dist.evaluation.report import EVALUATED, Report, origin_words
from harps_dist.evaluation.scoring import calibrations, predicted_labels, score
from harps_dist.evaluation.templates import PAGE
from harps_dist.files import atomic_write
from harps_dist.models.refine import Refinement
from harps_dist.ownership import claimed
from harps_dist.ranks.world import World
from harps_dist.runs.identity import ReleaseIdentity
from harps_dist.runs.log import LOG, send_evaluation
from harps_dist.runs.run import Run, Which, git_revision
from harps_dist.sealed import read_lines
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
    refine: Refinement = "nothing",
    samples: int = 0,
) -> dict[Path, Report]:
    """Evaluate a run's newest or best checkpoint on every kind of spectrum; folder out/SPLIT-KIND to its report, on the
    main rank. refine: which labels, on what the model draws. samples: of blankings, 0 for none. Raises OutputError, on
    all ranks, where `out` is something else or another process evaluates into it; ConfigError for a model that cannot
    refine or never saw blanked pieces."""
    started = time.perf_counter()
    with world.claiming(lambda: claimed(out, EVALUATED, (out / PAGE, EVALUATION_PAGE))):
        opened = Run(run)
        name, step = opened.name, opened.checkpoint(which).step
        model = opened.model(which, release.manifest)
        evaluator = Evaluator(model, opened.recipe, release, world, console, refine, samples)
        folders = {kind: out / f"{split}-{kind}" for kind in evaluator.kinds}
        reports = {folder: evaluate(evaluator, name, step, kind, split, folder) for kind, folder in folders.items()}
        if world.is_main:
            record_of(opened, which, evaluator, time.perf_counter() - started).write(out, split)
            write_page(out)
            shown = {folder.name: report for folder, report in reports.items() if report}
            send_evaluation(run, evaluator.recipe.log, named_scores(shown), named_figures(shown))
    return {folder: report for folder, report in reports.items() if report}


def is_evaluated(run: Path, release: Release, split: SplitName | Literal["all"]) -> bool:
    """Whether a run's newest checkpoint has been evaluated on every kind of spectrum of this release.

    A run without a checkpoint that is whole has not: it is trained on first.
    """
    try:
        step = Run(run).checkpoint().step
        record = read_record(run / EVALUATION, split)
    except (ConfigError, ResumeError, OSError):
        return False
    return record is not None and (record.step, record.release_digest) == (step, release.digest)


def record_of(run: Run, which: Which, evaluator: Evaluator, seconds: float) -> Record:
    """The record of an evaluation that ends now. seconds: that it took."""
    release, saved, checkpoint = evaluator.release, run.saved, run.checkpoint(which)
    lines, damage = read_lines(run.path / LOG)
    lines = [line for line in lines if line.get("step", checkpoint.step + 1) <= checkpoint.step]
    return Record(
        step=checkpoint.step,
        release_digest=release.digest,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git=git_revision(),
        version=__version__,
        seconds=round(seconds, 1),
        device=evaluator.world.device_name,
        ranks=evaluator.world.size,
        model=run.identity(which),
        release=ReleaseIdentity.of(release.manifest),
        grid=release.manifest.grid.name,
        samples=tuple(_samples(release)),
        training=Training(
            recipe=saved.recipe.model_dump(mode="json"),
            start_from=saved.start_from,
            not_genuine=saved.not_genuine,
            python=saved.python,
            versions=saved.versions,
            log=thinned(lines),
            damaged=len(damage),
            seconds=seconds_of(lines, saved.recipe.training.batch_size),
            devices=tuple(dict.fromkeys(line["device"] for line in lines if "device" in line)),
        ),
    )


def _samples(release: Release) -> Iterator[Sample]:
    """What a release holds, by kind and split."""
    index, kinds = release.index, get_args(SpectraKind)
    for kind in kinds:
        words = origin_words(origin_of(kind, release), release.manifest.not_genuine)
        for split in SPLITS:
            rows = index.rows(kind, split)
            if len(rows):
                stars = len(np.unique(index["star"][rows].astype(str)))
                yield Sample(kind=kind, split=split, origin=words, spectra=len(rows), stars=stars)


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


def named_scores(reports: Mapping[str, Report]) -> dict[str, float]:
    """Label errors and other scores of reports by name, such as "test-real/MAE teff [K]"; those that are known."""
    scores = {}
    for name, report in reports.items():
        for label in report.labels:
            scores[f"{name}/MAE {label.name}" + (f" [{label.unit}]" if label.unit else "")] = label.mae
        scores |= {f"{name}/{measure.name}": measure.value for measure in report.measures}
    return {name: value for name, value in scores.items() if np.isfinite(value)}


def named_figures(reports: Mapping[str, Report]) -> dict[str, Path]:
    """Files of the figures of reports by name, such as "test-real/residuals"."""
    return {f"{name}/{path.stem}": path for name, report in reports.items() for path in report.figures.values()}


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
