"""From files to the archive: FITS spectra with a catalogue, and Exposure Time Calculator output with its SEDs.

Bad input is quarantined with its reason in `<archive>.quarantine.csv` and the rest goes on. Files are taken in
sorted order and committed in blocks, so that a killed ingest, started again, ends with the same archive.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import RESPONSE_TERMS, ROWS_PER_SHARD, Archive
from harps_dist.formats.etc import EtcRecord, read_etc
from harps_dist.formats.prepare import prepare
from harps_dist.formats.quarantine import Quarantine
from harps_dist.formats.readers import find_spectra, read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord, refusing, require
from harps_dist.formats.sed import SedRecord, read_sed
from harps_dist.progress import Progress, silent
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.labels import CATALOGUED
from harps_dist.spectra.observation import Response, fold_response
from harps_dist.spectra.quantities import expected, in_range
from harps_dist.spectra.regrid import regrid, regrid_covered
from harps_dist.spectra.standardise import MINIMUM_COVERAGE, WILD
from harps_dist.text import printable
from preprocessing.catalog import Catalog, resolve_target, telling_names
from preprocessing.identity import KnownStars, KnownVersions

BROKEN_COVERAGE = 0.5  # of valid pixels, that a spectrum has which is kept for the record alone
LEAST_LIGHT = 1e-6  # of the blaze; below it an order has no light, and what is divided by it is no response

Row = tuple[dict[str, Any], np.ndarray]
Entry = TypeVar("Entry")


@dataclass
class IngestReport:
    """What an ingest did. `counts` says how stars were matched, which labels are there or out of range, and flags."""

    added: int = 0
    already: int = 0
    refused: list[Refusal] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

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
    paths = [path for path, source in sources.items() if wanted(source)]
    if not paths:
        return report
    with Archive.writing(archive, grid) as writer, _mapper(workers) as mapper:
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
    """Read one file and bring it onto the grid, flagged if broken; refused where it could not be standardised there."""
    return refusing(printable(path.name), Reason.NOT_FITS, partial(_on_grid, path, grid))


def _on_grid(path: Path, grid: Grid) -> tuple[SpectrumRecord, np.ndarray, str] | Refusal:
    record = read_spectrum(path)
    if isinstance(record, Refusal):
        return record
    found = prepare(record, grid, least_if_broken=BROKEN_COVERAGE)
    if isinstance(found, Refusal):
        return found
    empty = np.empty(0, np.float32)
    return replace(record, wave_aa=empty, flux=empty), found.flux, "numerically broken flux" if found.broken else ""


def _real_columns(record: SpectrumRecord, source: str, catalog: Catalog | None) -> tuple[dict[str, Any], Counter[str]]:
    """A spectrum's columns, and what is to be counted of them."""
    match, counts = catalog.match(record) if catalog else None, Counter[str]()
    counts[f"matched by {match.by}" if match else "not in the catalogue"] += 1
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
        "names": telling_names(record),
        "target": resolve_target(record, match),
        "catalogue_id": match.target_id if match else "",
        "matched_by": match.by if match else "",
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


def ingest_etc(
    runs: Path,
    archive: Path,
    grid: Grid,
    seds: Path | None = None,
    progress: Progress = silent,
) -> IngestReport:
    """Add ETC 2.0 outputs below a folder, and every SED of the folder `seds`, to the archive.

    Each run adds a response; its SED is added with it unless it is there. SEDs are scaled to unit median and
    the response takes up the brightness, so that any SED may be seen through any response. Nothing is made where there
    is no file to take in; raises ArchiveError where a folder is missing.
    """
    report = IngestReport()
    sed_paths = sorted((*existing(seds).rglob("*.fits"), *seds.rglob("*.npz"))) if seds else []
    etc_paths = sorted((*existing(runs).rglob("*.json"), *runs.rglob("*.json.gz")))
    if not sed_paths and not etc_paths:
        return report
    with Archive.writing(archive, grid) as writer:
        quarantine = Quarantine(archive)
        sources: list[tuple[str, Path, list[Path], Callable[[Path, str], dict[str, list[Row]] | Refusal]]] = []
        if seds:
            sources.append(("sed", seds, sed_paths, partial(_sed_rows, writer)))
        sources.append(("response", runs, etc_paths, partial(_response_rows, writer, seds)))
        total = sum(len(paths) for _, _, paths, _ in sources)
        for group, root, paths, read in sources:
            known = set(writer.column(group, "source"))
            names = {path: printable(path.relative_to(root)) for path in paths}
            todo = [path for path in paths if names[path] not in known]
            report.already += len(paths) - len(todo)
            for block in blocks(todo, ROWS_PER_SHARD):
                sed_rows: list[Row] = []
                response_rows: list[Row] = []
                refused: list[Refusal] = []
                for path in block:
                    source = names[path]
                    found = refusing(source, Reason.UNREADABLE, partial(read, path, source))
                    if isinstance(found, Refusal):
                        refused.append(replace(found, source=source))
                        continue
                    sed_rows += found.get("sed", [])
                    response_rows += found.get("response", [])
                quarantine.update(refused, [columns["source"] for columns, _ in (*sed_rows, *response_rows)])
                writer.append("sed", _new(writer, "sed", sed_rows))
                added = _new(writer, "response", response_rows)
                writer.append("response", added)
                report.added += len(block) - len(refused)
                report.refused += refused
                progress("ingest ETC runs and SEDs", report.already + report.added + len(report.refused), total)
    return report


