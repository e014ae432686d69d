"""The table of fits: one row a spectrum, in FITS, ECSV, CSV or Parquet.

Tested in tests/integration/test_fitting.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.fitting.fitter import Fitted
from harps_dist.formats.sed import MODEL_ERRORS
from harps_dist.inference.table import OBSERVED, Columns, Field, notes_path, write_columns
from harps_dist.ownership import KEY, OutputKind, check, ecsv_meta, first_line, parquet_meta
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.labels import LABEL
from harps_dist.spectra.standardise import MINIMUM_COVERAGE

MADE_BY = "stellar_model"  # of the metadata
POOR_CLIPPED = 0.3  # share of the pixels
POOR_RESIDUAL = 0.04  # robust standard deviation beyond the noise, of the median flux; genuine K dwarfs: 0.01 to 0.03
NAMES = ("teff", "logg", "mh", "vmic", "broadening", "rv", "berv", "airmass", "pwv")
READ = ("teff", "logg", "mh", "vmic")  # of the star; at an edge of the model they are not known
FLAGS = {
    "coverage": f"less than {MINIMUM_COVERAGE:.0%} of the valid pixels carry data",
    "broken": "over 0.1 % of the pixels lie beyond 100 times the median flux; nothing is read",
    "at_edge": "teff, logg or mh ended at an edge of the stellar model, which does not hold this star; not read",
    "vmic_at_edge": "microturbulence ended at an edge of the stellar model",
    "poor": f"over {POOR_CLIPPED:.0%} of the pixels were clipped, or over {POOR_RESIDUAL:.0%} of the flux left over",
}
REGION_AA = 10.0
_MEANING = {"broadening": ("km/s", "sigma of a Gaussian that broadens the star's lines beyond the instrument")}


def fields_of() -> dict[str, Field]:
    """Every column of a table of fits, in order."""
    fields = dict(OBSERVED)
    for name in NAMES:
        unit, meaning = _MEANING.get(name) or (LABEL[name].unit, LABEL[name].meaning)
        fields[name] = Field(unit, f"{meaning}, fitted")
        fields[f"{name}_sigma"] = Field(unit, "standard deviation as photon noise makes it; NaN where it was held")
        fields[f"{name}_error"] = Field(unit, "standard deviation as residuals make it that hang together over 1.3 Å")
        if name in MODEL_ERRORS:
            fields[f"{name}_model_error"] = Field(
                unit, "what such fits were off by for genuine dwarfs, in no other error"
            )
    return fields | {
        "chi2_start": Field("", "reduced chi2 where the fit began"),
        "chi2": Field("", "reduced chi2 of the fit, without the clipped pixels"),
        "scale": Field("", "robust standard deviation of the residuals in that of noise and model, 1 at least"),
        "clipped": Field("", "share of the usable pixels that were clipped"),
        "clipped_regions": Field("", f"the three {REGION_AA:g} Å with the largest shares clipped [Å: share]"),
        "fill": Field("", "share of the grid's valid pixels that carry data"),
        "flags": Field("", f"of {', '.join(FLAGS)}; comma-separated"),
        **{f"flag_{name}": Field("", text) for name, text in FLAGS.items()},
        "start": Field("", "model that said where to begin; empty for cross-correlation"),
    }


def columns_of(
    fitted: Fitted,
    grid: Grid,
    sigma: np.ndarray,
    coverage: np.ndarray,
    broken: np.ndarray,
    model_errors: Mapping[str, float],
) -> Columns:
    """The columns that follow from n fits. sigma: (n, pixel), NaN where there are no data. coverage, broken: (n,), see
    `Observed`. model_errors: see `StellarModel.errors`."""
    solution = fitted.solution
    values, at_edge = solution.parameters.cpu().numpy().copy(), solution.at_edge.cpu().numpy()
    errors = [
        part.diagonal(dim1=1, dim2=2).cpu().numpy().clip(0) ** 0.5 for part in (solution.covariance, solution.scaled)
    ]
    names = list(fitted.names)
    edge = {name: at_edge[:, names.index(name)] for name in READ if name in names}
    outside = np.any([edge[name] for name in READ[:3] if name in edge], axis=0)
    columns: Columns = {}
    for name in NAMES:
        number = names.index("variance" if name == "broadening" else name)
        three = [values[:, number], *(np.where(fitted.held[:, number], np.nan, each[:, number]) for each in errors)]
        if name == "broadening":  # d(sigma²) = 2 sigma d(sigma)
            root = np.sqrt(three[0].clip(0))
            three = [root, *(np.where(root > 0, each / (2 * root.clip(1e-9)), np.nan) for each in three[1:])]
        unread = broken | outside if name in READ else broken
        for column, each in zip((name, f"{name}_sigma", f"{name}_error"), three, strict=True):
            columns[column] = np.where(unread, np.nan, each)
        if name in MODEL_ERRORS:
            off_by = np.where(fitted.held[:, number], np.nan, model_errors[name])
            columns[f"{name}_model_error"] = np.where(unread, np.nan, off_by)
    usable = np.isfinite(sigma)
    left = np.sqrt((solution.left.cpu().numpy() ** 2 - np.nanmedian(sigma, axis=1) ** 2).clip(0))  # beyond the noise
    lost = usable & ~solution.used.cpu().numpy()
    clipped = lost.sum(axis=1) / usable.sum(axis=1).clip(1)
    flags: Columns = {
        "coverage": coverage < MINIMUM_COVERAGE,
        "broken": broken,
        "at_edge": outside,
        "vmic_at_edge": edge.get("vmic", np.zeros(len(values), bool)) & ~outside,
        "poor": (clipped > POOR_CLIPPED) | (left > POOR_RESIDUAL),
    }
    kinds = np.array(list(flags))
    return columns | {
        **{name: getattr(solution, name).cpu().numpy().astype(np.float64) for name in ("chi2_start", "chi2", "scale")},
        "clipped": clipped,
        "clipped_regions": np.array([_regions(grid, *each) for each in zip(lost, usable, strict=True)], object),
        "fill": coverage,
        "flags": np.array([",".join(kinds[list(row)]) for row in zip(*flags.values(), strict=True)], object),
        **{f"flag_{name}": of_flag for name, of_flag in flags.items()},
    }


def _regions(grid: Grid, lost: np.ndarray, usable: np.ndarray) -> str:
    """The three regions that lost most, "6160-6170: 31%, …"; '' where nothing was lost."""
    region = (grid.wave_aa // REGION_AA).astype(int)
    region -= (first := int(region[0]))
    share = np.bincount(region, lost) / np.bincount(region, usable).clip(1)
    worst = [number for number in np.argsort(-share, kind="stable")[:3] if share[number] > 0]
    return ", ".join(f"{(first + n) * REGION_AA:.0f}-{(first + n + 1) * REGION_AA:.0f}: {share[n]:.0%}" for n in worst)


def write_table(path: Path, columns: Columns, metadata: Mapping[str, str]) -> None:
    """Write the table in the format of its ending, whole or not at all; raises OutputError where something else is."""
    check(path, FITS)
    write_columns(path, columns, fields_of(), metadata)


def _is_table(path: Path) -> bool:
    """By its metadata, or the names of all its columns."""
    ending = path.suffix.lower()
    if ending == ".csv":
        return first_line(path) == ",".join(fields_of())
    if ending == ".fits":
        from astropy.io import fits

        meta: Any = {name.lower() for name in fits.getheader(path, 1)}
    else:
        meta = set(ecsv_meta(path) if ending == ".ecsv" else parquet_meta(path))
    return {MADE_BY, KEY} <= {re.sub("^hierarch ", "", name) for name in meta}


def _is_notes(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.keys() == {"metadata", "columns"} and {MADE_BY, KEY} <= content["metadata"].keys()


FITS = OutputKind("table of fits", "-o", _is_table)
NOTES = OutputKind("description of a table of fits", "-o", _is_notes)


def notes_of(table: Path) -> list[tuple[Path, OutputKind]]:
    """What is written beside a table that has no room for units."""
    return [(notes_path(table), NOTES)] if table.suffix.lower() == ".csv" else []
