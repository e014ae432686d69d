"""How unlike what a model was trained on a spectrum is: its misfit order by order, and its place among the features.

Both are plain numbers of arrays; what counts as too much is calibrated where a model is exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.errors import ExportError
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.noise import NOISE_CHUNK, NOISE_FLOOR

MOST_COMPONENTS = 64
SPECTRA_PER_COMPONENT = 8
STRETCHES = 16  # of a spectrum, whose parts in the labels are told apart
POWERS = 19  # widths of structures that are told apart
_GAUSSIAN = ("mean", "axes", "variance")
_OF_LIKENESS = "likeness_"


@dataclass(frozen=True)
class Orders:
    """The echelle orders of a grid: every valid pixel belongs to the one whose centre is nearest.

    numbers: from blue to red, those with at least NOISE_CHUNK valid pixels. first: of the valid pixels, where the first
    of these orders begins. sizes: valid pixels of each.
    """

    numbers: tuple[int, ...]
    first: int
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, grid: Grid) -> Orders:
        orders = grid.instrument.orders
        centres = grid.instrument.order_centre_aa / np.array(orders)
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, grid.wave_aa[grid.valid])
        present, begin, counts = np.unique(nearest, return_index=True, return_counts=True)
        enough = np.flatnonzero(counts >= NOISE_CHUNK)
        kept = slice(enough[0], enough[-1] + 1)
        return cls(tuple(orders[place] for place in present[kept]), int(begin[enough[0]]), tuple(counts[kept].tolist()))

    def means(self, values: Tensor) -> Tensor:
        """(batch, valid pixel) values to (batch, order) means."""
        inner = values[:, self.first : self.first + sum(self.sizes)]
        return torch.stack([part.mean(dim=1) for part in inner.split(self.sizes, dim=1)], dim=1)


class Misfit(NamedTuple):
    """How a reconstruction differs from a spectrum, in every order.

    chi2: (batch, order) mean square residual in standard deviations of the spectrum's own photon noise. weight:
    (batch, order) mean of 1 / sigma^2, by which a systematic misfit of the model adds to it.
    """

    chi2: Tensor
    weight: Tensor

    def excess(self, systematic: Tensor) -> Tensor:
        """(batch, order) chi2 over what photon noise and the model's usual misfit would give, 1 on the average.

        systematic: (order,) mean square misfit of the model, in medians of the flux.
        """
        return self.chi2 / (1 + systematic * self.weight)

    def systematic(self) -> Tensor:
        """(order,) mean square misfit beyond the photon noise, the median over spectra."""
        return ((self.chi2 - 1) / self.weight).median(dim=0).values.clamp(min=0)


def misfit(flux: Tensor, reconstruction: Tensor, noise: Tensor, orders: Orders) -> Misfit:
    """Compare spectra with their reconstructions.

    flux, reconstruction: (batch, valid pixel) in medians of the flux. noise: (batch, chunk) variance per flux of
    every chunk of valid pixels, `photon_noise`.
    """
    variance = noise.repeat_interleave(NOISE_CHUNK, dim=1)[:, : flux.shape[1]] * (flux.abs() + NOISE_FLOOR)
    return Misfit(orders.means((flux - reconstruction) ** 2 / variance), orders.means(1 / variance))


def leading_axes(spectra: int, size: int) -> int:
    """How many axes of a latent space of that size have a variance of their own, measured on so many spectra."""
    return max(1, min(size, MOST_COMPONENTS, spectra // SPECTRA_PER_COMPONENT))


@dataclass(frozen=True)
class LatentGaussian:
    """Vectors of the training split, such as pooled features of an encoder, as a Gaussian.

    mean (d,), axes (d, d) orthonormal columns by falling variance, variance (d,) along them, float64. Some leading
    axes have a variance of their own (`leading_axes`); the others share their mean (probabilistic principal
    components, Tipping & Bishop 1999), for a covariance measured on few spectra is nearly singular.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor

    @classmethod
    def fit(cls, latent: Tensor) -> LatentGaussian:
        """The Gaussian of (n, d) latent vectors, at least two."""
        latent = latent.double()
        mean, (spectra, size) = latent.mean(dim=0), latent.shape
        variance, axes = torch.linalg.eigh((latent - mean).T @ (latent - mean) / (spectra - 1))
        variance, axes = variance.flip(0), axes.flip(1)
        own = leading_axes(spectra, size)
        if own < size:
            variance = torch.cat([variance[:own], variance[own:].mean().expand(size - own)])
        return cls(mean, axes, variance.clamp(min=1e-12 * float(variance[0]) + 1e-30))

    def components(self, latent: Tensor) -> Tensor:
        """(n, d) along the axes, in standard deviations."""
        return (latent.double() - self.mean) @ self.axes / self.variance.sqrt()

    def distance(self, latent: Tensor) -> Tensor:
        """(n,) Mahalanobis distance over sqrt(d): about 1 for what the model was trained on."""
        return self.components(latent).square().mean(dim=1).sqrt()

    def draw(self, normal: Tensor) -> Tensor:
        """(n, d) latent vectors of (n, d) standard normal draws."""
        return self.mean + (normal.double() * self.variance.sqrt()) @ self.axes.T