def _sed_rows(writer: Archive, path: Path, source: str) -> dict[str, list[Row]] | Refusal:
    record = read_sed(path)
    if isinstance(record, Refusal):
        return record
    row = sed_row(record, source, writer.grid, writer.source_grid)
    return row if isinstance(row, Refusal) else {"sed": [row[0]]}


def sed_row(record: SedRecord, source: str, grid: Grid, source_grid: Grid) -> tuple[Row, float] | Refusal:
    """The archive row of an SED, scaled to unit median over the valid pixels, and that median."""
    flux = regrid(record.wave_aa, record.flux, source_grid)
    inner = flux[grid.within(source_grid)][grid.valid]
    covered = np.isfinite(inner).mean()
    if covered < 1:
        return Refusal.coverage(record.source, covered, grid.name, 1, record.wave_aa)
    level = float(np.median(inner))
    if not (level > 0 and np.nanmin(flux) > 0):
        return Refusal(record.source, Reason.NEGATIVE, "an SED must be positive everywhere")
    columns = {
        "key": record.sed_id,
        "source": source,
        "teff": record.teff_k,
        "mh": record.mh,
        "logg": record.logg,
        "vmic": record.vmic_kms,
    }
    return (columns, _hold_ends(flux) / level), level


def _response_rows(writer: Archive, seds: Path | None, path: Path, source: str) -> dict[str, list[Row]] | Refusal:
    record = read_etc(path, seds)
    if isinstance(record, Refusal):
        return record
    sed = sed_row(record.sed, record.sed.source, writer.grid, writer.source_grid)
    if isinstance(sed, Refusal):
        return sed
    (sed_columns, sed_flux), level = sed
    response = etc_response(record, writer.source_grid)
    inner = writer.grid.within(writer.source_grid)
    covered = np.isfinite(response.mean[inner][writer.grid.valid]).mean()
    if covered < MINIMUM_COVERAGE:
        wave_aa = np.sort(np.concatenate([order.wave_aa for order in record.orders]))
        return Refusal.coverage(record.etc_id, covered, writer.grid.name, MINIMUM_COVERAGE, wave_aa)
    terms = np.stack([response.mean * level, response.variance * level, response.floor])
    signal = terms[0] * sed_flux
    snr = float(np.nanmedian((signal / np.sqrt(terms[1] * sed_flux + terms[2]))[inner][writer.grid.valid]))
    terms = np.stack([_hold_ends(term) for term in terms])
    for name, term in zip(RESPONSE_TERMS, terms, strict=True):
        detail = (
            f"the {name} of its response runs from {term.min():g} to {term.max():g}, expected {expected('response')}"
        )
        possible = in_range("response", term.min()) and in_range("response", term.max())
        require(possible, Reason.OUT_OF_RANGE, detail)
    require(in_range("snr", snr), Reason.OUT_OF_RANGE, f"its S/N is {snr:g}, expected {expected('snr')}")
    columns = {
        "key": record.etc_id,
        "source": source,
        "sed": record.sed.sed_id,
        "airmass": record.airmass,
        "pwv": record.pwv_mm,
        "mag": record.mag,
        "exptime": record.exptime_s,
        "snr": snr,
    }
    return {"sed": [(sed_columns, sed_flux)], "response": [(columns, terms)]}


def etc_response(record: EtcRecord, grid: Grid) -> Response:
    """Fold a run's orders into the response on the lattice (Appendix A); (grid.length,) with NaN where no order is.

    Wavelengths are the detector's, topocentric.
    """
    widest = max(order.dispersion_m_per_px.max() for order in record.orders)
    arrays = np.full((4, 2, grid.length), np.nan)  # throughput, blaze · dispersion, sky and readout of even, odd orders
    for order in record.orders:
        values = np.stack(
            (
                order.target / order.sed,
                np.where(order.blaze > LEAST_LIGHT, order.blaze, np.nan) * order.dispersion_m_per_px / widest,
                order.sky,
                np.full(len(order.wave_aa), order.readout_variance),
            )
        )
        whole = np.isfinite(values).all()  # else each by itself: what one lacks the others may have
        for which in (slice(None),) if whole else range(len(values)):
            into = arrays[which, order.order % 2]
            pixel, on_grid = regrid_covered(order.wave_aa, values[which], grid)
            into[..., pixel] = np.where(np.isfinite(on_grid), on_grid, into[..., pixel])
    return fold_response(*((even, odd) for even, odd in arrays))


def _hold_ends(values: np.ndarray) -> np.ndarray:
    """Bridge missing pixels by straight lines, and hold the outermost values beyond them."""
    pixel, finite = np.arange(len(values)), np.isfinite(values)
    return np.interp(pixel, pixel[finite], values[finite])


def _new(writer: Archive, group: str, rows: list[Row]) -> list[Row]:
    """Rows whose key is not in the archive yet, each key once."""
    known = set(writer.column(group, "key"))
    fresh: dict[str, Row] = {}
    for columns, data in rows:
        if columns["key"] not in known:
            fresh.setdefault(columns["key"], (columns, data))
    return list(fresh.values())


def blocks(entries: Sequence[Entry], size: int) -> Iterator[Sequence[Entry]]:
    """Entries in blocks that are committed together."""
    for first in range(0, len(entries), size):
        yield entries[first : first + size]


@contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """`map`, or the same over processes."""
    if workers <= 1:
        yield map
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield pool.map
