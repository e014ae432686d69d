"""An emulator of model spectra: labels to the spectrum of a star at rest, learned from the spectra of a release.

Spectra are combinations of a few vectors in the logarithm of flux; each coefficient is a smooth function of the labels
through the spectra that it was fitted to (a Gaussian process' mean, Matérn 5/2).

Tested in tests/unit/test_emulator.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harps_dist.errors import ConfigError
from harps_dist.spectra.doppler import bspline_coefficients
from harps_dist.spectra.labels import INTRINSIC

LABELS = (*INTRINSIC, "vmic")  # that a model spectrum at rest depends on
TEFF_POWER = -2  # temperatures are compared as T^-2: spectra change faster the cooler the star
SMOOTH_OVER = {"teff": 0.5}  # of a label's range, over which coefficients are alike; the others':
SMOOTH_OVER_ELSE = 1.5
NUGGET = 1e-5  # of the kernel's diagonal: weights stay small enough for float32


class SedEmulator(nn.Module):
    """Labels of stars to their model spectra at rest. What is learned is held in buffers: no training changes it.

    pixels: of a spectrum. vectors: of the basis. nodes: model spectra that are fitted at most. labels: what a spectrum
    depends on. Not fitted, it draws flat spectra.
    """

    low: Tensor
    high: Tensor
    nodes: Tensor
    weights: Tensor
    spread: Tensor
    mean: Tensor
    basis: Tensor

    def __init__(self, pixels: int, vectors: int, nodes: int, labels: tuple[str, ...] = LABELS) -> None:
        super().__init__()
        self.labels = labels
        self.register_buffer("low", torch.zeros(len(labels)))
        self.register_buffer("high", torch.ones(len(labels)))
        self.register_buffer("nodes", torch.zeros(nodes, len(labels)))
        self.register_buffer("weights", torch.zeros(nodes, vectors))
        self.register_buffer("spread", torch.ones(vectors))
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(vectors, pixels))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and largest value of every label that it was fitted to."""
        return {name: (float(a), float(b)) for name, a, b in zip(self.labels, self.low, self.high, strict=True)}

    def coefficients(self, labels: Tensor) -> Tensor:
        """(batch, vector) coefficients of stars with labels (batch, label) in their units.

        Labels beyond those that it was fitted to count as the nearest that are not.
        """
        return _kernel(self._place(labels), self.nodes) @ self.weights

    def log_flux(self, coefficients: Tensor) -> Tensor:
        """(batch, pixel) logarithm of flux, in medians of it, as cubic B-spline coefficients."""
        return torch.addmm(self.mean, coefficients, self.basis)

    def fit(self, labels: np.ndarray, log_flux: np.ndarray) -> None:
        """Fit model spectra: labels (n, label) in their units, log_flux (n, pixel) without its level.

        Raises ConfigError for more spectra than nodes, or fewer than two for each label.
        """
        count, (nodes, vectors) = len(labels), self.weights.shape
        if not 2 * len(self.labels) <= count <= nodes:
            raise ConfigError(
                f"an emulator of {nodes} nodes cannot be fitted to {count} model spectra. Give "
                f"{2 * len(self.labels)} to {nodes}."
            )
        fitted = decomposed(log_flux, vectors)
        self.low.copy_(torch.from_numpy(labels.min(axis=0)))
        self.high.copy_(torch.from_numpy(labels.max(axis=0)))
        places = self._place(torch.from_numpy(labels)).double()
        kernel = _kernel(places, places) + NUGGET * torch.eye(count, dtype=torch.float64)
        self.weights.zero_()[:count, : fitted.vectors.shape[0]] = torch.linalg.solve(
            kernel, torch.from_numpy(fitted.coefficients)
        )
        self.nodes.zero_()[:count] = places
        self.spread.fill_(0.0)[: len(fitted.vectors)] = torch.from_numpy(fitted.coefficients.std(axis=0))
        self.mean.copy_(bspline_coefficients(torch.from_numpy(fitted.mean)[None].float())[0])
        self.basis.zero_()[: len(fitted.vectors)] = bspline_coefficients(torch.from_numpy(fitted.vectors).float())

    def _place(self, labels: Tensor) -> Tensor:
        """(batch, label) labels as places in the kernel's space."""
        low, high = self.low.to(labels), self.high.to(labels)
        held = torch.clamp(labels, low, high)
        columns = []
        for number, name in enumerate(self.labels):
            value, first, last = held[:, number], low[number], high[number]
            if name == "teff":
                value, first, last = value**TEFF_POWER, last**TEFF_POWER, first**TEFF_POWER
            share = (value - first) / (last - first).clamp(min=torch.finfo(labels.dtype).tiny)
            columns.append(share / SMOOTH_OVER.get(name, SMOOTH_OVER_ELSE))
        return torch.stack(columns, dim=1)


class Decomposed(NamedTuple):
    """mean (pixel,), vectors (k, pixel), orthonormal, and coefficients (n, k) of n spectra, float64."""

    mean: np.ndarray
    vectors: np.ndarray
    coefficients: np.ndarray


def decomposed(values: np.ndarray, vectors: int) -> Decomposed:
    """The leading principal components of values (n, pixel), at most as many as vary; through the products of pairs."""
    mean = values.mean(axis=0, dtype=np.float64)
    centred = values.astype(np.float32) - mean.astype(np.float32)
    products = (centred @ centred.T).astype(np.float64)
    strengths, mixtures = np.linalg.eigh(products)
    kept = np.arange(len(values))[::-1][:vectors]
    kept = kept[strengths[kept] > 1e-9 * max(strengths[-1], 1e-30)]
    scale = np.sqrt(strengths[kept])
    found = (mixtures[:, kept] / scale).T.astype(np.float32) @ centred
    return Decomposed(mean, found.astype(np.float64), mixtures[:, kept] * scale)


def _kernel(places: Tensor, nodes: Tensor) -> Tensor:
    """(batch, node) Matérn 5/2 kernel of the distances between places (batch, label) and nodes (node, label)."""
    square = 5 * (places[:, None] - nodes[None]).square().sum(-1)
    distance = (square + torch.finfo(square.dtype).tiny).sqrt()
    return (1 + distance + square / 3) * torch.exp(-distance)
