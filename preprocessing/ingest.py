"""From files to the archive: FITS spectra with a catalogue.

Bad input is quarantined with its reason in `<archive>.quarantine.csv` and the rest goes on. Files are taken in
sorted order and committed in blocks, so that a killed ingest, started again, ends with the same archive.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import ROWS_PER_SHARD, Archive
from harps_dist.formats.folders import passed_over
from harps_dist.formats.layouts import REWRITTEN
from harps_dist.formats.matches import OF_ARCHIVE, write_matches
from harps_dist.formats.prepare import prepare
from harps_dist.formats.quarantine import Quarantine
from harps_dist.formats.readers import find_spectra, read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord, refusing
from harps_dist.progress import Progress, silent
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.labels import CATALOGUED
from harps_dist.spectra.standardise import WILD
from harps_dist.text import printable
from preprocessing.catalog import Catalog, Match, resolve_target, telling_names
from preprocessing.identity import KnownStars, KnownVersions
from preprocessing.workers import processes

BROKEN_COVERAGE = 0.5  # of valid pixels, that a spectrum has which is kept for the record alone

Row = tuple[dict[str, Any], np.ndarray]
Entry = TypeVar("Entry")


@dataclass
class IngestReport:
    """What an ingest did. `counts` says how stars were matched, which labels are there or out of range, and flags.

    passed_over: files in its folders that it did not look at, by ending.
    """

    added: int = 0
    already: int = 0
    refused: list[Refusal] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def nothing_good(self) -> bool:
        """Not one usable file, now or before."""
        return self.added + self.already == 0


def ingest_spectra(
    spectra: Path,
    archive: Path,
    grid: Grid,
    catalog: Catalog | None = None,
    workers: int = 1,
    progress: Progress = silent,
    wanted: Callable[[str], bool] = lambda source: True,
) -> IngestReport:
    """Add ADP and s1d files below a folder (or one file) to the archive's `real` group.

    A file that is in the archive already, by its relative name, size and time, is left alone; a data product that comes
    again is taken where a newer version of the pipeline made it. Stars are known again by `KnownStars`. workers:
    processes that read files. wanted: which of the files, by relative name. Nothing is made where there is no file to
    take in; raises ArchiveError where there is not even `spectra`.
    """
    report = IngestReport(counts=Counter(catalog.counts if catalog else {}))
    root = existing(spectra) if spectra.is_dir() else existing(spectra).parent
    sources = {path: printable(path.relative_to(root)) for path in find_spectra(spectra)}
    report.passed_over = passed_over(spectra, sources)
    paths = [path for path, source in sources.items() if wanted(source)]
    if not paths:
        return report
    with Archive.writing(archive, grid) as writer, processes(workers) as mapper:
        quarantine = Quarantine(archive)
        there = writer.rows("real")
        stamps = {row["source"]: row["stamp"] for row in there}
        versions, stars = KnownVersions(there), KnownStars(there)
        todo = [path for path in paths if stamps.get(sources[path]) != _stamp(path)]
        report.already = len(paths) - len(todo)
        progress("ingest spectra", report.already, len(paths))
        for block in blocks(todo, ROWS_PER_SHARD * workers):
            rows, refused = [], []
            for path, found in zip(block, mapper(partial(_read_real, grid=grid), block), strict=True):
                source = sources[path]
                if isinstance(found, Refusal):
                    refused.append(replace(found, source=source))
                    continue
                record, flux, flag = found
                if versions.is_there(record.dp_id, record.pipeline, source):
                    report.already += 1
                    continue
                if objection := versions.objection(record.dp_id, record.pipeline):
                    refused.append(Refusal(source, Reason.DUPLICATE, objection))
                    continue
                matched = refusing(source, Reason.NOT_FITS, partial(_real_columns, record, source, catalog))
                if isinstance(matched, Refusal):
                    refused.append(matched)
                    continue
                columns, counts = matched
                report.counts.update(counts)
                columns = stars.settle(columns | {"stamp": _stamp(path), "flag": flag})
                versions.add(columns)
                report.counts[flag] += bool(flag)
                rows.append((columns, flux))
            quarantine.update(refused, [columns["source"] for columns, _ in rows])
            writer.append("real", rows)
            report.added += len(rows)
            report.refused += refused
            progress("ingest spectra", report.already + report.added + len(report.refused), len(paths))
        if writer.count("real"):
            write_matches(archive, writer.rows("real", *OF_ARCHIVE))
    return report


def existing(path: Path) -> Path:
    """A file or folder that is to be read; raises ArchiveError where there is none."""
    if not path.exists():
        raise ArchiveError(f"there is nothing at {path} to be taken in. Check the path.")
    return path


def _stamp(path: Path) -> str:
    """Size and time of a file, '' where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _read_real(path: Path, grid: Grid) -> tuple[SpectrumRecord, np.ndarray, str] | Refusal:
    """Read one file and bring it onto the grid, flagged if broken or rewritten; refused where standardising fails."""
    return refusing(printable(path.name), Reason.NOT_FITS, partial(_on_grid, path, grid))


def _on_grid(path: Path, grid: Grid) -> tuple[SpectrumRecord, np.ndarray, str] | Refusal:
    record = read_spectrum(path)
    if isinstance(record, Refusal):
        return record
    found = prepare(record, grid, least_if_broken=BROKEN_COVERAGE)
    if isinstance(found, Refusal):
        return found
    empty = np.empty(0, np.float32)
    flag = "numerically broken flux" if found.broken else ""
    flag = flag or ("rewritten by IRAF or its kin" if record.product == REWRITTEN else "")
    return replace(record, wave_aa=empty, flux=empty), found.flux, flag


def _real_columns(record: SpectrumRecord, source: str, catalog: Catalog | None) -> tuple[dict[str, Any], Counter[str]]:
    """A spectrum's columns, and what is to be counted of them."""
    match, counts = catalog.match(record) if catalog else None, Counter[str]()
    counts[_how(match)] += 1
    labels = dict.fromkeys(CATALOGUED, np.nan)
    if match:
        labels |= match.labels
    wrong = (*record.out_of_range, *(match.out_of_range if match else ()))
    counts.update(f"{name} out of physical range" for name in wrong)
    counts[f"with flux beyond {WILD:g} medians, which counts as missing"] += record.wild > 0
    counts.update(f"with {name}" for name, value in labels.items() if np.isfinite(value))
    columns = {
        "key": record.dp_id,
        "source": source,
        "product": record.product,
        "object": record.object,
        "names": telling_names(record, match),
        "target": resolve_target(record, match),
        "catalogue_id": match.target_id if match and not match.note else "",
        "matched_by": (match.note or match.by) if match else "",
        "prog_id": record.prog_id,
        "origin": record.origin,
        "simulated": record.simulated,
        "pipeline": record.pipeline,
        "ra": record.ra_deg,
        "dec": record.dec_deg,
        "mjd": record.mjd_obs,
        "exptime": record.exptime_s,
        "snr": record.snr,
        "berv": record.berv_kms,
        "airmass": record.airmass,
        **labels,
    }
    return columns, counts


def _how(match: Match | None) -> str:
    """How a spectrum was matched, for counts."""
    if match is None:
        return "not in the catalogue"
    return "with a name that contradicts the position (no label taken)" if match.note else f"matched by {match.by}"


def blocks(entries: Sequence[Entry], size: int) -> Iterator[Sequence[Entry]]:
    """Entries in blocks that are committed together."""
    for first in range(0, len(entries), size):
        yield entries[first : first + size]
