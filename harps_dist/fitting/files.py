"""Fit an archive's worth of spectra: files in, one table out, in steps that a kill cannot undo or repeat.

Tested in tests/integration/test_fitting.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.data.batches import in_batches
from harps_dist.errors import Interrupted
from harps_dist.fitting.figures import fit_figure
from harps_dist.fitting.fitter import Fitted, Fitter
from harps_dist.fitting.table import FITS, MADE_BY, columns_of, fields_of, notes_of, write_table
from harps_dist.inference.model import Exported
from harps_dist.inference.predict import (
    FAILED,
    PARTS,
    PredictReport,
    assembled,
    failed_path,
    parts_path,
    plan_blocks,
    write_failed,
    write_part,
)
from harps_dist.inference.sources import Item, Observed, not_looked_at, read_items
from harps_dist.inference.table import check_ending
from harps_dist.ownership import KEY, OutputKind, check, claimed, home
from harps_dist.progress import Progress, silent
from harps_dist.ranks.world import World

BATCH = 8  # spectra that are fitted at once
FORMAT = 1
FIGURES = home("figures of fits", "--figures")


def outputs_of(table: Path) -> list[tuple[Path, OutputKind]]:
    """All that is written for a table."""
    return [(table, FITS), *notes_of(table), (failed_path(table), FAILED), (parts_path(table), PARTS)]


def check_outputs(table: Path, figures: Path | None) -> None:
    """Raises ConfigError or OutputError where no such outputs can be written: to be called before any work."""
    check_ending(table)
    for output in outputs_of(table):
        check(*output)
    if figures:
        check(figures, FIGURES)


def fit_files(
    fitter: Fitter,
    inputs: Sequence[str | Path],
    table: str | Path,
    network: Exported | None = None,
    figures: Path | None = None,
    batch_size: int = BATCH,
    workers: int = 0,
    world: World | None = None,
    progress: Progress = silent,
) -> PredictReport:
    """Fit every spectrum of the inputs into a table, one row each, in the order of the inputs.

    inputs, table, workers, world: as for `inference.predict.predict_files`, and so are errors. network: says where fits
    begin. figures: folder for one figure a spectrum that is fitted now.
    """
    table, world = Path(table), world or World.alone(fitter.device)
    check_outputs(table, figures)
    parts = parts_path(table) / parts_key(fitter, network)
    first, *beside = outputs_of(table)

    @contextmanager
    def claim() -> Iterator[None]:
        with claimed(*first, *beside), claimed(figures, FIGURES) if figures else nullcontext():
            yield

    with world.claiming(claim):
        items, refused, todo = world.of_main(lambda: plan_blocks(inputs, parts))
        report, before = PredictReport(table), len(items) - sum(map(len, todo))
        progress("fit", before, len(items))
        done, failed = 0, [] if not world.is_main else list(refused)
        mine = todo[world.rank :: world.size]
        grid = network.grid if network else fitter.grid
        stream = read_items([item for block in mine for item in block], grid, workers, errors=True)
        try:
            for block in world.in_step(mine, -(-len(todo) // world.size)):
                read = list(zip(block, islice(stream, len(block)), strict=True))
                good = [(item, found) for item, found in read if isinstance(found, Observed)]
                failed += [found for _, found in read if not isinstance(found, Observed)]
                columns: list[dict[str, Any]] = []
                for rows in in_batches(np.arange(len(good)), batch_size):
                    columns.append(_fitted(fitter, [good[row] for row in rows], network, figures))
                if columns:
                    write_part(parts, {name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
                done += len(block)
                progress("fit", min(before + done * world.size, len(items)), len(items))
        except Interrupted as interrupted:
            rows_done = before + sum(world.gather(done))
            raise Interrupted(str(interrupted), f"{rows_done:,} of {len(items):,} spectra are done") from None
        report.failed = [refusal for of_rank in world.gather(failed) for refusal in of_rank]
        fresh = {item.identity for block in todo for item in block}
        return world.of_main(lambda: _finish(report, parts, fitter, network, items, inputs, fresh))


def parts_key(fitter: Fitter, network: Exported | None) -> str:
    """The folder of parts that were made in one way: by this model, these settings, this start and this software."""
    start = network.digest if network else ""
    stars = f"{type(fitter.model).__name__} {fitter.model.id}"
    made_by = f"{stars} {fitter.grid} {fitter.held} {fitter.settings} {start} {version('harps_dist')} {FORMAT}"
    return hashlib.sha256(made_by.encode()).hexdigest()[:16]


def _fitted(
    fitter: Fitter, good: Sequence[tuple[Item, Observed]], network: Exported | None, figures: Path | None
) -> dict[str, Any]:
    """The columns of spectra that were read, and their figures."""
    found = [observed for _, observed in good]
    flux, sigma = (np.stack([getattr(one, name) for one in found]) for name in ("flux", "sigma"))
    starts = _starts(network, flux, np.stack([one.noise for one in found])) if network else None
    part = fitter.grid.within(network.grid if network else fitter.grid)
    flux, sigma = flux[:, part], sigma[:, part]
    level = np.median(flux, axis=1, keepdims=True)
    flux, sigma = flux / level, sigma / level
    fitted = fitter.fit(flux, sigma, [one.columns["berv_header"] for one in found], starts)
    coverage, broken = (np.array([getattr(one, name) for one in found]) for name in ("coverage", "broken"))
    columns: dict[str, Any] = {"identity": np.array([item.identity for item, _ in good], object)}
    columns |= {name: np.array([one.columns[name] for one in found]) for name in found[0].columns}
    columns |= columns_of(fitted, fitter.grid, sigma, coverage, broken)
    columns["start"] = np.full(len(found), network.description.id if network else "", object)
    if figures:
        _draw(figures, fitter, flux, sigma, fitted, columns)
    return columns


def _starts(network: Exported, flux: np.ndarray, noise: np.ndarray) -> list[Mapping[str, float]]:
    """What the network reads, by parameter, where it reads it."""
    said = network.predict_flux(flux, noise, chi2=False).labels
    names = {name for name in network.labels if name != "berv"}  # which the fit knows better
    rows = [dict(zip(network.labels, row.tolist(), strict=True)) for row in said]
    return [{name: value for name, value in row.items() if name in names and np.isfinite(value)} for row in rows]


def _draw(
    folder: Path, fitter: Fitter, flux: np.ndarray, sigma: np.ndarray, fitted: Fitted, columns: Mapping[str, Any]
) -> None:
    model, used = fitted.solution.model.cpu().numpy(), fitted.solution.used.cpu().numpy()
    for row, usable in enumerate(np.isfinite(sigma)):
        told = ", ".join(
            f"{name} {columns[name][row]:.{digits}f} {unit}".strip()
            for name, digits, unit in (
                ("teff", 0, "K"),
                ("logg", 2, ""),
                ("mh", 2, ""),
                ("vmic", 2, "km/s"),
                ("rv", 2, "km/s"),
            )
        )
        flags = f"; flags: {columns['flags'][row]}" if columns["flags"][row] else ""
        title = (
            f"{columns['object'][row]}, {columns['dp_id'][row]}: {told}, clipped {columns['clipped'][row]:.1%}{flags}"
        )
        name = re.sub(r"[^A-Za-z0-9._-]", "_", str(columns["dp_id"][row])).lstrip(".") or "spectrum"
        shown = np.where(usable, flux[row], np.nan)
        fit_figure(folder / f"{name}.png", fitter.grid.wave_aa, shown, model[row], usable & ~used[row], title)


def _finish(
    report: PredictReport,
    parts: Path,
    fitter: Fitter,
    network: Exported | None,
    items: Sequence[Item],
    inputs: Sequence[str | Path],
    fresh: Set[str],
) -> PredictReport:
    """Write the table and the list of failures, and complete the report. fresh: identities that this run fitted."""
    columns = assembled(report, parts, items, fresh)
    if columns:
        metadata = {
            MADE_BY: type(fitter.model).__name__,
            "stars": fitter.model.id,
            "grid": fitter.grid.name,
            "start": network.description.id if network else "cross-correlation",
            **{package: version(package) for package in (KEY, "torch", "numpy", "astropy")},
        }
        write_table(report.table, {name: columns[name] for name in fields_of()}, metadata)
    write_failed(failed_path(report.table), report.failed)
    report.not_looked_at = not_looked_at(inputs, items)
    return report
