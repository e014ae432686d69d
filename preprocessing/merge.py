"""Parts of an archive, that processes ingested side by side, into one that a single ingest would have made.

Tested in tests/integration/test_etc_at_scale.py, and by jobs in tests/slurm/test_jobs.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

from harps_dist.errors import ArchiveError
from harps_dist.files import atomic_write
from harps_dist.formats.archive import ROWS_PER_SHARD, Archive
from harps_dist.formats.matches import OF_ARCHIVE, write_matches
from harps_dist.formats.quarantine import Quarantine
from harps_dist.formats.records import Reason, Refusal
from harps_dist.ownership import OutputKind
from harps_dist.progress import Progress, silent
from preprocessing.etc import GROUPS, etc_order, is_etc_run, taken_name
from preprocessing.identity import KnownStars, KnownVersions
from preprocessing.ingest import IngestReport, blocks

KINDS = {"": "", "etc-": "ETC "}  # of parts, and what they are called
_DONE = "{}.done.json"
_PART = re.compile(r"\d{1,9}/\d{1,9}", re.ASCII)
_OF_A_PART = re.compile(r"\.?(etc-)?\d{4}-of-\d{4}\.zarr.*")


def _is_parts(folder: Path) -> bool:
    return all(map(_OF_A_PART.fullmatch, os.listdir(folder)))


PARTS = OutputKind("folder of an archive's parts", "--archive", _is_parts, "home")


class Part(NamedTuple):
    """The `number`-th of `of` parts of the input, from 0. kind: '' for spectra, 'etc-' for ETC runs and SEDs, whose
    parts are archives of their own, so that both may be ingested at a time."""

    number: int
    of: int
    kind: str = ""

    @classmethod
    def parse(cls, text: str, kind: str = "") -> Part:
        """From "3/16". Raises ArchiveError where it is not of that form."""
        number, _, of = text.partition("/")
        if not (_PART.fullmatch(text) and int(number) < int(of)):
            raise ArchiveError(f"a part is written as 3/16, counted from 0 to 15, but this is {text!r}.")
        return cls(int(number), int(of), kind)

    def has(self, source: str) -> bool:
        """Whether a file of that relative name is in this part: the same on every machine, whatever else is there."""
        return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") % self.of == self.number

    def archive(self, whole: Path) -> Path:
        """Where the part of an archive is kept until they are merged."""
        return parts_path(whole) / f"{self.kind}{self.number:04d}-of-{self.of:04d}.zarr"


def parts_path(whole: Path) -> Path:
    """The folder of an archive's parts."""
    return whole.with_name(f"{whole.name}.parts")


def note_begun(part: Path) -> None:
    """Forget that a part was ingested to its end, since it is to take in more."""
    part.with_name(_DONE.format(part.name)).unlink(missing_ok=True)


def note_done(part: Path, files: int) -> None:
    """Note that all files of a part were ingested."""
    part.parent.mkdir(parents=True, exist_ok=True)  # of a part without files
    with atomic_write(part.with_name(_DONE.format(part.name))) as aside:
        aside.write_text(json.dumps({"files": files}) + "\n")


def merge(whole: Path, of: int, progress: Progress = silent) -> IngestReport:
    """Append what `of` parts hold and the archive does not, in the order of their files' names.

    Merged again, it adds nothing. Raises ArchiveError where a part is missing or was not ingested to its end.
    """
    begun = [kind for kind in KINDS if list(parts_path(whole).glob(f"{kind}[0-9][0-9][0-9][0-9]-of-{of:04d}.zarr*"))]
    paths = [path for kind in begun or [""] for path in _ingested(whole, of, kind)]
    parts = [Archive(path) for path in paths if path.exists()]
    report = IngestReport()
    refused = [refusal for path in paths for refusal in Quarantine(path).refused]
    if not parts:  # none took anything in
        Quarantine(whole).update(refused)
        report.refused += refused
        return report
    with Archive.writing(whole, parts[0].grid) as writer:
        quarantine = Quarantine(whole)
        quarantine.update(refused)
        _merge_spectra(parts, writer, quarantine, report, progress)
        second = _second_runs(parts, writer)
        for group in GROUPS:
            _merge_etc(group, parts, second, writer, quarantine, report, progress)
        if writer.count("real"):
            write_matches(whole, writer.rows("real", *OF_ARCHIVE))
    return report


