"""Predict an archive's worth of spectra: files in, one table out; see `blocks`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.errors import ConfigError
from harps_dist.formats.layouts import REWRITTEN
from harps_dist.inference.agreement import agreement_line, with_agreement
from harps_dist.inference.blocks import (
    FAILED,
    PARTS,
    Good,
    TableReport,
    failed_path,
    in_blocks,
    parts_path,
    write_part,
)
from harps_dist.inference.description import CONFIG
from harps_dist.inference.export import exported_run, is_exported
from harps_dist.inference.model import BATCH, Exported, load
from harps_dist.inference.precision import Precision, computing
from harps_dist.inference.table import (
    NOTES,
    PREDICTIONS,
    Columns,
    check_ending,
    columns_of,
    fields_of,
    notes_path,
    write_table,
)
from harps_dist.models.refine import Refinement, check_refines, refined_labels
from harps_dist.ownership import OutputKind, check, claimed
from harps_dist.progress import Progress, silent
from harps_dist.ranks.world import World
from harps_dist.runs.run import RECIPE, Run, Which

if TYPE_CHECKING:
    from harps_dist.data.reader import Release
    from harps_dist.formats.fit_tables import FitLabels

PARTS_FORMAT = 3


def outputs_of(table: Path) -> list[tuple[Path, OutputKind]]:
    """All that is written for a table."""
    beside = [(notes_path(table), NOTES)] if table.suffix.lower() == ".csv" else []
    return [(table, PREDICTIONS), *beside, (failed_path(table), FAILED), (parts_path(table), PARTS)]


def check_table(table: Path) -> None:
    """Raises ConfigError or OutputError where no table can be written there: to be called before any work."""
    check_ending(table)
    for output in outputs_of(table):
        check(*output)


def open_model(
    path: Path,
    release: Callable[[], Release],
    world: World,
    which: Which = "best",
    progress: Progress = silent,
    precision: Precision = "auto",
) -> Exported:
    """The model of an export, or of a run, whose export is made by the main rank where it is missing or old.

    release: opens what calibrates a run's export. precision: of `model.load`; auto is what the main rank's device makes
    of it. Raises ConfigError where the path is neither.
    """
    precision = world.of_main(lambda: computing(precision, world.device).precision)
    if (path / RECIPE).is_file():
        run = Run(path)

        def make() -> None:
            if not is_exported(run, which):
                exported_run(run, release(), which, progress, world.device)

        world.of_main(make)
        return exported_run(run, None, which, device=world.device, precision=precision)
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path} is neither a run nor an export. Give a folder that train.py or export.py wrote.")
    return load(path, world.device, precision)


def predict_files(
    exported: Exported,
    inputs: Sequence[str | Path],
    table: str | Path,
    latents: bool = False,
    batch_size: int = BATCH,
    workers: int = 0,
    world: World | None = None,
    progress: Progress = silent,
    refine: Refinement = "nothing",
    samples: int = 0,
    fits: FitLabels | None = None,
) -> TableReport:
    """Predict every spectrum of the inputs into a table, one row an exposure, in the order of the inputs.

    inputs: FITS files, folders, patterns, an archive or a release. table: ends in .fits, .ecsv, .csv or .parquet.
    latents: whether the table has the latent vectors. workers: processes that read. world: the ranks that share the
    work; the main one writes the table. refine: which labels are refined on what the model draws. samples: of
    blankings that labels are the median of, 0 for none. fits: of the same spectra, which labels are compared with, see
    `agreement`. Of the forms of an exposure that which stands has the row, see `forms`, and it names the others. What
    cannot be predicted is listed in TABLE.failed.csv.
    Raises ConfigError for inputs that are not there; OutputError where something else than such a table is there, or
    another process writes it; Interrupted, on all ranks, where one was asked to stop.
    """
    table, world = Path(table), world or World.alone(exported.device)
    check_ending(table)
    exported.check_reads()
    if refine != "nothing":
        check_refines(exported.model, exported.description.name)
    exported.check_samples(samples, refine)
    parts = parts_path(table) / parts_key(exported, refine, samples)
    refined = ", ".join(refined_labels(refine, exported.labels))
    how = ({"refined": refined} if refined else {}) | ({"samples": str(samples)} if samples else {})
    how |= {"fits": fits.digest} if fits else {}
    report = TableReport(table)
    first, *beside = outputs_of(table)
    with world.claiming(lambda: claimed(*first, *beside)):
        return in_blocks(
            "predict",
            inputs,
            report,
            parts,
            exported.grid,
            lambda good: _write_part(parts, exported, good, batch_size, refine, samples),
            lambda columns: _write(report, exported, columns, latents, how, fits),
            world,
            workers,
            progress,
        )


def parts_key(exported: Exported, refine: Refinement = "nothing", samples: int = 0) -> str:
    """The folder of a model's parts: weights, calibration, precision, what is refined, samples and this software."""
    made_by = f"{exported.digest} {exported.computing.precision} {version('harps_dist')} {PARTS_FORMAT}"
    made_by += f" {refine} refined, {samples} samples"
    return hashlib.sha256(made_by.encode()).hexdigest()[:16]


def _write_part(parts: Path, exported: Exported, good: Good, batch_size: int, refine: Refinement, samples: int) -> None:
    flux = np.stack([found.flux for _, found in good])
    noise = np.stack([found.noise for _, found in good])
    predicted = exported.predict_flux(flux, noise, batch_size, refine=refine, samples=samples)
    columns: dict[str, Any] = {"identity": [item.identity for item, _ in good]}
    columns |= {name: [found.columns[name] for _, found in good] for name in good[0][1].columns}
    coverage, broken = (np.array([getattr(found, name) for _, found in good]) for name in ("coverage", "broken"))
    processed = np.array([product == REWRITTEN for product in columns["product"]])
    columns |= columns_of(exported.description, predicted, coverage, flux, broken=broken, processed=processed)
    write_part(parts, columns)


def _write(
    report: TableReport,
    exported: Exported,
    columns: Columns,
    latents: bool,
    how: dict[str, str],
    fits: FitLabels | None,
) -> None:
    if fits:
        columns = with_agreement(exported.description, columns, fits)
        report.compared = agreement_line(columns)
    fields = [name for name in fields_of(exported.description) if latents or name != "latent"]
    columns = {name: columns[name] for name in fields if name in columns}
    write_table(report.table, columns, exported.description, exported.metadata | how)
