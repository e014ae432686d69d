"""The generative set of the general intervention score (paper, Sect. 3.1): SEDs that differ in one label.

Each core is a star whose labels are drawn at random; each of its subsets varies one label and keeps all else. A design,
a CSV beside the SED files, says which file belongs where: columns sed, core, varied, split (validation or test) and
etc_run, the id of the run in the archive that the whole core is seen through.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import get_args

from harps_dist.data.split import SplitName
from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import ROWS_PER_SHARD, Archive
from harps_dist.formats.quarantine import Quarantine
from harps_dist.formats.records import Reason, Refusal, refusing
from harps_dist.formats.sed import read_sed
from harps_dist.intake import read_text
from harps_dist.progress import Progress, silent
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.labels import INTRINSIC
from harps_dist.text import cleaned, printable
from preprocessing.etc import sed_row
from preprocessing.ingest import IngestReport, Row, blocks
from preprocessing.simulator.design import FIELDS

MAX_BYTES = 2**26  # of a design; a million entries
MAX_TEXT = 4000  # of an entry's field; what is cut is in no archive


def ingest_generative(design: Path, archive: Path, grid: Grid, progress: Progress = silent) -> IngestReport:
    """Add the SEDs that a design lists to the archive's `generative` group; those that are there are left alone.

    Raises ArchiveError where the design lacks a column. An SED is quarantined where its file is bad, its ETC run is not
    in the archive, or its label or split is not known.
    """
    report, entries = IngestReport(), read_design(design)
    with Archive.writing(archive, grid) as writer:
        quarantine, runs = Quarantine(archive), set(writer.column("response", "key"))
        known = dict(zip(writer.column("generative", "source"), writer.column("generative", "key"), strict=True))
        keys = {key: source for source, key in known.items()}
        todo = [entry for entry in entries if entry["sed"] not in known]
        report.already = len(entries) - len(todo)
        for block in blocks(todo, ROWS_PER_SHARD):
            found = [
                refusing(entry["sed"], Reason.UNREADABLE, partial(_row, entry, design.parent, writer, runs, keys))
                for entry in block
            ]
            rows = [row for row in found if not isinstance(row, Refusal)]
            refused = [refusal for refusal in found if isinstance(refusal, Refusal)]
            quarantine.update(refused, [columns["source"] for columns, _ in rows])
            writer.append("generative", rows)
            report.added += len(rows)
            report.refused += refused
            progress("ingest the generative set", report.already + report.added + len(report.refused), len(entries))
    return report


def read_design(path: Path) -> list[dict[str, str]]:
    """The entries of a design, in which texts are printable; raises ArchiveError where it is none."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, "design", ArchiveError, MAX_BYTES), newline=""))
        entries = list(reader)
    except FileNotFoundError:
        raise ArchiveError(
            f"there is no design {printable(path)}. Write a CSV with columns {', '.join(FIELDS)}."
        ) from None
    except csv.Error as error:
        raise ArchiveError(
            f"design {printable(path)} is no CSV ({error}). It needs columns {', '.join(FIELDS)}."
        ) from None
    missing = set(FIELDS) - set(reader.fieldnames or ())
    if missing:
        raise ArchiveError(f"design {printable(path)} lacks columns {sorted(missing)}; it needs {', '.join(FIELDS)}.")
    return [{name: cleaned(entry[name] or "", MAX_TEXT) for name in FIELDS} for entry in entries]


def _row(entry: dict[str, str], folder: Path, writer: Archive, runs: set[str], keys: dict[str, str]) -> Row | Refusal:
    """The archive row of a design's entry; its key joins `keys`, which maps those taken to their files."""
    source = entry["sed"]
    if entry["etc_run"] not in runs:
        detail = f"ETC run {entry['etc_run']!r} is not in the archive: ingest it first"
        return Refusal(source, Reason.MISSING_FIELD, detail)
    splits = get_args(SplitName)[1:]
    if entry["varied"] not in INTRINSIC or entry["split"] not in splits or not entry["core"]:
        detail = f"expected a core, a label of {', '.join(INTRINSIC)} and a split of {', '.join(splits)}, got {entry}"
        return Refusal(source, Reason.MISSING_FIELD, detail)
    if not _is_inside(source):
        detail = f"{source!r} is no plain name of a file below the design's folder"
        return Refusal(source, Reason.NO_SED, detail)
    record = read_sed(folder / source)
    found = record if isinstance(record, Refusal) else sed_row(record, source, writer.grid, writer.source_grid)
    if isinstance(found, Refusal):
        return replace(found, source=source)
    (columns, flux), _ = found
    if columns["key"] in keys:
        return Refusal(
            source, Reason.DUPLICATE, f"SED {columns['key']} is in the set already, from {keys[columns['key']]}"
        )
    keys[columns["key"]] = source
    return columns | {name: entry[name] for name in FIELDS[1:]}, flux


def _is_inside(name: str) -> bool:
    """Whether a relative name leads to a file of the folder or of one below it."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
