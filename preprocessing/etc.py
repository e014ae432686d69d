"""From files to the archive: Exposure Time Calculator output with its SEDs.

What holds for spectra (`ingest`) holds here: bad input is quarantined, and a killed ingest, started again, ends with
the same archive, whatever the number of processes.

Tested in tests/integration/test_etc_at_scale.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from harps_dist.formats.archive import RESPONSE_TERMS, ROWS_PER_SHARD, Archive
from harps_dist.formats.etc import EtcRecord, read_etc
from harps_dist.formats.folders import MACOS, passed_over
from harps_dist.formats.quarantine import Quarantine
from harps_dist.formats.records import Reason, Refusal, refusing, require
from harps_dist.formats.sed import SedRecord, read_sed
from harps_dist.progress import Progress, silent
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.observation import Response, fold_response
from harps_dist.spectra.quantities import expected, in_range
from harps_dist.spectra.regrid import regrid, regrid_covered
from harps_dist.spectra.spline import repeated_spline
from harps_dist.spectra.standardise import MINIMUM_COVERAGE
from harps_dist.text import printable
from preprocessing.ingest import IngestReport, Row, blocks, existing
from preprocessing.workers import processes

GROUPS = "sed", "response"  # what ETC runs and SEDs fill, in the order of commits: no response without its SED
LEAST_LIGHT = 1e-6  # of the blaze; below it an order has no light, and what is divided by it is no response

EtcRows = dict[str, Row]  # by group


def ingest_etc(
    runs: Path,
    archive: Path,
    grid: Grid,
    seds: Path | None = None,
    progress: Progress = silent,
    workers: int = 1,
    wanted: Callable[[str], bool] = lambda source: True,
) -> IngestReport:
    """Add ETC 2.0 outputs below a folder, and every SED of the folder `seds`, to the archive.

    Each run adds a response; an SED that its output alone holds is added with it. SEDs are scaled to unit median and
    the response takes up the brightness, so that any SED may be seen through any response. A second file of one name
    is refused. workers: processes that read files; wanted: which of the files, by relative name: the archive is the
    same for any number of both. Nothing is made where there is no file to take in; raises ArchiveError where a folder
    is missing.
    """
    report = IngestReport()
    below = {"sed": _below(seds, "*.fits", "*.npz") if seds else {}, "response": _below(runs, "*.json", "*.json.gz")}
    folders = {path.resolve(): path for path in (runs, seds or runs)}
    for real, folder in folders.items():
        if not folders.keys() & set(real.parents):  # else it is counted within the other
            report.passed_over += passed_over(folder, below["sed"] | below["response"])
    sed_files, etc_files = (_in_etc_order(below[group], wanted) for group in GROUPS)
    total = len(sed_files) + len(etc_files)
    if not total:
        return report
    with Archive.writing(archive, grid) as writer, processes(workers) as mapper:
        quarantine = Quarantine(archive)
        known = {
            group: dict(zip(*(writer.column(group, name) for name in ("key", "source")), strict=True))
            for group in GROUPS
        }
        grids = grid, writer.source_grid
        for group, files, read in (
            ("sed", sed_files, partial(_sed_rows, *grids)),
            ("response", etc_files, partial(_response_rows, *grids, seds)),
        ):
            there = set(known[group].values())
            todo = [(path, source) for path, source in files.items() if source not in there]
            report.already += len(files) - len(todo)
            found = mapper(partial(_read_etc_file, read), todo)
            for block in blocks(todo, ROWS_PER_SHARD):
                rows: dict[str, list[Row]] = {group: [] for group in GROUPS}
                refused: list[Refusal] = []
                for (_, source), read_rows in zip(block, found, strict=False):
                    if isinstance(read_rows, Refusal):
                        refused.append(replace(read_rows, source=source))
                    elif objection := taken_name(known[group], read_rows[group][0]["key"]):
                        refused.append(Refusal(source, Reason.DUPLICATE, objection))
                    else:
                        for name, (columns, data) in read_rows.items():
                            if columns["key"] not in known[name]:
                                known[name][columns["key"]] = columns["source"]
                                rows[name].append((columns, data))
                quarantine.update(refused, [columns["source"] for name in GROUPS for columns, _ in rows[name]])
                for name in GROUPS:
                    writer.append(name, rows[name])
                report.added += len(block) - len(refused)
                report.refused += refused
                progress("ingest ETC runs and SEDs", report.already + report.added + len(report.refused), total)
    return report


def _below(folder: Path, *patterns: str) -> dict[Path, str]:
    """Files below a folder by the patterns of their names, with their relative names."""
    found = (path for pattern in patterns for path in existing(folder).rglob(pattern))
    return {path: printable(path.relative_to(folder)) for path in found if not path.name.startswith(MACOS)}


def _in_etc_order(files: Mapping[Path, str], wanted: Callable[[str], bool]) -> dict[Path, str]:
    """Files that are wanted, in the order in which an archive takes them."""
    return dict(sorted((file for file in files.items() if wanted(file[1])), key=lambda file: etc_order(file[1])))


def etc_order(source: str) -> tuple[bool, list[str]]:
    """What SEDs, and responses, are sorted by: files of SEDs by path, then the SEDs that outputs alone hold."""
    return is_etc_run(source), source.split("/")


def is_etc_run(source: str) -> bool:
    """Whether a file is an output of the ETC, by its name; SEDs come from files of their own, or from these."""
    return source.endswith((".json", ".json.gz"))


def taken_name(known: Mapping[str, str], key: str) -> str | None:
    """Why an SED or a run of that name is not wanted; None where there is none yet. known: names and their files."""
    return f"there is one of this name, {key}, from {known[key]}; expected names that differ" if key in known else None


def _read_etc_file(read: Callable[[Path, str], EtcRows | Refusal], file: tuple[Path, str]) -> EtcRows | Refusal:
    return refusing(file[1], Reason.UNREADABLE, partial(read, *file))


def _sed_rows(grid: Grid, source_grid: Grid, path: Path, source: str) -> EtcRows | Refusal:
    record = read_sed(path)
    if isinstance(record, Refusal):
        return record
    row = sed_row(record, source, grid, source_grid)
    return row if isinstance(row, Refusal) else {"sed": _as_stored(row[0])}


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


def _response_rows(grid: Grid, source_grid: Grid, seds: Path | None, path: Path, source: str) -> EtcRows | Refusal:
    record = read_etc(path, seds)
    if isinstance(record, Refusal):
        return record
    sed = sed_row(record.sed, source, grid, source_grid)
    if isinstance(sed, Refusal):
        return sed
    (sed_columns, sed_flux), level = sed
    response = etc_response(record, source_grid)
    inner = grid.within(source_grid)
    covered = np.isfinite(response.mean[inner][grid.valid]).mean()
    if covered < MINIMUM_COVERAGE:
        wave_aa = np.sort(np.concatenate([order.wave_aa for order in record.orders]))
        return Refusal.coverage(record.etc_id, covered, grid.name, MINIMUM_COVERAGE, wave_aa)
    terms = np.stack([response.mean * level, response.variance * level, response.floor])
    signal = terms[0] * sed_flux
    snr = float(np.nanmedian((signal / np.sqrt(terms[1] * sed_flux + terms[2]))[inner][grid.valid]))
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
    rows = {"response": _as_stored((columns, terms))}
    own = record.sed.source == printable(path.name)  # others stand in the folder of SEDs, and come in from there
    return rows | {"sed": _as_stored((sed_columns, sed_flux))} if own else rows


def _as_stored(row: Row) -> Row:
    """A row with its array as the archive keeps it, half as large on its way from a process that read it."""
    return row[0], row[1].astype(np.float32)


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
            )
        )
        whole = np.isfinite(values).all()  # else each by itself: what one lacks the others may have
        for which in (slice(None),) if whole else range(len(values)):
            into = arrays[:-1][which, order.order % 2]
            pixel, on_grid = regrid_covered(order.wave_aa, values[which], grid, repeated_spline)
            into[..., pixel] = np.where(np.isfinite(on_grid), on_grid, into[..., pixel])
        arrays[-1, order.order % 2, pixel] = order.readout_variance  # where the sky is, which is finite everywhere
    return fold_response(*((even, odd) for even, odd in arrays))


def _hold_ends(values: np.ndarray) -> np.ndarray:
    """Bridge missing pixels by straight lines, and hold the outermost values beyond them."""
    pixel, finite = np.arange(len(values)), np.isfinite(values)
    held = values.astype(np.float64)
    held[~finite] = np.interp(pixel[~finite], pixel[finite], values[finite])
    return held
