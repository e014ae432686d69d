"""Labels of fits for spectra that the catalogue does not label.

Only spectra of the training split get them: scores, calibration and gates are by what catalogues say.

Tested in tests/integration/test_fitted_labels.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from harps_dist.data.manifest import ERRORS, FittedLabels, Index
from harps_dist.formats.fit_tables import FitLabels
from harps_dist.spectra.labels import LABEL, NAMES
from preprocessing.rows import REAL, Row, is_outside


class Fitted(NamedTuple):
    """Fits that a release takes labels from, and how many gave none, by reason."""

    fits: FitLabels
    passed_over: Counter[str]

    def manifest(self, index: Index) -> FittedLabels:
        """What the manifest says of them. index: of the release."""
        counts = np.isfinite(index.errors).sum(axis=0).tolist()
        counted = {name: count for name, count in zip(NAMES, counts, strict=True) if count}
        passed_over = dict(sorted((+self.passed_over).items()))
        return FittedLabels(fits=self.fits.digest, counts=counted, passed_over=passed_over)


def with_fits(
    rows: Iterable[tuple[int, Row]],
    fits: FitLabels,
    other_forms: Mapping[str, str],
    keep_out_of_range: bool,
    passed_over: Counter[str],
) -> Iterator[tuple[int, Row]]:
    """The rows of real spectra with labels of fits, and their errors, where the archive has none.

    Fits are matched by data product, or another form of the exposure. other_forms: data products, each with the one
    that stands for it. keep_out_of_range: take labels beyond the paper's ranges too. passed_over: counts fits that give
    nothing, and labels that are out of range.
    """
    forms: dict[str, list[str]] = {}
    for form, standing in other_forms.items():
        forms.setdefault(standing, []).append(form)
    matched = set()
    for number, row in rows:
        product = row["key"].removeprefix(REAL)
        fit = fits.row(product, forms.get(product, ()))
        if fit is None:
            yield number, row
            continue
        matched.add(fit)
        if row["split"] != "train":
            passed_over["of a held-out star"] += 1
            yield number, row
            continue
        given: Row = {}
        for column, name in enumerate(NAMES):
            value, error = float(fits.values[fit, column]), float(fits.errors[fit, column])
            if np.isnan(value) or not np.isnan(row[name]):
                continue
            if is_outside(name, value) and not keep_out_of_range:
                low, high = LABEL[name].training
                passed_over[f"{name} outside {low:g}..{high:g}"] += 1
            else:
                given |= {name: value, ERRORS[column]: error}
        if not given:
            passed_over["all labels known"] += 1
        yield number, row | given
    passed_over["of no spectrum of the release"] += len(fits.products) - len(matched)
    passed_over.update(f"flagged {flags}" for flags in fits.flagged.values())


def fits_of(index: Index) -> FitLabels:
    """The fits that gave a release's labels, as far as it took them."""
    rows = np.flatnonzero(np.isfinite(index.errors).any(axis=1))
    products = tuple(key.removeprefix(REAL) for key in index["key"][rows])
    errors = index.errors[rows]
    return FitLabels(products, np.where(np.isnan(errors), np.nan, index.labels[rows]), errors, {}, {})


def joined(before: FitLabels, after: FitLabels | None) -> FitLabels:
    """Fits of which the newer one of a spectrum counts, if there is any to be relied on."""
    if after is None:
        return before
    kept = [row for row, product in enumerate(before.products) if after.row(product) is None]
    return FitLabels(
        (*(before.products[row] for row in kept), *after.products),
        np.concatenate([before.values[kept], after.values]),
        np.concatenate([before.errors[kept], after.errors]),
        after.flagged,
        after.forms,
    )


def lines_of(fitted: FittedLabels) -> Iterator[str]:
    """What to tell a user of them."""
    labels = ", ".join(f"{name} {count:,}" for name, count in fitted.counts.items())
    yield f"labels of fits, where the catalogue has none (training split): {labels or 'none'}"
    if fitted.passed_over:
        yield f"fits without effect: {', '.join(f'{why} {count:,}' for why, count in fitted.passed_over.items())}"
