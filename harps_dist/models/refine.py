"""Labels by gradient: Gauss-Newton steps on what a decoder leaves of a spectrum.

An encoder says roughly where the lines are; a decoder that draws them says where they are to a hundredth of a pixel.
Weights are the photon noise's, held back where the misfit is larger (Huber). All that the decoder draws from is free,
and so is a smooth continuum: a wrong temperature is not to pull at a velocity.

Tested in tests/unit/test_refine.py.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harps_dist.errors import ConfigError

Refinement = Literal["nothing", "velocities", "labels"]

VELOCITIES = ("rv", "berv")
SCAN_KMS = (7.5, 2.5)  # how far from the encoder's velocity lines are looked for, and in which steps
STEP_KMS, STEP_NODE = 0.1, 0.05  # of the differences that stand for derivatives
LARGEST_STEP_KMS, LARGEST_STEP_NODE = 3.0, 1.0
SHARES = (1.0, 0.5, 0.2, 0.05)  # of a step that are tried
STEPS = 6
PRIOR = 1.0  # standard deviation of what is no velocity about what the encoder says, in nodes
LAGS = 24  # pixels over which a misfit may be alike: a line and its wings
HUBER = 3.0  # robust deviations beyond which a pixel's pull grows no more
CONTINUUM_TERMS = 4  # of the polynomial that is free where the decoder has no nodes for it


class Free(NamedTuple):
    """Nodes that are freed beside the labels.

    factors: those of what labels do not say. continuum: those whose Chebyshev polynomials in the logarithm of flux,
    from degree 0 on, bend the continuum by `unit` each.
    """

    factors: tuple[int, ...] = ()
    continuum: tuple[int, ...] = ()
    unit: float = 1.0


class Drawing(Protocol):
    """A model as it is refined on: `supervised.SpectrumModel`."""

    reads: ClassVar[bool]
    draws: ClassVar[bool]
    labels: tuple[str, ...]
    label_mean: Tensor
    label_std: Tensor

    @property
    def free(self) -> Free: ...

    @property
    def limits(self) -> dict[str, tuple[float, float]]: ...

    @property
    def model_spectra(self) -> dict[str, tuple[float, float]]: ...

    def sought(self, flux: Tensor, nodes: Tensor) -> Tensor | None: ...

    def decode(self, nodes: Tensor) -> Tensor: ...


class Refined(NamedTuple):
    """A batch after Gauss-Newton steps.

    nodes: (batch, bottleneck). covariance: (batch, label, label) float64 of the labels in their units, from the
    Jacobian; as much larger as the misfit is than the noise, and by how many neighbouring pixels share it. misfit:
    (batch,) robust deviation of the residual, in those of the noise.
    """

    nodes: Tensor
    covariance: Tensor
    misfit: Tensor


def refined_labels(what: Refinement, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Which of a model's labels are those of a refinement; all are free in any."""
    return {"nothing": (), "velocities": VELOCITIES, "labels": labels}[what]


def refines(model: Drawing) -> bool:
    """Whether a model draws spectra from rv and berv that it reads."""
    return model.reads and model.draws and set(VELOCITIES) <= set(model.labels)


def check_refines(model: Drawing, name: str) -> None:
    """Raises ConfigError for a model that cannot be refined."""
    if not refines(model):
        raise ConfigError(
            f"{name} cannot be refined: that takes a model that reads rv and berv and draws spectra from them. "
            f"Train an autoencoder with these labels, such as ae-phys, or leave --refine out."
        )


@torch.no_grad()
def refine(model: Drawing, flux: Tensor, nodes: Tensor, sigma: Tensor, valid: Tensor, steps: int = STEPS) -> Refined:
    """Take Gauss-Newton steps from nodes (batch, bottleneck) towards spectra (batch, pixel).

    sigma: (batch, valid pixel) standard deviation of their noise; valid: numbers of the pixels that count. Lines that
    the encoder missed are found by a model that can look for them wherever they are, and by a scan of SCAN_KMS around
    what was said. What is no velocity is held to what the encoder says, within PRIOR, and labels to what the decoder
    can draw. A step that makes the fit worse is shortened, or not taken.
    """
    fit = _Fit(model, flux, nodes, sigma, valid)
    fit.seek(model.sought(flux, fit.nodes))
    for _ in range(steps):
        covariance, misfit = fit.step()
    known, unit = len(model.labels), model.label_std.double()
    return Refined(fit.nodes, covariance[:, :known, :known] * unit[:, None] * unit, misfit)


