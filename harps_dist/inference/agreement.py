"""Whether what a network reads agrees with fits of the same spectra, within the errors of both.

Tested in tests/unit/test_agreement.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harps_dist.inference.table import DISAGREES, Columns, levels_of
from harps_dist.spectra.labels import NAMES

if TYPE_CHECKING:
    from harps_dist.formats.fit_tables import FitLabels
    from harps_dist.inference.description import Description

MOST = 3.0  # combined standard deviations that network and fit may differ by


def with_agreement(description: Description, columns: Columns, fits: FitLabels) -> Columns:
    """The columns of n predictions with `flag_fit_disagrees`, `fit_deviation` and `fit_label`, and the flag in `flags`.

    Compared are labels that both read, by the exposure. The network's standard deviation is half its narrowest
    calibrated interval, the model's own where too few stars calibrate that; the fit's is `FitLabels.errors`. Spectra
    without a fit to be relied on are not flagged, and their deviation is NaN.
    """
    others = [forms.split(";") if forms else [] for forms in columns["other_forms"]]
    found = [fits.row(*each) for each in zip(columns["dp_id"], others, strict=True)]
    compared = np.array([row is not None for row in found], bool)
    rows = np.array([row for row in found if row is not None], np.int64)
    names = [label.name for label in description.labels]
    deviation = np.full((len(found), len(names)), np.nan)
    for number, name in enumerate(names):
        column, sigma = NAMES.index(name), _sigma(description, columns, name)[compared]
        error = np.hypot(sigma, fits.errors[rows, column])
        deviation[compared, number] = np.abs(columns[name][compared] - fits.values[rows, column]) / error
    known = np.isfinite(deviation).any(axis=1)
    worst = np.argmax(np.nan_to_num(deviation, nan=-1.0), axis=1)
    largest = deviation[np.arange(len(found)), worst]
    disagrees = known & (np.nan_to_num(largest) > MOST)
    said = [
        ",".join(filter(None, [flags, DISAGREES if wrong else ""]))
        for flags, wrong in zip(columns["flags"], disagrees, strict=True)
    ]
    return columns | {
        "flags": np.array(said, object),
        f"flag_{DISAGREES}": disagrees,
        "fit_deviation": np.where(known, largest, np.nan),
        "fit_label": np.where(known, np.array(names, object)[worst], ""),
    }


def _sigma(description: Description, columns: Columns, name: str) -> np.ndarray:
    """(n,) standard deviation that is stated for a label; NaN where none is."""
    own, levels = columns[f"{name}_sigma"].astype(float), levels_of(description)
    if not levels:
        return own
    low, high = (columns[f"{name}_{end}{levels[0] * 100:.0f}"].astype(float) for end in ("lo", "hi"))
    return np.where(np.isfinite(high - low), (high - low) / 2, own)


def agreement_line(columns: Columns) -> str:
    """How many predictions agree with fits, for people."""
    compared, disagree = np.isfinite(columns["fit_deviation"]), columns[f"flag_{DISAGREES}"]
    labels = ", ".join(sorted(set(columns["fit_label"][disagree])))
    told = f", in {labels}" if labels else ""
    return (
        f"{compared.sum():,} of {len(compared):,} were compared with fits; {disagree.sum():,} disagree by more than "
        f"{MOST:g} standard deviations{told}"
    )
