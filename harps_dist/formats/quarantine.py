"""The refused files of an archive, with their reasons, one line a file, in a CSV beside it.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from harps_dist.errors import ArchiveError
from harps_dist.files import atomic_write
from harps_dist.formats.records import Reason, Refusal
from harps_dist.intake import read_text
from harps_dist.ownership import OutputKind, first_line
from harps_dist.text import cleaned, printable

FIELDS = ("source", "reason", "detail")
MAX_BYTES = 2**30  # of millions of refused files


QUARANTINE = OutputKind("list of quarantined files", "--archive", lambda path: first_line(path) == ",".join(FIELDS))


def quarantine_path(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.quarantine.csv")


class Quarantine:
    """The list of an archive. Raises ArchiveError where there is one that was not written by this software."""

    def __init__(self, archive: Path):
        self.path = quarantine_path(archive)
        try:
            text = read_text(self.path, "quarantine list", ArchiveError, MAX_BYTES)
            self._rows = {refusal.source: refusal for refusal in _refusals(text)}
        except FileNotFoundError:
            self._rows = {}
        except (KeyError, ValueError, csv.Error) as error:
            raise ArchiveError(
                f"{printable(self.path)} is no quarantine list of harps_dist ({cleaned(str(error), 200)}). Move it "
                f"away; a new ingest lists again what it refuses."
            ) from None

    @property
    def refused(self) -> list[Refusal]:
        return list(self._rows.values())

    def update(self, refused: Sequence[Refusal], accepted: Sequence[str] = ()) -> None:
        """Add refusals, forget sources that were accepted meanwhile, and write the file."""
        before = dict(self._rows)
        self._rows |= {refusal.source: refusal for refusal in refused}
        for source in accepted:
            self._rows.pop(source, None)
        if self._rows == before:
            return
        with atomic_write(self.path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(FIELDS)
            writer.writerows(
                (r.source, r.reason.value, r.detail) for r in sorted(self._rows.values(), key=lambda r: r.source)
            )


def _refusals(text: str) -> list[Refusal]:
    """Raises KeyError, ValueError or csv.Error where the list is none."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != FIELDS:
        raise ValueError(f"expected columns {', '.join(FIELDS)}, got {', '.join(reader.fieldnames or ())}")
    rows = list(reader)
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a line has more or fewer fields than its header")
    return [Refusal(row["source"], Reason(row["reason"]), row["detail"]) for row in rows]