def power(flux: Tensor) -> Tensor:
    """(batch, POWERS) logarithms of the power of spectra, from structures of a quarter of the range to two pixels.

    flux: (batch, valid pixel) standardised; how deep, how wide and how many its lines are, and how noisy it is.
    """
    spectrum = torch.fft.rfft(flux - flux.mean(dim=1, keepdim=True)).abs() ** 2
    ends = np.geomspace(4, spectrum.shape[1], POWERS + 1).astype(int).tolist()
    return torch.stack([spectrum[:, first:end].mean(dim=1) for first, end in pairwise(ends)], dim=1).log()


@dataclass(frozen=True)
class Likeness:
    """Fingerprints of the training split, whose d numbers have different units, as a Gaussian of their deviations.

    deviation: (d,) float64 standard deviations of the numbers. gaussian: of the numbers over these.
    """

    deviation: Tensor
    gaussian: LatentGaussian

    @classmethod
    def fit(cls, fingerprints: Tensor) -> Likeness:
        """From (n, d) fingerprints, at least two."""
        fingerprints = fingerprints.double()
        deviation = fingerprints.std(dim=0).clamp(min=1e-12)
        return cls(deviation, LatentGaussian.fit(fingerprints / deviation))

    def distance(self, fingerprints: Tensor) -> Tensor:
        """(n,) Mahalanobis distance over sqrt(d): about 1 for what the model was trained on."""
        return self.gaussian.distance(fingerprints.double() / self.deviation)


@dataclass(frozen=True)
class Reference:
    """What an anomaly is measured against.

    gaussian: of the encoder's features. systematic: (order,) see `Misfit.excess`. likeness: of fingerprints; None in
    exports of before there were any.
    """

    gaussian: LatentGaussian
    systematic: Tensor
    likeness: Likeness | None = None

    def to(self, device: torch.device) -> Reference:
        return Reference._from({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that reference.safetensors holds, by name."""
        found = {name: getattr(self.gaussian, name) for name in _GAUSSIAN} | {"systematic": self.systematic}
        if self.likeness is not None:
            found[_OF_LIKENESS + "deviation"] = self.likeness.deviation
            found |= {_OF_LIKENESS + name: getattr(self.likeness.gaussian, name) for name in _GAUSSIAN}
        return found

    @classmethod
    def _from(cls, tensors: dict[str, Tensor]) -> Reference:
        gaussian, likeness = LatentGaussian(*(tensors[name] for name in _GAUSSIAN)), None
        if _OF_LIKENESS + "deviation" in tensors:
            of_likeness = LatentGaussian(*(tensors[_OF_LIKENESS + name] for name in _GAUSSIAN))
            likeness = Likeness(tensors[_OF_LIKENESS + "deviation"], of_likeness)
        return cls(gaussian, tensors["systematic"], likeness)

    @classmethod
    def of(cls, tensors: dict[str, Tensor], size: int, orders: int, numbers: int, name: str) -> Reference:
        """Raises ExportError where the tensors are not those of a latent space of `size` and so many orders.

        numbers: of a fingerprint, 0 where there is none.
        """
        expected = {"mean": (size,), "axes": (size, size), "variance": (size,), "systematic": (orders,)}
        if numbers:
            expected |= {_OF_LIKENESS + part: (numbers,) for part in ("deviation", "mean", "variance")}
            expected[_OF_LIKENESS + "axes"] = (numbers, numbers)
        found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if found != expected:
            raise ExportError(f"{name} holds {found}, expected {expected}. Export the run again.")
        return cls._from({key: tensor.double() for key, tensor in tensors.items()})
