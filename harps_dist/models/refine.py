"""Velocities by gradient: Gauss-Newton steps of rv and berv on what a decoder leaves of a spectrum.

An encoder says roughly where the lines are; a decoder that draws them says where they are to a hundredth of a pixel.
Weights are the photon noise's, held back where the misfit is larger (Huber); a smooth continuum is free.

Tested in tests/unit/test_refine.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.errors import ConfigError

if TYPE_CHECKING:
    from harps_dist.models.supervised import SpectrumModel

VELOCITIES = ("rv", "berv")
SCAN_KMS = (7.5, 2.5)  # how far from the encoder's velocity lines are looked for, and in which steps
STEP_KMS = 0.1  # of the differences that stand for derivatives
LARGEST_STEP_KMS = 3.0
HUBER = 3.0  # robust deviations beyond which a pixel's pull grows no more
CONTINUUM_TERMS = 4  # of the polynomial that is free beside the velocities


class Refined(NamedTuple):
    """Velocities of a batch after Gauss-Newton steps.

    nodes: (batch, bottleneck) with rv and berv changed. covariance: (batch, 2, 2) float64 of rv and berv [km²/s²], from
    the Jacobian; where the misfit is larger than the noise it is as much larger. misfit: (batch,) robust deviation of
    the residual, in those of the noise.
    """

    nodes: Tensor
    covariance: Tensor
    misfit: Tensor


def check_refines(model: SpectrumModel, name: str) -> None:
    """Raises ConfigError for a model that does not draw spectra from rv and berv that it reads."""
    if not (model.reads and model.draws and set(VELOCITIES) <= set(model.labels)):
        raise ConfigError(
            f"{name} cannot refine velocities: that takes a model that reads rv and berv and draws spectra from them. "
            f"Train an autoencoder with these labels, such as ae-phys, or leave --refine out."
        )


@torch.no_grad()
def refine_velocities(
    model: SpectrumModel, flux: Tensor, nodes: Tensor, sigma: Tensor, valid: Tensor, steps: int = 3
) -> Refined:
    """Take Gauss-Newton steps of rv and berv from nodes (batch, bottleneck) towards spectra (batch, pixel).

    sigma: (batch, valid pixel) standard deviation of their noise; valid: numbers of the pixels that count. A first scan
    finds lines that the encoder missed by less than SCAN_KMS; a step that makes the fit worse is not taken.
    """
    columns = [model.labels.index(name) for name in VELOCITIES]
    unit = model.label_std[columns].to(nodes.dtype)
    observed = flux.index_select(1, valid)
    across = torch.linspace(-1, 1, len(valid), device=flux.device, dtype=flux.dtype)
    terms = torch.stack([torch.cos(k * torch.arccos(across)) for k in range(CONTINUUM_TERMS)])
    inverse = 1 / sigma

    def drawn(at: Tensor) -> Tensor:
        return model.decode(at).index_select(1, valid)

    def moved(at: Tensor, velocity: int, kms: float | Tensor) -> Tensor:
        at = at.clone()
        at[:, columns[velocity]] += kms / unit[velocity]
        return at

    nodes, first = nodes.clone(), drawn(nodes)
    scale = HUBER * _robust((observed - first) * inverse).clamp(min=1.0)[:, None]

    def cost_of(drawn_flux: Tensor) -> Tensor:
        return _cost(observed, drawn_flux, inverse, scale)

    best = cost_of(first)
    reach, step = SCAN_KMS
    for velocity in range(len(VELOCITIES)):
        start = nodes
        for kms in np.arange(-reach, reach + step / 2, step):
            tried = moved(start, velocity, float(kms))
            cost = cost_of(drawn(tried))
            nodes = torch.where((cost < best)[:, None], tried, nodes)
            best = torch.minimum(best, cost)
    for _ in range(steps + 1):
        model_flux = drawn(nodes)
        velocity_columns = [
            (drawn(moved(nodes, k, STEP_KMS)) - drawn(moved(nodes, k, -STEP_KMS))) / (2 * STEP_KMS)
            for k in range(len(VELOCITIES))
        ]
        jacobian = torch.stack([*velocity_columns, *(model_flux * term for term in terms)], dim=1) * inverse[:, None]
        residual = (observed - model_flux) * inverse
        solved, covariance, misfit = _solve(jacobian.double(), residual.double())
        change = solved[:, : len(VELOCITIES)].clamp(-LARGEST_STEP_KMS, LARGEST_STEP_KMS).to(nodes.dtype)
        tried = nodes.clone()
        tried[:, columns] += change / unit
        cost = cost_of(drawn(tried))
        nodes = torch.where((cost <= best)[:, None], tried, nodes)
        best = torch.minimum(best, cost)
    return Refined(nodes, covariance[:, : len(VELOCITIES), : len(VELOCITIES)], misfit)


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
        inverse = torch.linalg.inv(scaled) * scale[:, :, None] * scale[:, None]
        solution = (inverse @ (weighted @ residual[:, :, None]))[:, :, 0]
    return solution, inverse * misfit.clamp(min=1.0)[:, None, None] ** 2, misfit


def _robust(values: Tensor) -> Tensor:
    """(batch,) robust standard deviation of values (batch, n) about zero."""
    return 1.4826 * values.abs().median(dim=1).values


def _cost(observed: Tensor, drawn: Tensor, inverse: Tensor, scale: Tensor) -> Tensor:
    """(batch,) Huber's loss of a drawn spectrum that is brought to the observed one's level; linear beyond `scale`."""
    level = (observed.mean(1) / drawn.mean(1))[:, None]
    residual = ((observed - level * drawn) * inverse).abs()
    return torch.where(residual < scale, residual.square() / 2, scale * (residual - scale / 2)).mean(1).double()
