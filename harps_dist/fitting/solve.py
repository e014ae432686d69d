"""Robust least squares of simulated observations in batches: Levenberg-Marquardt, weights of Huber, rounds of clipping.

Tested in tests/unit/test_fit.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from harps_dist.fitting.observation import Observation, Rendered

HUBER = 1.345  # robust standard deviations beyond which residuals count linearly: 95 % as sharp as squares on noise
BLOCK = 128  # pixels, 1.3 Å, within which residuals may hang together
OF_MAD = 1.4826  # a normal distribution's standard deviation in median absolute deviations
COARSE = 1.0  # standard deviations of a parameter; nearer to the best fit one need not be before it is clipped
EDGE = 1e-3  # of a parameter's range; what ends nearer to its bounds is at the edge


@dataclass(frozen=True)
class Settings:
    """How a fit is made.

    continuum: degree of the Chebyshev polynomial that multiplies the model. rounds: of clipping. clip: in robust
    standard deviations. floor: what model spectra are usually off by, in medians of the flux; added to the noise in
    weights, so that spectra of high S/N are clipped alike. first, later: steps at most before the first clipping, and
    after each. tolerance: standard deviations of a parameter that a step must move one at least, or it is the last; 1
    before the last clipping.
    """

    continuum: int = 16
    rounds: int = 3
    clip: float = 4.0
    floor: float = 0.01
    first: int = 15
    later: int = 5
    tolerance: float = 0.1


class Data(NamedTuple):
    """Spectra to fit, each (batch, pixel): flux in medians, standard deviation of the noise, the same with `floor`, and
    whether it is usable."""

    flux: Tensor
    noise: Tensor
    sigma: Tensor
    usable: Tensor


class Solution(NamedTuple):
    """What fits n spectra best.

    parameters: (n, parameter) float64. covariance: (n, parameter, parameter) as photon noise makes it. scaled: as the
    residuals make it, which hang together within blocks of pixels. Both are 0 for what does not move. model: (n, pixel)
    with continuum. used: (n, pixel) bool, without what was clipped or not usable. scale: (n,) robust standard deviation
    of the residuals in that of noise and floor, 1 at least. left: (n,) that of the residuals in medians of the flux.
    chi2_start, chi2: (n,) reduced, against the noise alone, over the pixels used at the end.
    at_edge: (n, parameter) bool, whether it moved to an end of its range.
    """

    parameters: Tensor
    covariance: Tensor
    scaled: Tensor
    model: Tensor
    used: Tensor
    scale: Tensor
    left: Tensor
    chi2_start: Tensor
    chi2: Tensor
    at_edge: Tensor


class _Point(NamedTuple):
    """Parameters; what is simulated with them, and its derivatives; model with continuum, residual / sigma (n, pixel);
    the normal equations without the continuum; robust cost (n,)."""

    parameters: Tensor
    flux: Tensor
    derivatives: Tensor
    model: Tensor
    residual: Tensor
    normal: Tensor
    gradient: Tensor
    cost: Tensor


_Fields = TypeVar("_Fields", Data, _Point)


class Solver:
    """Fits on one grid. free: (parameter,) bool, which parameters move. low, high: (parameter,) their ranges."""

    def __init__(self, observation: Observation, settings: Settings, free: Tensor, low: Tensor, high: Tensor):
        self.observation, self.settings = observation, settings
        self.free, self.low, self.high = free, low, high
        x = torch.linspace(-1, 1, observation.grid.length, dtype=torch.float64, device=observation.device)
        degrees = torch.arange(2 * settings.continuum + 1, device=x.device)
        chebyshev = torch.cos(torch.arccos(x)[:, None] * degrees).to(observation.dtype)
        self._of_products = chebyshev  # 2 T_j T_k = T_{j + k} + T_{|j - k|}
        self._of_continuum = chebyshev[:, : settings.continuum + 1].contiguous()
        self._continuum = self._of_continuum.mT.contiguous()
        order = degrees[: settings.continuum + 1]
        self._sums, self._differences = order[:, None] + order, (order[:, None] - order).abs()

    def solve(self, data: Data, start: Tensor) -> Solution:
        """Fit spectra from parameters (n, parameter) float64 on."""
        used, everything = data.usable, data.usable.to(self.observation.dtype)
        endless = torch.full((len(start),), torch.inf, dtype=everything.dtype, device=everything.device)
        parameters = start.clamp(self.low, self.high)
        first = point = self._point(data, parameters, self.observation.render(parameters), everything, used, endless)
        for number in range(self.settings.rounds + 1):
            scale = self._scale(point.residual, used)
            if number:
                used = data.usable & (point.residual.abs() < self.settings.clip * scale[:, None])
            steps = self.settings.later if number else self.settings.first
            enough = self.settings.tolerance if number == self.settings.rounds else COARSE
            point = self._descend(data, point, used, scale, steps, enough)
        return self._finished(data, first, self._again(data, point, used, scale), used)

    def _descend(self, data: Data, point: _Point, used: Tensor, scale: Tensor, steps: int, tolerance: float) -> _Point:
        """The point after so many steps at most, longer ones where the last helped, shorter ones where it did not."""
        point = self._again(data, point, used, scale)
        damping = torch.full_like(scale, 1e-3, dtype=torch.float64)
        moving = torch.arange(len(scale), device=scale.device)
        for _ in range(steps):
            here, of_here = _rows(point, moving), _rows(data, moving)
            moved = self._moved(here, damping[moving])
            sigma = (_inverse(here.normal, self.free).diagonal(dim1=1, dim2=2).sqrt() * scale[moving, None]).double()
            far = ((moved - here.parameters).abs() > tolerance * sigma).any(dim=1)
            if not far.any():
                break
            moving, moved, here, of_here = moving[far], moved[far], _rows(here, far), _rows(of_here, far)
            rendered = self.observation.render(moved)
            weight = used[moving] * _weight(here.residual, scale[moving])
            there = self._point(of_here, moved, rendered, weight, used[moving], scale[moving])
            better = there.cost <= here.cost
            for whole, new in zip(point, there, strict=True):
                whole[moving[better]] = new[better]
            damping[moving] = torch.where(better, damping[moving] / 10, damping[moving] * 10).clamp(1e-8, 1e8)
        return point

    def _moved(self, point: _Point, damping: Tensor) -> Tensor:
        """Parameters after Levenberg's and Marquardt's step; those that would leave their ranges stay at the ends."""
        below, above = point.parameters <= self.low, point.parameters >= self.high
        stays = (below & (point.gradient < 0)) | (above & (point.gradient > 0)) | ~self.free
        moves = (~stays).to(point.normal.dtype)
        normal = point.normal * moves[:, :, None] * moves[:, None]
        damped = normal.diagonal(dim1=1, dim2=2) * damping[:, None] + (1 - moves) + 1e-12
        step = torch.linalg.solve(normal + torch.diag_embed(damped), point.gradient * moves)
        return (point.parameters + step).clamp(self.low, self.high)

    def _again(self, data: Data, point: _Point, used: Tensor, scale: Tensor) -> _Point:
        """A point at unchanged parameters, with weights that follow from its residuals."""
        weight = used * _weight(point.residual, scale)
        rendered = Rendered(point.flux, point.derivatives)
        return self._point(data, point.parameters.clone(), rendered, weight, used, scale)

    def _point(
        self, data: Data, parameters: Tensor, rendered: Rendered, weight: Tensor, used: Tensor, scale: Tensor
    ) -> _Point:
        flux, derivatives = rendered
        model, along = self._projected(data, rendered, weight)
        residual = (data.flux - model) / data.sigma
        limit, size = HUBER * scale[:, None], residual.abs()
        bent = used & (size < limit)
        normal = ((along * bent[:, None]) @ along.mT).double()
        pull = residual * _weight(residual, scale) * used
        gradient = (along @ pull[:, :, None]).double()[..., 0]
        loss = torch.where(size < limit, 0.5 * size**2, limit.clamp(max=1e12) * (size - 0.5 * limit.clamp(max=1e12)))
        cost = (loss * used).sum(dim=1, dtype=torch.float64)
        return _Point(parameters, flux, derivatives, model, residual, normal, gradient, cost)

    def _projected(self, data: Data, rendered: Rendered, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Model with the best continuum, and derivatives / sigma without what the continuum makes up for."""
        flux, derivatives = rendered
        each = weight * flux / data.sigma**2
        moments = ((each * flux) @ self._of_products).double()
        inner = (moments[:, self._sums] + moments[:, self._differences]) / 2
        coefficients = torch.linalg.solve(inner, ((each * data.flux) @ self._of_continuum).double())
        continuum = coefficients.to(flux.dtype) @ self._continuum
        along = derivatives * continuum[:, None]
        made_up = torch.linalg.solve(inner, ((along * each[:, None]) @ self._of_continuum).double().mT)
        along -= (made_up.mT.to(flux.dtype) @ self._continuum) * flux[:, None]
        return continuum * flux, along / data.sigma[:, None]

    @staticmethod
    def _scale(residual: Tensor, used: Tensor) -> Tensor:
        """(n,) robust standard deviation of residuals where they are used, 1 at least."""
        size = torch.where(used, residual.abs(), torch.nan)
        return (OF_MAD * torch.nanmedian(size, dim=1).values).clamp(min=1.0)

    def _finished(self, data: Data, first: _Point, point: _Point, used: Tensor) -> Solution:
        scale = self._scale(point.residual, used)
        degrees = (used.sum(dim=1) - int(self.free.sum()) - self.settings.continuum - 1).clamp(min=1)

        def chi2(at: _Point) -> Tensor:
            return ((data.flux - at.model) ** 2 / data.noise**2 * used).sum(dim=1, dtype=torch.float64) / degrees

        rendered, kept = Rendered(point.flux, point.derivatives), used.to(point.flux.dtype)
        _, along = self._projected(data, rendered, kept)
        normal = ((along * kept[:, None]) @ along.mT).double()
        noisy = along * (kept * data.noise / data.sigma)[:, None]
        sharp = _inverse(normal, self.free)
        bent = used & (point.residual.abs() < HUBER * scale[:, None])
        curved = ((along * bent[:, None]) @ along.mT).double()
        pull = kept * _weight(point.residual, scale) * point.residual
        blocks = torch.nn.functional.pad(along * pull[:, None], (0, -along.shape[-1] % BLOCK)).unflatten(
            -1, (-1, BLOCK)
        )
        pulls = blocks.sum(dim=-1).double()
        bread = _inverse(curved, self.free)
        span = (self.high - self.low) * EDGE
        at_edge = ((point.parameters <= self.low + span) | (point.parameters >= self.high - span)) & self.free
        return Solution(
            parameters=point.parameters,
            covariance=sharp @ (noisy @ noisy.mT).double() @ sharp,
            scaled=bread @ pulls @ pulls.mT @ bread,
            model=point.model,
            used=used,
            scale=scale,
            left=OF_MAD * torch.nanmedian(torch.where(used, (data.flux - point.model).abs(), torch.nan), dim=1).values,
            chi2_start=chi2(first),
            chi2=chi2(point),
            at_edge=at_edge,
        )


def _rows(fields: _Fields, rows: Tensor) -> _Fields:
    return type(fields)(*(field[rows] for field in fields))


def _weight(residual: Tensor, scale: Tensor) -> Tensor:
    """Huber's: 1 for small residuals, less in proportion for larger ones."""
    return (HUBER * scale[:, None] / residual.abs().clamp(min=1e-12)).clamp(max=1.0)


def _inverse(normal: Tensor, free: Tensor) -> Tensor:
    """(n, parameter, parameter) inverse of the part that is free; 0 elsewhere."""
    moves = free.to(normal.dtype)
    size = normal.diagonal(dim1=1, dim2=2).clamp(min=1e-30).sqrt() * moves + (1 - moves)
    units = size[:, :, None] * size[:, None]
    scaled = normal / units * moves[:, None] * moves + torch.diag_embed((1 - moves + 1e-10).expand_as(size))
    return torch.linalg.inv(scaled) / units * moves[:, None] * moves
