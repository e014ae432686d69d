"""Fit an archive's worth of spectra: files in, one table out; see `inference.blocks`.

Tested in tests/integration/test_fitting.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.data.batches import in_batches
from harps_dist.fitting.figures import fit_figure
from harps_dist.fitting.fitter import Fitted, Fitter
from harps_dist.fitting.stellar import CorrectedModel
from harps_dist.fitting.table import FITS, MADE_BY, columns_of, fields_of, notes_of, write_table
from harps_dist.inference.blocks import FAILED, PARTS, Good, TableReport, failed_path, in_blocks, parts_path, write_part
from harps_dist.inference.model import Exported
from harps_dist.inference.table import Columns, check_ending
from harps_dist.ownership import KEY, OutputKind, check, claimed, home
from harps_dist.progress import Progress, silent
from harps_dist.ranks.world import World

BATCH = 8  # spectra that are fitted at once
FORMAT = 2
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
) -> TableReport:
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
        return in_blocks(
            "fit",
            inputs,
            TableReport(table),
            parts,
            network.grid if network else fitter.grid,
            lambda good: _write_part(parts, fitter, good, network, figures, batch_size),
            lambda columns: _write(table, fitter, network, columns),
            world,
            workers,
            progress,
            errors=True,
        )


def parts_key(fitter: Fitter, network: Exported | None) -> str:
    """The folder of parts that were made in one way: by this model, these settings, this start and this software."""
    start = network.digest if network else ""
    stars = f"{type(fitter.model).__name__} {fitter.model.id}"
    made_by = f"{stars} {fitter.grid} {fitter.held} {fitter.settings} {start} {version('harps_dist')} {FORMAT}"
    return hashlib.sha256(made_by.encode()).hexdigest()[:16]


def _write_part(
    parts: Path, fitter: Fitter, good: Good, network: Exported | None, figures: Path | None, batch_size: int
) -> None:
    batches = in_batches(np.arange(len(good)), batch_size)
    columns = [_fitted(fitter, [good[row] for row in rows], network, figures) for rows in batches]
    write_part(parts, {name: np.concatenate([part[name] for part in columns]) for name in columns[0]})


def _fitted(fitter: Fitter, good: Good, network: Exported | None, figures: Path | None) -> dict[str, Any]:
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
    columns |= columns_of(fitted, fitter.grid, sigma, coverage, broken, fitter.model.errors)
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


def _write(table: Path, fitter: Fitter, network: Exported | None, columns: Columns) -> None:
    model, lines = fitter.model, ""
    if isinstance(model, CorrectedModel) and model.lines:
        about, lines, model = model.lines.about, model.lines.id, model.model
        star = about.star.encode("ascii", "backslashreplace").decode()  # for headers of FITS
        lines = f"{lines}: {star}, teff {about.teff:g} K, logg {about.logg:g}, mh {about.mh:g}"
    metadata = {
        MADE_BY: type(model).__name__,
        "stars": model.id,
        "lines": lines,
        "grid": fitter.grid.name,
        "start": network.description.id if network else "cross-correlation",
        **{package: version(package) for package in (KEY, "torch", "numpy", "astropy")},
    }
    write_table(table, {name: columns[name] for name in fields_of()}, metadata)
