"""A table with a row a spectrum, made in blocks that a kill cannot undo or repeat.

Blocks of rows are kept in TABLE.parts, in a folder for each way of making them, each written whole or not at all. Run
again, only what no part holds is made, and the table is put together of all parts anew.

Tested in tests/integration/test_predict_files.py.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.columns import read_columns
from harps_dist.data.batches import in_batches
from harps_dist.errors import Interrupted
from harps_dist.files import atomic_write, remove
from harps_dist.inference.forms import forms
from harps_dist.inference.sources import Item, Observed, duplicate, find_items, not_looked_at, read_items
from harps_dist.inference.table import Columns
from harps_dist.ownership import OutputKind, first_line
from harps_dist.progress import Progress
from harps_dist.ranks.world import World
from harps_dist.sealed import is_whole, sealed_write
from harps_dist.spectra.grid import Grid

if TYPE_CHECKING:
    from harps_dist.formats.records import Refusal

BLOCK = 64  # rows that are kept together
_KEY = re.compile(r"[0-9a-f]{16}|\.lock")  # names in a folder of parts
_FAILED = ("file", "reason", "detail")
PARTS = OutputKind("folder of predicted parts", "-o", lambda parts: all(map(_KEY.fullmatch, os.listdir(parts))), "home")
FAILED = OutputKind("list of what could not be predicted", "-o", lambda path: first_line(path) == ",".join(_FAILED))


Good = Sequence[tuple[Item, Observed]]


@dataclass
class TableReport:
    """What making a table did.

    predicted, already: rows, by this run and before. other_forms: spectra without a row, of whose exposure another form
    has one. failed: what has no row, and why. not_looked_at: of the folders, in one line. compared: how predictions
    agree with fits, in one line.
    """

    table: Path
    predicted: int = 0
    already: int = 0
    other_forms: int = 0
    failed: list[Refusal] = field(default_factory=list)
    not_looked_at: str = ""
    compared: str = ""

    @property
    def failed_path(self) -> Path:
        return failed_path(self.table)

    def lines(self, done: str, how: str = "") -> Iterator[str]:
        """What to tell a user. done: what was done to spectra, such as "predicted"; how: more, such as ", in fp32"."""
        yield f"{self.predicted} spectra {done}, {self.already} before{how}: {self.table}"
        if self.other_forms:
            others = "are other forms of exposures that have a row; its column other_forms names them"
            yield f"{self.other_forms} {others}"
        if self.compared:
            yield self.compared
        if self.not_looked_at:
            yield self.not_looked_at
        if self.failed:
            yield f"{len(self.failed)} could not be: {self.failed_path} says why"


def failed_path(table: Path) -> Path:
    """The list of what has no row: one line a file, with its reason."""
    return table.with_name(f"{table.name}.failed.csv")


def parts_path(table: Path) -> Path:
    """Where what is predicted is kept until it is all there, and after, for spectra that are yet to come."""
    return table.with_name(f"{table.name}.parts")


def in_blocks(
    what: str,
    inputs: Sequence[str | Path],
    report: TableReport,
    parts: Path,
    grid: Grid,
    write: Callable[[Good], None],
    finish: Callable[[Columns], None],
    world: World,
    workers: int,
    progress: Progress,
    errors: bool = False,
) -> TableReport:
    """Make a table of all spectra of the inputs, block by block, shared among the ranks; the main one puts it together.

    what: is done, for the progress. report: begun, of the table. parts: folder of this way's parts. grid: that spectra
    are read onto, with their errors where that is asked for. write: makes a block of spectra a part. finish: writes the
    table of rows, if there are any. Raises Interrupted, on all ranks, where one was asked to stop.
    """
    items, refused, todo = world.of_main(lambda: _plan(inputs, parts))
    before = len(items) - sum(map(len, todo))
    progress(what, before, len(items))
    done, failed = 0, [] if not world.is_main else list(refused)
    mine = todo[world.rank :: world.size]
    stream = read_items([item for block in mine for item in block], grid, workers, errors=errors)
    try:
        for block in world.in_step(mine, -(-len(todo) // world.size)):
            read = list(zip(block, islice(stream, len(block)), strict=True))
            good = [(item, found) for item, found in read if isinstance(found, Observed)]
            failed += [found for _, found in read if not isinstance(found, Observed)]
            if good:
                write(good)
            done += len(block)
            progress(what, min(before + done * world.size, len(items)), len(items))
    except Interrupted as interrupted:
        rows = before + sum(world.gather(done))
        raise Interrupted(str(interrupted), f"{rows:,} of {len(items):,} spectra are done") from None
    report.failed = [refusal for of_rank in world.gather(failed) for refusal in of_rank]
    fresh = {item.identity for block in todo for item in block}

    def put_together() -> TableReport:
        if columns := _assembled(report, parts, items, fresh):
            finish(columns)
        _write_failed(report.failed_path, report.failed)
        report.not_looked_at = not_looked_at(inputs, items)
        return report

    return world.of_main(put_together)


def _plan(inputs: Sequence[str | Path], parts: Path) -> tuple[list[Item], list[Refusal], list[list[Item]]]:
    """All spectra, what is refused at sight, and blocks of those that no part holds.

    Blocks are cut from all spectra, so that those that are left after a kill are the ones that would have come.
    """
    for left in parts.glob(".*.tmp"):  # of processes that were killed
        remove(left)
    items, refused = find_items(inputs)
    known = set(_read_parts(parts, ["identity"]).get("identity", ()))
    blocks = [
        [items[number] for number in block if items[number].identity not in known]
        for block in in_batches(np.arange(len(items)), BLOCK)
    ]
    return items, refused, [block for block in blocks if block]


def write_part(parts: Path, columns: dict[str, Any]) -> None:
    """Keep rows of a table; their column `identity` says what they are of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = hashlib.sha256("\n".join(columns["identity"]).encode()).hexdigest()[:32]
    parts.mkdir(parents=True, exist_ok=True)
    with sealed_write(parts / f"{name}.parquet") as aside:
        rows = {key: list(values) if getattr(values, "ndim", 1) > 1 else values for key, values in columns.items()}
        pq.write_table(pa.table(rows), aside)


