"""What a latent space knows of the labels: ordinary least squares from latent means to labels (paper, Eq. 6).

A latent and its labels must belong to the same spectrum: across mismatched rows a regression predicts the mean label
whatever the latents hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from harps_dist.errors import HarpsDistError

Variant = Literal["complete", "masked"]


class DownstreamError(HarpsDistError):
    """Latents and labels that cannot be joined, or from which no regression can be fitted."""


@dataclass(frozen=True)
class LatentRegression:
    """labels = latent · coefficients + intercept.

    coefficients: (B, K) label units per unit of latent node. intercept: (K,) label units. counts: (K,) rows that
    each label was fitted on.
    """

    coefficients: np.ndarray
    intercept: np.ndarray
    counts: np.ndarray

    @classmethod
    def fit(cls, latent: np.ndarray, labels: np.ndarray, variant: Variant = "masked") -> LatentRegression:
        """Fit on training rows alone.

        latent: (n, B) latent means. labels: (n, K), NaN where missing. variant: "complete" takes the rows that have
        every label, the same for all labels; "masked" takes for each label all rows that have it. A node that does
        not vary gets coefficient 0; collinear nodes get the solution of least norm.

        Raises DownstreamError for shapes that do not fit, values that are not finite, an unknown variant, or
        fewer than B + 1 rows, as many as a label's regression has unknowns.
        """
        latent, labels = np.asarray(latent, dtype=np.float64), np.asarray(labels, dtype=np.float64)
        if latent.ndim != 2 or labels.ndim != 2 or len(latent) != len(labels):
            raise DownstreamError(
                f"a regression needs latents (n, B) and labels (n, K) of the same n spectra, but got {latent.shape} "
                f"and {labels.shape}. Take both from the same spectra in the same order."
            )
        broken = np.flatnonzero(~np.isfinite(latent).all(axis=1) | np.isinf(labels).any(axis=1))
        if len(broken):
            raise DownstreamError(
                f"{len(broken)} of {len(latent)} rows, the first {broken[0]}, have a latent that is not finite or an "
                f"infinite label. Leave these spectra out, or find out why the encoder fails on them."
            )
        present = ~np.isnan(labels)
        if variant == "complete":
            present = np.broadcast_to(present.all(axis=1, keepdims=True), labels.shape)
        elif variant != "masked":
            raise DownstreamError(f"unknown variant {variant!r} of the regression; choose complete or masked.")
        counts = present.sum(axis=0)
        unknowns = latent.shape[1] + 1
        if (counts < unknowns).any():
            column = int(np.argmin(counts))
            remedy = "try variant masked, " if variant == "complete" else ""
            raise DownstreamError(
                f"label column {column} has {counts[column]} of {len(labels)} rows to fit on ({variant}), but a "
                f"regression on {unknowns - 1} latent nodes needs at least {unknowns}. Pass more labelled spectra, "
                f"{remedy}or leave that label out."
            )
        solutions = [_least_squares(latent[rows], label[rows]) for rows, label in zip(present.T, labels.T, strict=True)]
        table = np.array(solutions).reshape(-1, unknowns)
        return cls(table[:, :-1].T, table[:, -1], counts)

    def predict(self, latent: np.ndarray) -> np.ndarray:
        """(n, B) latent means to (n, K) float64 labels in the units they were fitted in."""
        return np.asarray(latent, dtype=np.float64) @ self.coefficients + self.intercept


def labels_from_latents(
    train_latent: np.ndarray, train_labels: np.ndarray, latent: np.ndarray, variant: Variant = "masked"
) -> np.ndarray:
    """(n, K) labels of latents (n, B), regressed on training latents (m, B) and labels (m, K).

    A label that fewer than B + 1 training spectra have is NaN throughout.
    """
    enough = np.isfinite(train_labels).sum(axis=0) > train_latent.shape[1]
    labels = np.full((len(latent), train_labels.shape[1]), np.nan)
    if enough.any():
        regression = LatentRegression.fit(train_latent, train_labels[:, enough], variant)
        labels[:, enough] = regression.predict(latent)
    return labels


def _least_squares(latent: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(B + 1,) coefficients, then the intercept, for latent (n, B) and label (n,), solved on standardised columns.

    Nodes of a latent space differ in scale by orders of magnitude, which the rank cut-off of lstsq must not see.
    """
    mean, label_mean = latent.mean(axis=0), label.mean()
    scale = np.where(np.ptp(latent, axis=0) > 0, latent.std(axis=0), np.inf)
    slope = np.linalg.lstsq((latent - mean) / scale, label - label_mean)[0] / scale
    return np.append(slope, label_mean - mean @ slope)
