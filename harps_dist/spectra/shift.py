"""Doppler shift and broadening of spectra that can be learned through: with derivatives, in a few passes over memory.

`doppler.resample_shifted` says what a shift is. Autograd's own derivative of it would hold every window of every pixel.

Tested in tests/unit/test_shift.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harps_dist.spectra.doppler import BLOCK, C_KMS, Windows, spline_values, spline_windows
from harps_dist.spectra.grid import Grid

SEGMENT, PAD = 7680, 256  # pixels that are broadened by one width, and mirrored or neighbouring ones at either end


class Shift(torch.autograd.Function):
    """`shifted`, with its derivatives by the coefficients and by the velocity."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, rv_kms: Tensor, source_grid: Grid, target_grid: Grid) -> Tensor:
        ctx.save_for_backward(coefficients, rv_kms)
        ctx.grids = source_grid, target_grid
        windows = spline_windows(coefficients, rv_kms, source_grid, target_grid)
        return spline_values(windows).flatten(1)[:, : target_grid.length]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (coefficients, rv_kms), (source, target) = gradients, ctx.saved_tensors, ctx.grids
        windows = spline_windows(coefficients, rv_kms, source, target)
        blocks = windows.values.shape[1]
        gradient = F.pad(gradient, (0, blocks * BLOCK - target.length)).unflatten(1, (blocks, BLOCK))
        by_source = by_velocity = None
        if ctx.needs_input_grad[0]:
            by_source = _scattered(gradient, windows, rv_kms, source, target)
        if ctx.needs_input_grad[1]:
            lattice = torch.arange(blocks * BLOCK, device=gradient.device, dtype=torch.float64)
            lattice = (lattice + target.start + target.instrument.origin_steps).unflatten(0, (blocks, BLOCK))
            moved = (gradient * _slopes(windows)).double() * lattice
            by_velocity = (moved.sum((1, 2)) * -(1 / C_KMS) / (1 + rv_kms.double() / C_KMS) ** 2).to(rv_kms.dtype)
        return by_source, by_velocity, None, None


def shifted(coefficients: Tensor, rv_kms: Tensor, source_grid: Grid, target_grid: Grid) -> Tensor:
    """(batch, target pixel) values of cubic B-splines at the wavelengths that velocities move onto the target's pixels.

    coefficients: (batch, source pixel), of `doppler.bspline_coefficients`; rv_kms: (batch,), receding is positive.
    Differentiable in both. Beyond the source, whose ends are mirrored, what is drawn means nothing.
    """
    return Shift.apply(coefficients, rv_kms, source_grid, target_grid)


def _fractions(windows: Windows) -> Tensor:
    return windows.fraction + windows.slope * torch.arange(BLOCK, device=windows.values.device)


def _slopes(windows: Windows) -> Tensor:
    """(batch, block, BLOCK) derivatives of the splines by the pixel."""
    f = _fractions(windows)
    a, b, c, d = (windows.values[..., k : k + BLOCK] for k in range(4))
    return (c - a) / 2 + f * (a - 2 * b + c) + f * f * ((d - a) / 2 + 1.5 * (b - c))


def _scattered(gradient: Tensor, windows: Windows, rv_kms: Tensor, source: Grid, target: Grid) -> Tensor:
    """What `shifted` gathered, given back to the coefficients: (batch, source pixel).

    Windows of neighbouring blocks overlap by a few pixels, those of every other block do not: two plain writes, which
    no order of threads can change, and their sum.
    """
    f, (batch, blocks) = _fractions(windows), gradient.shape[:2]
    weights = (1 - f) ** 3 / 6, (4 - 6 * f * f + 3 * f**3) / 6, (1 + 3 * f + 3 * f * f - 3 * f**3) / 6, f**3 / 6
    values = gradient.new_zeros(batch, blocks, BLOCK + 3)
    for tap, weight in enumerate(weights):
        values[..., tap : tap + BLOCK] += gradient * weight
    reach = min(2 * BLOCK, source.length - 1)
    length = source.length + 2 * reach
    beta = (rv_kms / C_KMS).double()[:, None]
    slope = -beta / (1 + beta)
    first = torch.arange(blocks, device=gradient.device) * BLOCK
    offset = slope * (first.double() + target.start + target.instrument.origin_steps)
    whole = torch.floor(offset + slope * (BLOCK - 1) / 2).long()
    start = first + (target.start - source.start) - 1 + reach + whole
    inside = (start >= 0) & (start <= length - BLOCK - 3)  # others were cut off at the ends
    places = torch.where(inside, start, length)[..., None] + torch.arange(BLOCK + 3, device=gradient.device)
    mirrored = gradient.new_zeros(batch, length)
    for parity in (0, 1):
        written = gradient.new_zeros(batch, length + BLOCK + 3)
        written.scatter_(1, places[:, parity::2].flatten(1), values[:, parity::2].flatten(1))
        mirrored += written[:, :length]
    inner = mirrored[:, reach : reach + source.length].clone()
    inner[:, 1 : reach + 1] += mirrored[:, :reach].flip(1)
    inner[:, -reach - 1 : -1] += mirrored[:, reach + source.length :].flip(1)
    return inner


def broadened_coefficients(flux: Tensor, sigma_kms: Tensor, grid: Grid) -> Tensor:
    """(batch, pixel) B-spline coefficients of flux (batch, pixel) on `grid`, convolved with Gaussians in velocity.

    sigma_kms: (batch,) standard deviations up to 20 km/s. Differentiable in both. A segment of SEGMENT pixels has the
    width of its middle, which is that of its ends to 1 %; ends of the grid are mirrored.
    """
    length = flux.shape[-1]
    segments = -(-length // SEGMENT)
    padded = F.pad(flux[:, None], (PAD, PAD), mode="reflect")[:, 0]
    padded = F.pad(padded, (0, segments * SEGMENT - length))
    middles = (torch.arange(segments, device=flux.device) + 0.5) * SEGMENT
    width = (grid.wave0_aa / grid.step_aa + middles) / C_KMS  # pixels a km/s
    frequency = 2 * math.pi * torch.fft.rfftfreq(SEGMENT + 2 * PAD, device=flux.device, dtype=flux.dtype)
    sigma = sigma_kms[:, None, None] * width.to(flux.dtype)[None, :, None]
    transfer = torch.exp(-((sigma * frequency) ** 2) / 2) * (3 / (2 + torch.cos(frequency)))
    spectrum = torch.fft.rfft(padded.unfold(1, SEGMENT + 2 * PAD, SEGMENT)) * transfer
    blurred = torch.fft.irfft(spectrum, n=SEGMENT + 2 * PAD)[..., PAD:-PAD]
    return blurred.flatten(1)[:, :length]
