"""Velocities by gradient: Gauss-Newton steps of rv and berv on what a decoder leaves of a spectrum.

An encoder says roughly where the lines are; a decoder that draws them says where they are to a hundredth of a pixel.
Weights are the photon noise's, held back where the misfit is larger (Huber). A smooth continuum is free, and so is the
width of the lines where the decoder has a node for it: neither is to pull at the velocities.

Tested in tests/unit/test_refine.py.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from harps_dist.errors import ConfigError

VELOCITIES = ("rv", "berv")
SCAN_KMS = (7.5, 2.5)  # how far from the encoder's velocity lines are looked for, and in which steps
STEP_KMS = 0.1  # of the differences that stand for derivatives
LARGEST_STEP_KMS = 3.0
STEP_WIDTH, LARGEST_STEP_WIDTH = 0.05, 1.0  # of a node that broadens lines
LAGS = 24  # pixels over which a misfit may be alike: a line and its wings
HUBER = 3.0  # robust deviations beyond which a pixel's pull grows no more
CONTINUUM_TERMS = 4  # of the polynomial that is free where the decoder has no nodes for it


class Free(NamedTuple):
    """Nodes that are freed beside the velocities.

    widths: those that broaden lines. continuum: those whose Chebyshev polynomials in the logarithm of flux, from degree
    0 on, bend the continuum by `unit` each.
    """

    widths: tuple[int, ...] = ()
    continuum: tuple[int, ...] = ()
    unit: float = 1.0


class Drawing(Protocol):
    """A model as it is refined on: `supervised.SpectrumModel`."""

    reads: ClassVar[bool]
    draws: ClassVar[bool]
    labels: tuple[str, ...]
    label_std: Tensor

    label_mean: Tensor

    @property
    def free(self) -> Free: ...

    def sought(self, flux: Tensor, nodes: Tensor) -> Tensor | None: ...

    def decode(self, nodes: Tensor) -> Tensor: ...


class Refined(NamedTuple):
    """Velocities of a batch after Gauss-Newton steps.

    nodes: (batch, bottleneck) with rv and berv, and what is freed beside them, changed. covariance: (batch, 2, 2)
    float64 of rv and berv [km²/s²], from the Jacobian; as much larger as the misfit is than the noise, and by how many
    neighbouring pixels share it. misfit: (batch,) robust deviation of the residual, in those of the noise.
    """

    nodes: Tensor
    covariance: Tensor
    misfit: Tensor


def check_refines(model: Drawing, name: str) -> None:
    """Raises ConfigError for a model that does not draw spectra from rv and berv that it reads."""
    if not (model.reads and model.draws and set(VELOCITIES) <= set(model.labels)):
        raise ConfigError(
            f"{name} cannot refine velocities: that takes a model that reads rv and berv and draws spectra from them. "
            f"Train an autoencoder with these labels, such as ae-phys, or leave --refine out."
        )


@torch.no_grad()
def refine_velocities(
    model: Drawing, flux: Tensor, nodes: Tensor, sigma: Tensor, valid: Tensor, steps: int = 3
) -> Refined:
    """Take Gauss-Newton steps of rv and berv from nodes (batch, bottleneck) towards spectra (batch, pixel).

    sigma: (batch, valid pixel) standard deviation of their noise; valid: numbers of the pixels that count. Lines that
    the encoder missed are found by a model that can look for them wherever they are, and by a scan of SCAN_KMS around
    what was said. A step that makes the fit worse is not taken.
    """
    velocities = [model.labels.index(name) for name in VELOCITIES]
    free, unit = model.free, model.label_std[velocities].to(nodes.dtype)
    varied = torch.tensor([*velocities, *free.widths], device=nodes.device)
    steps_of = torch.cat([STEP_KMS / unit, torch.full((len(free.widths),), STEP_WIDTH, device=unit.device)])
    largest = torch.cat([LARGEST_STEP_KMS / unit, torch.full((len(free.widths),), LARGEST_STEP_WIDTH).to(unit)])
    observed, inverse = flux.index_select(1, valid), 1 / sigma
    across = torch.linspace(-1, 1, flux.shape[1], device=flux.device, dtype=flux.dtype).index_select(0, valid)
    degrees = torch.arange(len(free.continuum) or CONTINUUM_TERMS, device=flux.device)
    terms = torch.cos(degrees[:, None] * torch.arccos(across))

    def drawn(at: Tensor) -> Tensor:
        return model.decode(at).index_select(1, valid)

    def moved(at: Tensor, number: int, by: Tensor | float) -> Tensor:
        at = at.clone()
        at[:, varied[number]] += by
        return at

    nodes, first = nodes.clone(), drawn(nodes)
    scale = HUBER * _robust((observed - first) * inverse).clamp(min=1.0)[:, None]

    def cost_of(drawn_flux: Tensor) -> Tensor:
        return _cost(observed, drawn_flux, inverse, scale)

    best = cost_of(first)
    if (sought := model.sought(flux, nodes)) is not None:
        place = (sought - model.label_mean[velocities]) / model.label_std[velocities]
        for moving in (velocities[:1], velocities):  # there may be no telluric lines
            tried = nodes.clone()
            tried[:, moving] = place[:, : len(moving)].to(nodes.dtype)
            cost = cost_of(drawn(tried))
            nodes = torch.where((cost < best)[:, None], tried, nodes)
            best = torch.minimum(best, cost)
    reach, step = SCAN_KMS
    for number in range(len(velocities)):
        start = nodes
        for kms in np.arange(-reach, reach + step / 2, step):
            tried = moved(start, number, float(kms) / unit[number])
            cost = cost_of(drawn(tried))
            nodes = torch.where((cost < best)[:, None], tried, nodes)
            best = torch.minimum(best, cost)
    for _ in range(steps + 1):
        model_flux = drawn(nodes)
        slopes = [
            (drawn(moved(nodes, number, by)) - drawn(moved(nodes, number, -by))) / (2 * by)
            for number, by in enumerate(steps_of)
        ]
        jacobian = torch.stack([*slopes, *(model_flux * term for term in terms)], dim=1) * inverse[:, None]
        residual = (observed - model_flux) * inverse
        solved, covariance, misfit = _solve(jacobian.double(), residual.double())
        tried = nodes.clone()
        tried[:, varied] += solved[:, : len(varied)].to(nodes.dtype).clamp(-largest, largest)
        if free.continuum:
            tried[:, list(free.continuum)] += solved[:, len(varied) :].to(nodes.dtype) / free.unit
        cost = cost_of(drawn(tried))
        nodes = torch.where((cost <= best)[:, None], tried, nodes)
        best = torch.minimum(best, cost)
    of_velocities = covariance[:, : len(velocities), : len(velocities)]
    return Refined(nodes, of_velocities * (unit[:, None] * unit).double(), misfit)


def _solve(jacobian: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of Huber's weights: solution (batch, column), its covariance, and the robust misfit (batch,)."""
    misfit = _robust(residual)
    solution = residual.new_zeros(jacobian.shape[:2])
    for _ in range(3):
        left = residual - (solution[:, None] @ jacobian)[:, 0]
        misfit = _robust(left)
        weight = (HUBER * misfit.clamp(min=1.0)[:, None] / left.abs().clamp(min=1e-12)).clamp(max=1.0)
        weighted = jacobian * weight[:, None]
        normal = weighted @ jacobian.transpose(1, 2)
        scale = normal.diagonal(dim1=1, dim2=2).clamp(min=1e-30).rsqrt()
        scaled = normal * scale[:, :, None] * scale[:, None] + 1e-10 * torch.eye(normal.shape[1]).to(normal)
        inverse = torch.linalg.inv_ex(scaled).inverse * scale[:, :, None] * scale[:, None]
        solution = (inverse @ (weighted @ residual[:, :, None]))[:, :, 0]
    left = (residual - (solution[:, None] @ jacobian)[:, 0]) * weight
    excess = misfit.clamp(min=1.0) ** 2 * _alike(left)
    return solution, inverse * excess[:, None, None], misfit


def _alike(values: Tensor) -> Tensor:
    """(batch,) how many neighbours of values (batch, n) say the same: their variance's sum over lags, at least 1."""
    power = values.square().mean(1)
    products = [(values[:, lag:] * values[:, :-lag]).mean(1) for lag in range(1, LAGS + 1)]
    return (1 + 2 * torch.stack(products).sum(0) / power.clamp(min=1e-30)).clamp(min=1.0)


def _robust(values: Tensor) -> Tensor:
    """(batch,) robust standard deviation of values (batch, n) about zero."""
    return 1.4826 * values.abs().median(dim=1).values


def _cost(observed: Tensor, drawn: Tensor, inverse: Tensor, scale: Tensor) -> Tensor:
    """(batch,) Huber's loss of a drawn spectrum that is brought to the observed one's level; linear beyond `scale`."""
    level = (observed.mean(1) / drawn.mean(1))[:, None]
    residual = ((observed - level * drawn) * inverse).abs()
    return torch.where(residual < scale, residual.square() / 2, scale * (residual - scale / 2)).mean(1).double()
