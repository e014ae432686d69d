"""Predict an archive's worth of spectra: files in, one table out, in steps that a kill cannot undo or repeat.

Blocks of rows are kept in TABLE.parts, in a folder for each model, each written whole or not at all. Run again, only
what no part holds is predicted, and the table is made of all parts anew.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.columns import read_columns
from harps_dist.data.batches import in_batches
from harps_dist.errors import ConfigError, Interrupted
from harps_dist.files import atomic_write, remove
from harps_dist.inference.description import CONFIG
from harps_dist.inference.export import exported_run, is_exported
from harps_dist.inference.model import BATCH, Exported, load
from harps_dist.inference.precision import Precision, computing
from harps_dist.inference.sources import Item, Observed, duplicate, find_items, not_looked_at, read_items
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
from harps_dist.ownership import OutputKind, check, claimed, first_line
from harps_dist.progress import Progress, silent
from harps_dist.ranks.world import World
from harps_dist.runs.run import RECIPE, Run, Which
from harps_dist.sealed import is_whole, sealed_write

if TYPE_CHECKING:
    from harps_dist.data.reader import Release
    from harps_dist.formats.records import Refusal

BLOCK = 64  # rows that are kept together
PARTS_FORMAT = 2
_KEY = re.compile(r"[0-9a-f]{16}|\.lock")  # names in a folder of parts
_FAILED = ("file", "reason", "detail")
PARTS = OutputKind("folder of predicted parts", "-o", lambda parts: all(map(_KEY.fullmatch, os.listdir(parts))), "home")
FAILED = OutputKind("list of what could not be predicted", "-o", lambda path: first_line(path) == ",".join(_FAILED))


@dataclass
class PredictReport:
    """What a run of `predict_files` did.

    already: rows that were there before. failed: what has no row, and why. not_looked_at: of the folders, in one line.
    """

    table: Path
    predicted: int = 0
    already: int = 0
    failed: list[Refusal] = field(default_factory=list)
    not_looked_at: str = ""

    @property
    def failed_path(self) -> Path:
        return failed_path(self.table)


def failed_path(table: Path) -> Path:
    """The list of what has no row: one line a file, with its reason."""
    return table.with_name(f"{table.name}.failed.csv")


def parts_path(table: Path) -> Path:
    """Where what is predicted is kept until it is all there, and after, for spectra that are yet to come."""
    return table.with_name(f"{table.name}.parts")


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
) -> PredictReport:
    """Predict every spectrum of the inputs into a table, one row each, in the order of the inputs.

    inputs: FITS files, folders, patterns, an archive or a release. table: ends in .fits, .ecsv, .csv or .parquet.
    latents: whether the table has the latent vectors. workers: processes that read. world: the ranks that share the
    work; the main one writes the table. What cannot be predicted is listed in TABLE.failed.csv.
    Raises ConfigError for inputs that are not there; OutputError where something else than such a table is there, or
    another process writes it; Interrupted, on all ranks, where one was asked to stop.
    """
    table, world = Path(table), world or World.alone(exported.device)
    check_ending(table)
    exported.check_reads()
    parts = parts_path(table) / parts_key(exported)
    first, *beside = outputs_of(table)
    with world.claiming(lambda: claimed(*first, *beside)):
        items, refused, todo = world.of_main(lambda: plan_blocks(inputs, parts))
        report = PredictReport(table, already=len(items) - sum(map(len, todo)))
        progress("predict", report.already, len(items))
        done, failed = 0, [] if not world.is_main else list(refused)
        mine = todo[world.rank :: world.size]
        stream = read_items([item for block in mine for item in block], exported.grid, workers)
        try:
            for block in world.in_step(mine, -(-len(todo) // world.size)):
                read = list(zip(block, islice(stream, len(block)), strict=True))
                good = [(item, found) for item, found in read if isinstance(found, Observed)]
                failed += [found for _, found in read if not isinstance(found, Observed)]
                if good:
                    _write_part(parts, exported, good, batch_size)
                done += len(block)
                progress("predict", min(report.already + done * world.size, len(items)), len(items))
        except Interrupted as interrupted:
            rows = report.already + sum(world.gather(done))
            raise Interrupted(str(interrupted), f"{rows:,} of {len(items):,} spectra are done") from None
        report.failed = [refusal for of_rank in world.gather(failed) for refusal in of_rank]
        report.failed += world.of_main(lambda: _finish(table, parts, exported, items, latents, report.failed))
        report.not_looked_at = not_looked_at(inputs, items) if world.is_main else ""
        report.predicted = len(items) - report.already - (len(report.failed) - len(refused))
    return report


def parts_key(exported: Exported) -> str:
    """The folder of a model's parts: its weights, its calibration, its precision and this software made them."""
    made_by = f"{exported.digest} {exported.computing.precision} {version('harps_dist')} {PARTS_FORMAT}"
    return hashlib.sha256(made_by.encode()).hexdigest()[:16]


