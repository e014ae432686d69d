"""Subcommands of `benchmark` that read files: what it costs to take them in and to predict, and what is read of them.

Example: `harps-dist benchmark genuine --spectra spectra --labels labels.csv`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from harps_dist.ownership import check


def etc(runs: int = 16, json: Path | None = None) -> int:
    """What it costs to take a run of the ETC into an archive, on one core and the full grid; runs are made here.

    Example: `harps-dist benchmark etc --runs 4`.

    Args:
        runs: Runs of each generation of the output.
        json: File for the figures.
    """
    from harps_dist.benchmarks.etc_speed import COSTS, etc_costs, etc_table, write_costs
    from harps_dist.console import console_for

    check(json, COSTS)
    costs = etc_costs(runs)
    console_for().print(etc_table(costs))
    write_costs(costs, json)
    return 0


def ingest(
    spectra: tyro.conf.Positional[Path | None] = None, files: int = 32, grid: str = "harps", json: Path | None = None
) -> int:
    """Whole ingest of FITS files, files a second and core, beside reading them with astropy alone and their bytes.

    Example: `harps-dist benchmark ingest --files 8`.

    Args:
        spectra: Folder of spectra; by default files of each form are made here.
        files: How many of each form are made.
        grid: Grid of the archive.
        json: File for the figures.
    """
    from harps_dist.benchmarks.ingest_speed import COSTS, ingest_costs, ingest_table, write_costs
    from harps_dist.console import console_for

    check(json, COSTS)
    costs = ingest_costs(files, grid, spectra)
    console_for().print(ingest_table(costs))
    write_costs(costs, grid, json)
    return 0


def predict(
    model: tyro.conf.Positional[Path],
    inputs: tyro.conf.Positional[tuple[str, ...]],
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    json: Path | None = None,
) -> int:
    """From files to labels on one core, files a second, beside what the network of an export takes alone.

    Example: `harps-dist benchmark predict model spectra`.

    Args:
        model: Folder that export.py wrote.
        inputs: Files, folders or patterns.
        precision: Precision of the encoder, as predict.py takes it.
        json: File to write every figure to.
    """
    import harps_dist
    from harps_dist.benchmarks.predict_speed import SPEED, predict_speed, speed_table, write_speed
    from harps_dist.console import console_for

    check(json, SPEED)
    found = predict_speed(harps_dist.load(model, precision=precision), inputs)
    console_for().print(speed_table(found))
    write_speed(found, json)
    return 0


def genuine(
    spectra: Path,
    labels: Path,
    model: Path | None = None,
    stars: Path | None = None,
    lines: Path | None = None,
    continuum: int = 16,
    columns: str | None = None,
    tables: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: Path | None = None,
) -> int:
    """What a network and fits read of stars whose labels are known: bias and scatter, star by star and over stars.

    Methods are a network, the same by 16 blankings where it was trained with blanked pieces, the same refined on what
    it draws where it can, fits that begin by cross-correlation, and fits that begin where the network says. Without a
    model there are fits alone.

    Example: `harps-dist benchmark genuine --spectra spectra --labels labels.csv --model model --json genuine.json`.

    Args:
        spectra: Folder of spectra (searched recursively), or one file, as ingest takes them.
        labels: Catalogue of the stars, with errors of their labels where it has them, as ingest takes it.
        model: Folder that export.py wrote.
        stars: Run or export of a model with physics, whose stars at rest are fitted instead of the packaged ones.
        lines: Corrections of line depths that `harps-dist lines` learned from another star; fits apply them.
        continuum: Degree of the continuum of fits, a Chebyshev polynomial.
        columns: Columns of the catalogue that names do not tell, as teff=Teff_spec,logg=g_spec.
        tables: Folder that keeps the table of every method, so that the same command goes on where it was interrupted.
        device: Device that predicts and fits; auto is a GPU where there is one.
        json: File for all scores; RUNS/genuine.json stands on the page of reproduce.
    """
    from harps_dist.benchmarks.genuine import GENUINE, TABLES, genuine_scores, genuine_tables, write_genuine
    from harps_dist.benchmarks.step_speed import wanted_device
    from harps_dist.console import console_for, say
    from harps_dist.fitting.emulated import emulated
    from harps_dist.fitting.fitter import Fitter, Held, Settings, fitting_grid
    from harps_dist.fitting.stellar import with_lines
    from harps_dist.inference.model import load
    from harps_dist.progress import progress_bars
    from harps_dist.text import command_of
    from preprocessing.catalog import Catalog
    from preprocessing.catalog_files import column_lines, parse_columns

    check(json, GENUINE)
    check(tables, TABLES)
    catalog = Catalog.read(labels, mapping=parse_columns(columns) if columns else None)
    for told in column_lines(catalog.used, catalog.unused):
        say(told)
    say(f"reference errors: {', '.join(catalog.errors) or 'none'}")
    chosen = wanted_device(device)
    network = load(model, chosen) if model else None
    options = {"spectra": spectra, "labels": labels, "model": model, "stars": stars, "lines": lines, "columns": columns}
    how = command_of("genuine", **options, continuum=None if continuum == 16 else continuum)
    grid, of_stars = fitting_grid(network.grid if network else None), emulated(stars, chosen)
    fitter = Fitter(grid, with_lines(of_stars, lines, chosen), Held(), Settings(continuum=continuum), chosen)
    with progress_bars() as progress:
        scores = genuine_scores(spectra, catalog, fitter, network, tables, how, progress)
    for table in genuine_tables(scores):
        console_for().print(table)
    for why, count in scores.left_out.items():
        say(f"{count} {why}")
    write_genuine(scores, json)
    return 0