def _ingested(whole: Path, of: int, kind: str) -> list[Path]:
    """The archives of all parts of a kind; raises ArchiveError where one was not ingested to its end."""
    paths = [Part(number, of, kind).archive(whole) for number in range(of)]
    unfinished = [number for number, path in enumerate(paths) if not path.with_name(_DONE.format(path.name)).exists()]
    if unfinished:
        listed = ",".join(map(str, unfinished))
        raise ArchiveError(
            f"{KINDS[kind]}parts {listed} of {of} of {whole} are not ingested to their end. Run these again "
            f"(sbatch --array={listed}, and PARTS={of}), then merge."
        )
    return paths


def _merge_spectra(
    parts: Sequence[Archive], writer: Archive, quarantine: Quarantine, report: IngestReport, progress: Progress
) -> None:
    """Spectra, each version of a product once, as `ingest.ingest_spectra` takes them."""
    rows = [
        (columns["source"], number, row, columns)
        for number, part in enumerate(parts)
        for row, columns in enumerate(part.rows("real"))
    ]
    there = writer.rows("real")
    known = {(columns["source"], columns["stamp"]) for columns in there}
    todo = sorted((row for row in rows if (row[0], row[3]["stamp"]) not in known), key=lambda row: row[:3])
    versions, stars = KnownVersions(there), KnownStars(there)
    report.already += len(rows) - len(todo)
    for block in blocks(todo, ROWS_PER_SHARD):
        fresh, refused = [], []
        for source, number, row, columns in block:
            pipeline = columns["pipeline"]
            if versions.is_there(columns["key"], pipeline, source):
                report.already += 1
                continue
            if objection := versions.objection(columns["key"], pipeline):
                refused.append(Refusal(source, Reason.DUPLICATE, objection))
                continue
            versions.add(columns)
            fresh.append((stars.settle(columns), parts[number].data("real", row)))
        quarantine.update(refused, [columns["source"] for columns, _ in fresh])
        writer.append("real", fresh)
        report.added += len(fresh)
        report.refused += refused
        progress("merge", report.already + report.added + len(report.refused), len(rows))


def _second_runs(parts: Sequence[Archive], writer: Archive) -> set[str]:
    """Files of ETC runs of whose name there is another; what comes with them, such as an SED, is not wanted either."""
    known = {columns["key"]: columns["source"] for columns in writer.rows("response", "key", "source")}
    runs = [columns for part in parts for columns in part.rows("response", "key", "source")]
    runs.sort(key=lambda run: etc_order(run["source"]))
    return {run["source"] for run in runs if known.setdefault(run["key"], run["source"]) != run["source"]}


def _merge_etc(
    group: str,
    parts: Sequence[Archive],
    second: Set[str],
    writer: Archive,
    quarantine: Quarantine,
    report: IngestReport,
    progress: Progress,
) -> None:
    """SEDs or responses, each name once, as `etc.ingest_etc` takes them. second: files of runs that are refused."""
    found = [
        (columns, number, row)
        for number, part in enumerate(parts)
        for row, columns in enumerate(part.rows(group))
        if group == "response" or columns["source"] not in second
    ]
    known = {columns["key"]: columns["source"] for columns in writer.rows(group, "key", "source")}
    there = set(known.values())
    todo = sorted((one for one in found if one[0]["source"] not in there), key=lambda one: etc_order(one[0]["source"]))
    report.already += len(found) - len(todo)
    for block in blocks(todo, ROWS_PER_SHARD):
        fresh, refused = [], []
        for columns, number, row in block:
            if objection := taken_name(known, columns["key"]):
                if not is_etc_run(columns["source"]) or group == "response":  # the SED of a run may be there
                    refused.append(Refusal(columns["source"], Reason.DUPLICATE, objection))
                continue
            known[columns["key"]] = columns["source"]
            fresh.append((columns, parts[number].data(group, row)))
        quarantine.update(refused, [columns["source"] for columns, _ in fresh])
        writer.append(group, fresh)
        report.added += len(fresh)
        report.refused += refused
        progress("merge", report.already + report.added + len(report.refused), len(found))
