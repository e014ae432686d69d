"""Training with a fraction of the labels (paper, Table 5).

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from harps_dist.data.keyed import keys_of, uniforms_of_keys
from harps_dist.data.manifest import Index
from harps_dist.spectra.labels import NAMES


def scarce_labels(index: Index, fraction: float, by: Literal["per_spectrum", "per_star"], seed: int) -> np.ndarray:
    """(row, label) labels of which real spectra keep each with probability `fraction`; the rest become NaN.

    per_spectrum draws for every spectrum and label, so that much-observed stars stay labelled, as in the paper's
    public code; per_star gives all spectra of a star the same draw. Keyed to seed and name: nothing else moves it.
    """
    labels = index.labels.copy()
    if fraction < 1:
        names = index["key"] if by == "per_spectrum" else index["star"]
        rows = index.rows("real")
        keys = keys_of("labels", [f"{seed}\0{name}" for name in names[rows]])
        labels[rows] = np.where(uniforms_of_keys(len(NAMES), keys) < fraction, labels[rows], np.nan)
    return labels
