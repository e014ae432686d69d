"""Files that are taken into an archive, or into a part of one, and what people are told of it.

Tested in tests/integration/test_first_ingest.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harps_dist.console import say
from harps_dist.ownership import check
from harps_dist.progress import Progress, progress_bars

if TYPE_CHECKING:
    from preprocessing.ingest import IngestReport
    from preprocessing.merge import Part

TakeIn = Callable[[Path, Callable[[str], bool], Progress], "IngestReport"]


def taken_in(archive: Path, share: Part | None, inputs: Sequence[Path], take_in: TakeIn) -> int:
    """Take files in, all into the archive or the share of a part into the archive of that part; what happened, said."""
    from harps_dist.formats.archive import ARCHIVE
    from preprocessing.ingest import existing
    from preprocessing.merge import PARTS, note_begun, note_done, parts_path

    check(archive, ARCHIVE)
    if share:
        check(parts_path(archive), PARTS)
        archive = share.archive(archive)
        for path in inputs:
            existing(path)
        note_begun(archive)
    with progress_bars() as progress:
        report = take_in(archive, share.has if share else lambda source: True, progress)
    if not share:
        return say_report(report, archive)
    files = report.added + report.already + len(report.refused)
    failed = say_report(report, archive) if files else 0  # a part may be empty
    note_done(archive, files)  # one bad part keeps no archive from being merged
    return failed


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def say_report(report: IngestReport, archive: Path) -> int:
    from harps_dist.formats.folders import passed_over_line
    from harps_dist.formats.matches import matches_path
    from harps_dist.formats.quarantine import quarantine_path
    from preprocessing.refused import refusal_lines

    say(f"{archive}: added {report.added}, there already {report.already}, quarantined {len(report.refused)}")
    if line := passed_over_line(report.passed_over):
        say(line)
    counts = {name: count for name, count in sorted(report.counts.items()) if count}
    if counts:
        say(f"spectra: {counted(counts)}")
    made = (archive / "zarr.json").exists()
    if matches_path(archive).exists() and report.counts:
        say(f"which star each spectrum is of, and how it was matched: {matches_path(archive)}")
    for line in refusal_lines(report.refused, report.added + report.already + len(report.refused), made):
        say(line)
    if report.refused:
        say(f"all quarantined files and their reasons: {quarantine_path(archive)}")
    if report.nothing_good:
        what = "nothing usable came in" if report.refused else "nothing usable came in: check the path"
        print(f"{what}. {'The archive is as it was.' if made else 'No archive was made.'}", file=sys.stderr)
    return 1 if report.nothing_good else 0
