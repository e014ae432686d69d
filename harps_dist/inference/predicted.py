"""What a model reads off spectra.

Tested in tests/integration/test_exports.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Predicted(NamedTuple):
    """What a model says of n spectra, float64 arrays; without columns, or NaN, where it says nothing.

    labels, sigma: (n, K) in the labels' units; sigma is the model's own standard deviation. half_width: (n, K, level)
    half the calibrated central interval of every level; infinite where too few stars calibrate it. nodes: (n, d) latent
    vector: bottleneck nodes, or leading components of the encoder's features. distance: (n,) from the centre of the
    training spectra among the encoder's features. chi2, excess: (n, order), see `anomaly.Misfit`. anomaly: (n,), above
    1 for 1 % of spectra like those that calibrated it. snr: (n,) per pixel at the median flux, from the spectrum's own
    noise.
    """

    labels: np.ndarray
    sigma: np.ndarray
    half_width: np.ndarray
    nodes: np.ndarray
    distance: np.ndarray
    chi2: np.ndarray
    excess: np.ndarray
    anomaly: np.ndarray
    snr: np.ndarray

    def without(self, rows: np.ndarray) -> Predicted:
        """These predictions with NaN where rows (n,) is True."""
        return Predicted(*(np.where(rows.reshape(-1, *[1] * (part.ndim - 1)), np.nan, part) for part in self))

    @classmethod
    def stacked(cls, parts: Sequence[Predicted]) -> Predicted:
        """Predictions of one set of spectra after the other."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
