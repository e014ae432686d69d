"""Which star each spectrum of an archive is of, and how it was found in a catalogue or why not: a CSV beside it.

Tested in tests/integration/test_matches.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harps_dist.files import atomic_write
from harps_dist.ownership import OutputKind, first_line

FIELDS = ("source", "object", "star", "catalogue_id", "matched_by", "ra", "dec", "mjd")
OF_ARCHIVE = ("source", "object", "target", "catalogue_id", "matched_by", "ra", "dec", "mjd")  # columns, in that order
UNMATCHED = "not in the catalogue"

MATCHES = OutputKind("list of matched stars", "--archive", lambda path: first_line(path) == ",".join(FIELDS))


def matches_path(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.stars.csv")


def write_matches(archive: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table of an archive, one line a spectrum, in the order of files. rows: of its group `real`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(FIELDS)
    for row in sorted(rows, key=lambda row: row["source"]):
        values = [row[name] for name in OF_ARCHIVE]
        writer.writerow([*values[:4], values[4] or UNMATCHED, *("" if x != x else f"{x:.6f}" for x in values[5:])])
    path = matches_path(archive)
    if not path.exists() or path.read_bytes() != text.getvalue().encode():
        with atomic_write(path) as aside:
            aside.write_bytes(text.getvalue().encode())