def _read_parts(parts: Path, names: Iterable[str] | None = None) -> Columns:
    """Columns of all parts, one after the other; one that is damaged is told of, and its rows are made again."""
    found: list[Columns] = []
    for path in filter(is_whole, sorted(parts.glob("*.parquet"))):
        columns = read_columns(path) or {}
        found.append({name: columns[name] for name in names or columns})
    return {name: np.concatenate([part[name] for part in found]) for name in (found[0] if found else ())}


def _assembled(report: TableReport, parts: Path, items: Sequence[Item], fresh: Set[str]) -> Columns:
    """Rows that parts hold of the items, one an exposure, in their order; none where there are none.

    The report gets their counts, and duplicates, which have no row. fresh: identities that this run predicted.
    """
    columns = _read_parts(parts)
    row_of = {identity: row for row, identity in enumerate(columns.pop("identity", ()))}
    there = [item for item in items if item.identity in row_of]
    if not there:
        return {}
    rows = [row_of[item.identity] for item in there]
    columns = {name: values[rows] for name, values in columns.items()}
    duplicate_of, form_of = forms(columns)
    kept = [row for row in range(len(there)) if row not in duplicate_of and row not in form_of]
    others: dict[int, list[str]] = {}
    for row, first in form_of.items():
        others.setdefault(first, []).append(columns["dp_id"][row])
    columns["file"] = np.array([item.name for item in there], object)
    columns["other_forms"] = np.array([";".join(others.get(row, ())) for row in range(len(there))], object)
    for row, first in duplicate_of.items():
        report.failed.append(duplicate(there[row], columns["dp_id"][row], there[first].name))
    before = {columns["dp_id"][row] for row, item in enumerate(there) if item.identity not in fresh}
    columns = {name: values[kept] for name, values in columns.items()}
    if "latent" in columns:
        columns["latent"] = np.stack(list(columns["latent"]))
    report.predicted = sum(dp_id not in before for dp_id in columns["dp_id"])
    report.already, report.other_forms = len(kept) - report.predicted, len(form_of)
    return columns


def _write_failed(path: Path, failed: Sequence[Refusal]) -> None:
    """One line a file, with its reason; no file where nothing failed."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_FAILED)
        writer.writerows(sorted((refusal.source, refusal.reason.value, refusal.detail) for refusal in failed))