class _Fit:
    """Nodes of a batch on their way to its spectra; what makes a fit worse is not taken."""

    def __init__(self, model: Drawing, flux: Tensor, nodes: Tensor, sigma: Tensor, valid: Tensor):
        self.model, self.valid, self.free, self.said = model, valid, model.free, nodes
        self.observed, self.inverse = flux.index_select(1, valid), 1 / sigma
        across = torch.linspace(-1, 1, flux.shape[1], device=flux.device, dtype=flux.dtype).index_select(0, valid)
        degrees = torch.arange(len(self.free.continuum) or CONTINUUM_TERMS, device=flux.device)
        self.terms = torch.cos(degrees[:, None] * torch.arccos(across))
        known = len(model.labels)
        self.varied = [*range(known), *self.free.factors]
        self.velocities = [model.labels.index(name) for name in VELOCITIES]
        self.mean, self.std = model.label_mean.to(nodes), model.label_std.to(nodes)
        self.kms = 1 / self.std[self.velocities]  # in nodes
        usual = STEP_NODE, LARGEST_STEP_NODE, PRIOR**-2
        self.by, self.largest, self.held = (nodes.new_full((len(self.varied),), value) for value in usual)
        self.by[self.velocities], self.largest[self.velocities] = STEP_KMS * self.kms, LARGEST_STEP_KMS * self.kms
        self.held[self.velocities] = 0.0
        ranges, endless = model.limits | model.model_spectra, (-torch.inf, torch.inf)
        ends = torch.tensor([ranges.get(name, endless) for name in model.labels]).to(nodes).T
        room = torch.stack([self.by[:known], -self.by[:known]])  # for a difference
        self.low, self.high = (ends - self.mean) / self.std + room
        self.nodes = self._within(nodes)
        self._weigh()

    def seek(self, sought: Tensor | None) -> None:
        """Try the velocities that are sought (batch, 2) [km/s], and others around those that are the best so far."""
        if sought is not None:
            place = (sought.to(self.nodes) - self.mean[self.velocities]) * self.kms
            for moving in (self.velocities[:1], self.velocities):  # there may be no telluric lines
                tried = self.nodes.clone()
                tried[:, moving] = place[:, : len(moving)]
                self._take(tried)
        reach, step = SCAN_KMS
        for column, kms in zip(self.velocities, self.kms, strict=True):
            start = self.nodes
            for away in np.arange(-reach, reach + step / 2, step):
                self._take(self._moved(start, column, float(away) * kms))

    def step(self) -> tuple[Tensor, Tensor]:
        """Take one step; covariance of nodes, labels' first, and robust misfit (batch,), before it."""
        here = self._weigh()
        slopes = [
            (self._drawn(self._moved(self.nodes, column, by)) - self._drawn(self._moved(self.nodes, column, -by)))
            / (2 * by)
            for column, by in zip(self.varied, self.by, strict=True)
        ]
        jacobian = torch.stack([*slopes, *(here * term for term in self.terms)], dim=1) * self.inverse[:, None]
        towards = (self.said - self.nodes)[:, self.varied] * self.held
        residual = (self.observed - here) * self.inverse
        solved, covariance, misfit = _solve(*(each.double() for each in (jacobian, residual, self.held, towards)))
        move, count = torch.zeros_like(self.nodes), len(self.varied)
        move[:, self.varied] = solved[:, :count].to(move).clamp(-self.largest, self.largest)
        if self.free.continuum:
            move[:, list(self.free.continuum)] = solved[:, count:].to(move) / self.free.unit
        start = self.nodes
        for share in SHARES:
            self._take(self._within(start + share * move))
        return covariance, misfit

    def _weigh(self) -> Tensor:
        """What is drawn now, whose misfit says from where on pixels pull no more."""
        here = self._drawn(self.nodes)
        self._scale = HUBER * _robust((self.observed - here) * self.inverse).clamp(min=1.0)[:, None]
        self._best = self._cost(self.nodes, here)
        return here

    def _take(self, tried: Tensor) -> None:
        cost = self._cost(tried, self._drawn(tried))
        self.nodes = torch.where((cost < self._best)[:, None], tried, self.nodes)
        self._best = torch.minimum(self._best, cost)

    def _cost(self, at: Tensor, drawn: Tensor) -> Tensor:
        strayed = ((at - self.said)[:, self.varied].square() * self.held).sum(1) / 2
        return _cost(self.observed, drawn, self.inverse, self._scale) + strayed.double() / len(self.valid)

    def _drawn(self, at: Tensor) -> Tensor:
        return self.model.decode(at).index_select(1, self.valid)

    def _within(self, at: Tensor) -> Tensor:
        labels = at[:, : len(self.low)].clamp(self.low, self.high)
        return torch.cat([labels, at[:, len(self.low) :]], dim=1)

    @staticmethod
    def _moved(at: Tensor, column: int, by: Tensor) -> Tensor:
        at = at.clone()
        at[:, column] += by
        return at


def _solve(jacobian: Tensor, residual: Tensor, held: Tensor, towards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of Huber's weights: solution (batch, column), its covariance, and the robust misfit (batch,).

    held: (number,) inverse variances of a prior on the first columns; towards: (batch, number) its pull.
    """
    rest = jacobian.shape[1] - len(held)
    prior, towards = torch.diag(F.pad(held, (0, rest))), F.pad(towards, (0, rest))
    misfit = _robust(residual)
    solution = residual.new_zeros(jacobian.shape[:2])
    for _ in range(3):
        left = residual - (solution[:, None] @ jacobian)[:, 0]
        misfit = _robust(left)
        weight = (HUBER * misfit.clamp(min=1.0)[:, None] / left.abs().clamp(min=1e-12)).clamp(max=1.0)
        weighted = jacobian * weight[:, None]
        normal = weighted @ jacobian.transpose(1, 2) + prior
        scale = normal.diagonal(dim1=1, dim2=2).clamp(min=1e-30).rsqrt()
        scaled = normal * scale[:, :, None] * scale[:, None] + 1e-10 * torch.eye(normal.shape[1]).to(normal)
        inverse = torch.linalg.inv_ex(scaled).inverse * scale[:, :, None] * scale[:, None]
        solution = (inverse @ (weighted @ residual[:, :, None] + towards[:, :, None]))[:, :, 0]
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