def plan_blocks(inputs: Sequence[str | Path], parts: Path) -> tuple[list[Item], list[Refusal], list[list[Item]]]:
    """All spectra, what is refused at sight, and blocks of those that no part holds.

    Blocks are cut from all spectra, so that those that are left after a kill are the ones that would have come.
    """
    for left in parts.glob(".*.tmp"):  # of processes that were killed
        remove(left)
    items, refused = find_items(inputs)
    known = set(read_parts(parts, ["identity"]).get("identity", ()))
    blocks = [
        [items[number] for number in block if items[number].identity not in known]
        for block in in_batches(np.arange(len(items)), BLOCK)
    ]
    return items, refused, [block for block in blocks if block]


def _write_part(parts: Path, exported: Exported, good: Sequence[tuple[Item, Observed]], batch_size: int) -> None:
    flux = np.stack([found.flux for _, found in good])
    predicted = exported.predict_flux(flux, np.stack([found.noise for _, found in good]), batch_size)
    columns: dict[str, Any] = {"identity": [item.identity for item, _ in good]}
    columns |= {name: [found.columns[name] for _, found in good] for name in good[0][1].columns}
    coverage, broken = (np.array([getattr(found, name) for _, found in good]) for name in ("coverage", "broken"))
    columns |= columns_of(exported.description, predicted, coverage, flux, broken=broken)
    write_part(parts, columns)


def write_part(parts: Path, columns: dict[str, Any]) -> None:
    """Keep rows of a table; their column `identity` says what they are of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = hashlib.sha256("\n".join(columns["identity"]).encode()).hexdigest()[:32]
    parts.mkdir(parents=True, exist_ok=True)
    with sealed_write(parts / f"{name}.parquet") as aside:
        rows = {key: list(values) if getattr(values, "ndim", 1) > 1 else values for key, values in columns.items()}
        pq.write_table(pa.table(rows), aside)


def read_parts(parts: Path, names: Iterable[str] | None = None) -> Columns:
    """Columns of all parts, one after the other; one that is damaged is told of, and its rows are made again."""
    found: list[Columns] = []
    for path in filter(is_whole, sorted(parts.glob("*.parquet"))):
        columns = read_columns(path) or {}
        found.append({name: columns[name] for name in names or columns})
    return {name: np.concatenate([part[name] for part in found]) for name in (found[0] if found else ())}


def _finish(
    table: Path, parts: Path, exported: Exported, items: Sequence[Item], latents: bool, failed: Sequence[Refusal]
) -> list[Refusal]:
    """Write the table and the list of failures; returns duplicates, which have no row either."""
    columns, duplicates = assembled(parts, items)
    if columns:
        if "latent" in columns:
            columns["latent"] = np.stack(list(columns["latent"]))
        fields = [name for name in fields_of(exported.description) if latents or name != "latent"]
        write_table(table, {name: columns[name] for name in fields}, exported.description, exported.metadata)
    write_failed(failed_path(table), [*failed, *duplicates])
    return duplicates


def assembled(parts: Path, items: Sequence[Item]) -> tuple[Columns, list[Refusal]]:
    """Columns of the items that parts hold, in their order, none where there are no rows; duplicates, without one."""
    columns = read_parts(parts)
    row_of = {identity: row for row, identity in enumerate(columns.pop("identity", ()))}
    rows, names, duplicates = [], [], []
    first: dict[str, str] = {}
    for item in items:
        row = row_of.get(item.identity)
        if row is None:
            continue
        dp_id = columns["dp_id"][row]
        if dp_id in first:
            duplicates.append(duplicate(item, dp_id, first[dp_id]))
            continue
        first[dp_id] = item.name
        rows.append(row)
        names.append(item.name)
    if not rows:
        return {}, duplicates
    return {name: values[rows] for name, values in columns.items()} | {"file": np.array(names, object)}, duplicates


def write_failed(path: Path, failed: Sequence[Refusal]) -> None:
    """One line a file, with its reason; no file where nothing failed."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_FAILED)
        writer.writerows(sorted((refusal.source, refusal.reason.value, refusal.detail) for refusal in failed))
