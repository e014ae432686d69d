"""A table of fits that no fit made: labels with errors of spectra by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harps_dist.fitting.table import FLAGS, NAMES, fields_of, write_table

Labels = Mapping[str, tuple[float, float]]  # value and error


def write_fits(
    path: Path,
    fits: Mapping[str, Labels],
    flags: Mapping[str, str] | None = None,
    forms: Mapping[str, str] | None = None,
) -> Path:
    """fits: labels by data product, what is not given is NaN. flags, forms: texts of the columns by data product."""
    flags, forms, columns = flags or {}, forms or {}, {}
    for name, field in fields_of().items():
        columns[name] = np.full(len(fits), np.nan) if field.unit else np.full(len(fits), "", object)
    for name in ("chi2", "chi2_start", "scale", "clipped", "fill", "snr", "airmass", "airmass_header"):
        columns[name] = np.full(len(fits), np.nan)
    for name in NAMES:
        for number, column in enumerate((name, f"{name}_error")):
            columns[column] = np.array([labels.get(name, (np.nan, np.nan))[number] for labels in fits.values()])
        columns[f"{name}_sigma"] = columns[f"{name}_error"] / 10
        if (off_by := f"{name}_model_error") in columns:
            columns[off_by] = np.where(np.isfinite(columns[name]), 0.0, np.nan)
    columns["dp_id"] = np.array(list(fits), object)
    columns["flags"] = np.array([flags.get(product, "") for product in fits], object)
    columns["other_forms"] = np.array([forms.get(product, "") for product in fits], object)
    for flag in FLAGS:
        columns[f"flag_{flag}"] = np.array([flag in flags.get(product, "").split(",") for product in fits])
    write_table(path, columns, {"stellar_model": "PackagedModel", "harps_dist": "0"})
    return path
