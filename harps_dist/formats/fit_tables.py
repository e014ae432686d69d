"""Tables of fits, read back: the labels that fits read off spectra, and how far each may be off.

Tested in tests/unit/test_fit_tables.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from harps_dist.errors import ConfigError
from harps_dist.spectra.labels import LABEL, NAMES
from harps_dist.spectra.quantities import in_range_each
from harps_dist.text import cleaned, printable

PARTLY = "vmic_at_edge"  # a flag of one label alone, which is not read then


@dataclass(frozen=True)
class FitLabels:
    """Labels that fits read off n spectra.

    products: (n,) data product ids. values, errors: (n, len(NAMES)) float64 in the labels' units, errors the standard
    deviations that residuals make and, in quadrature, what model spectra are off by; both NaN where a fit did not read
    a label, or held it. flagged: fits that are not
    to be relied on, by data product, with their flags. forms: other forms of exposures, each with the data product of
    the fit.
    """

    products: tuple[str, ...]
    values: np.ndarray
    errors: np.ndarray
    flagged: dict[str, str]
    forms: dict[str, str]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {product: row for row, product in enumerate(self.products)}

    def row(self, product: str, other_forms: Iterable[str] = ()) -> int | None:
        """The row of the fit of an exposure, by any of its forms; None where there is none to be relied on."""
        for form in (product, *other_forms):
            if (row := self._rows.get(self.forms.get(form, form))) is not None:
                return row
        return None

    @property
    def digest(self) -> str:
        """sha256 of all this, whatever the order of fits and the form of their table."""
        content = hashlib.sha256(json.dumps([self.flagged, self.forms], sort_keys=True).encode())
        for product in sorted(self._rows):
            content.update(product.encode() + b"\n")
            for numbers in (self.values, self.errors):
                content.update(np.ascontiguousarray(numbers[self._rows[product]], "<f8").tobytes())
        return content.hexdigest()


def read_fits(path: Path) -> FitLabels:
    """The labels of a table that `harps-dist fit` wrote: FITS, ECSV, CSV or Parquet, by its ending.

    A fit with a flag gives no labels; where microturbulence alone ended at an edge, it gives the others.
    A value that the label cannot have, such as an airmass of 0.99, is missing.
    Raises ConfigError where it is no such table, or names a data product twice.
    """
    from harps_dist.formats.tables import read_table, texts

    table, where = read_table(path, "table of fits", ConfigError), f"table of fits {printable(path)}"
    labels = [name for name in NAMES if {name, f"{name}_error"} <= set(table.colnames)]
    if missing := [name for name in ("dp_id", "flags") if name not in table.colnames] + ["teff_error"] * (not labels):
        raise ConfigError(f"{where} lacks {', '.join(missing)}. Give a table that `harps-dist fit` wrote.")
    products, flags = texts(table["dp_id"]), texts(table["flags"])
    others = texts(table["other_forms"]) if "other_forms" in table.colnames else [""] * len(products)
    if len(set(products)) < len(products):
        twice = Counter(products).most_common(1)[0][0]
        raise ConfigError(f"{where} names {cleaned(twice, 100)} twice. Leave one of its rows out.")
    values, errors = (np.full((len(products), len(NAMES)), np.nan) for _ in range(2))
    for name in labels:
        value, error = (_numbers(table[column], name, where) for column in (name, f"{name}_error"))
        if (beside := f"{name}_model_error") in table.colnames:
            error = np.hypot(error, _numbers(table[beside], name, where))
        known = in_range_each(name, value) & np.isfinite(error) & (error > 0)
        known &= np.array([name != "vmic" or PARTLY not in flag for flag in flags], bool)
        values[:, NAMES.index(name)], errors[:, NAMES.index(name)] = np.where(known, [value, error], np.nan)
    good = [row for row, flag in enumerate(flags) if flag in ("", PARTLY)]
    return FitLabels(
        tuple(products[row] for row in good),
        values[good],
        errors[good],
        {product: flag for product, flag in zip(products, flags, strict=True) if flag not in ("", PARTLY)},
        {form: product for product, forms in zip(products, others, strict=True) for form in forms.split(";") if form},
    )


def _numbers(column: object, name: str, where: str) -> np.ndarray:
    """(rows,) float64 in the label's unit."""
    from harps_dist.formats.units import UnitError, plain

    try:
        return plain(column, LABEL[name].unit, name).astype(np.float64)
    except UnitError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (TypeError, ValueError):
        raise ConfigError(
            f"{where}: {name} is no column of numbers. Give a table that `harps-dist fit` wrote."
        ) from None
