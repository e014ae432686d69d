"""What a spectrum shows that its labels do not tell: lines that are otherwise, broadening, continuum, detector.

Real spectra differ from synthetic ones in these. Simulating them lets a model trained on simulations carry
over to the sky, and gives the unknown factors of an autoencoder something to learn.

Tested in tests/unit/test_batches.py and tests/unit/test_rich_nuisances.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import Grid

CONTINUUM_BLOCK = 100  # pixels whose maximum is a point of the pseudo-continuum
NARROW = 0.03  # half of a grid's width over its middle wavelength, up to which one width in pixels will do
BROADENING_BLOCK = 2048  # pixels that share a width in pixels on other grids
LIMB_DARKENING = 0.6
KNOT_KMS = 5.0  # between knots of what alters lines
DEPTH_KMS = (5.0, 15.0, 50.0)  # scales of errors of line depths
PIECE_KMS = 15.0  # length of a piece without its lines
HIT_CELL = 64  # pixels that one cosmic hit at most falls on
HIT_HEIGHT = 2.0  # of the highest, in medians of the flux
BLANKED_PIECE = 64  # pixels that are blanked together
BLANK = 1.0  # what they are set to: the continuum, after division by the median


def broaden(
    flux: Tensor,
    grid: Grid,
    sigma_kms: Tensor,
    rotation_kms: Tensor | None = None,
    macroturbulence_kms: Tensor | None = None,
) -> Tensor:
    """Convolve with a Gaussian, a rotation profile and radial-tangential macroturbulence of constant velocity width.

    flux: (batch, pixel) on `grid`; sigma_kms: (batch,) standard deviation of the Gaussian; rotation_kms: (batch,)
    v sin i; macroturbulence_kms: (batch,) zeta; 0 leaves the flux as it is. Ends are mirrored. A grid whose ends lie
    within 3 % of its middle is convolved by the width in pixels of its middle; a wider one in blocks of 20 Å, each by
    that of its own middle, 0.3 % off at most: below 1e-3 of the continuum for lines of a depth of 0.8.
    """
    middle_aa = grid.wave0_aa + grid.step_aa * grid.length / 2
    narrow = grid.step_aa * grid.length / 2 <= NARROW * middle_aa
    size, most = (grid.length, 256) if narrow else (BROADENING_BLOCK, 512)
    blocks, pad = -(-grid.length // size), min(most, flux.shape[-1] - 1)
    padded = F.pad(flux[:, None], (pad, pad), mode="reflect")[:, 0]
    padded = F.pad(padded[:, None], (0, blocks * size - grid.length), mode="replicate")[:, 0]
    parts = padded.unfold(1, size + 2 * pad, size)
    middles_aa = grid.wave0_aa + grid.step_aa * (torch.arange(blocks, dtype=torch.float64) + 0.5) * size
    middles = middles_aa.to(flux.device, sigma_kms.dtype, non_blocking=True)[:, None]
    length = _fast_length(size + 2 * pad)  # zeros behind the mirrored end are as far off
    frequency = torch.fft.rfftfreq(length, device=flux.device, dtype=flux.dtype)

    def phase(kms: Tensor) -> Tensor:
        """(batch, block, frequency) pi times the cycles of every frequency in a velocity."""
        return torch.pi * (kms[:, None, None] / C_KMS * middles / grid.step_aa).to(flux.dtype) * frequency

    transfer = torch.exp(-2 * phase(sigma_kms) ** 2)
    if rotation_kms is not None:
        transfer = transfer * rotation_transfer(phase(rotation_kms))
    if macroturbulence_kms is not None:
        transfer = transfer * macroturbulence_transfer(phase(macroturbulence_kms))
    blurred = torch.fft.irfft(torch.fft.rfft(parts, n=length).mul_(transfer), n=length)
    return blurred[..., pad : pad + size].flatten(1)[:, : flux.shape[-1]]


def rotation_transfer(phase: Tensor, darkening: float = LIMB_DARKENING) -> Tensor:
    """Fourier transform of the rotation profile of a star with linear limb darkening (Gray 2005, Eq. 18.14).

    phase: any shape, pi times frequency times v sin i; 1 where it is 0. The integrals of sqrt(1 - x^2) and of 1 - x^2
    times cos(u x) over -1..1 are pi J1(u) / u and 4 (sin u - u cos u) / u^3; u is twice the phase.
    """
    u = 2 * phase
    large = u.clamp(min=0.3)
    disc = torch.where(u < 0.3, 0.5 - u**2 / 16 + u**4 / 384, torch.special.bessel_j1(large) / large)
    parabola = torch.where(
        u < 0.3, 1 / 3 - u**2 / 30 + u**4 / 840, (torch.sin(large) - large * torch.cos(large)) / large**3
    )
    return (2 * (1 - darkening) * disc + 2 * darkening * parabola) / (1 - darkening / 3)


def macroturbulence_transfer(phase: Tensor) -> Tensor:
    """Fourier transform of radial-tangential macroturbulence, equal parts of both, over an even disc (Gray 2005, 17.3).

    phase: any shape, pi times frequency times zeta; 1 where it is 0. A point at the angle t from the disc's middle has
    half of exp(-a cos^2 t) and half of exp(-a sin^2 t), a the squared phase, of which the disc's mean is
    (1 - exp(-a)) / a.
    """
    a = phase**2
    return torch.where(a < 1e-4, 1 - a / 2, -torch.expm1(-a) / a.clamp(min=1e-4))


def _fast_length(length: int) -> int:
    """The next even length that is a product of 2, 3 and 5, for which Fourier transforms are fast."""
    odd = (3**i * 5**j for i in range(12) for j in range(8))
    return min(part << max(1, (-(-length // part) - 1).bit_length()) for part in odd)


def pseudo_continuum(flux: Tensor) -> Tensor:
    """(batch, pixel) upper envelope: `envelope` of the maxima of CONTINUUM_BLOCK pixels, linear between them."""
    upper = envelope(F.max_pool1d(flux[:, None], CONTINUUM_BLOCK, ceil_mode=True)[:, 0])
    return F.interpolate(upper[:, None], size=flux.shape[-1], mode="linear")[:, 0]


def envelope(maxima: Tensor, reach: int = 4) -> Tensor:
    """(batch, block) maxima over `reach` blocks either side, smoothed."""
    width = 2 * reach + 1
    upper = F.max_pool1d(maxima[:, None], width, stride=1, padding=reach)
    return F.avg_pool1d(F.pad(upper, (reach, reach), mode="replicate"), width, stride=1)[:, 0]


def scale_lines(flux: Tensor, error: Tensor) -> Tensor:
    """Change the logarithmic depth of lines below the pseudo-continuum by a relative error per pixel.

    flux: (batch, pixel), positive; error: (batch, pixel), 0.25 makes lines 25 % deeper.
    """
    depth = torch.log(flux / pseudo_continuum(flux))
    return flux * torch.exp(depth * error)


class Knots(NamedTuple):
    """Knots evenly spread in velocity over the pixels of a grid.

    left: (pixel,) int64 the last knot that is not redder. fraction: (pixel,) how far the pixel is on the way to the
    next. size: how many knots there are.
    """

    left: Tensor
    fraction: Tensor
    size: int

    def at_pixels(self, values: Tensor) -> Tensor:
        """(batch, pixel) values between those of knots (batch, knot), linearly."""
        return torch.lerp(values.index_select(1, self.left), values.index_select(1, self.left + 1), self.fraction)


def knots_in_velocity(grid: Grid, device: torch.device, dtype: torch.dtype) -> Knots:
    """Knots KNOT_KMS apart, from the first pixel of a grid on."""
    position = C_KMS / KNOT_KMS * torch.from_numpy(np.log(grid.wave_aa / grid.wave0_aa))
    left = position.floor()
    return Knots(left.long().to(device), (position - left).to(device, dtype), int(left[-1]) + 2)


def line_knots(count: int) -> tuple[int, ...]:
    """How many normal draws a scale of DEPTH_KMS takes, for so many knots KNOT_KMS apart."""
    return tuple(2 + int(count * KNOT_KMS / kms) for kms in DEPTH_KMS)


def depth_factors(normals: Tensor, largest: Tensor, count: int) -> Tensor:
    """(batch, count) factors of the line depths at knots: 1 and errors on the scales of DEPTH_KMS, within 0.1..3.

    normals: (batch, sum of `line_knots`); largest: (batch, 1) standard deviation of the three together.
    """
    scales = normals.split(line_knots(count), dim=1)
    error = torch.stack([smooth_noise(scale, count) for scale in scales]).sum(dim=0) / len(scales) ** 0.5
    return (1 + error * largest).clamp(0.1, 3.0)


def correction_shares(normals: Tensor, scatter: float, knots: Knots) -> Tensor:
    """(batch, pixel) shares of corrections that lines get: 1 and errors of a standard deviation on the second scale of
    DEPTH_KMS.

    normals: (batch, `line_knots(knots.size)[1]`).
    """
    return 1 + scatter * knots.at_pixels(smooth_noise(normals, knots.size))


def change_lines(flux: Tensor, factor: Tensor, added: Tensor) -> Tensor:
    """Multiply the logarithmic depth of lines below the pseudo-continuum, and add to it.

    flux: (batch, pixel), positive; factor, added: (batch, pixel); factor 0 leaves no line, added 0.7 halves the flux.
    """
    depth = torch.log(flux / pseudo_continuum(flux))
    return flux * torch.exp(depth * (factor - 1) - added)


def cosmic_hits(draws: Tensor, share: Tensor, pixels: int) -> Tensor:
    """(batch, pixels) light of cosmic hits, one in HIT_CELL pixels at most, three wide, in medians of the flux.

    draws: (batch, 3 cells) uniform in 0..1, of cells of HIT_CELL pixels; share: (batch, 1) hits per pixel.
    """
    hit, place, height = draws.unflatten(1, (3, -1)).unbind(1)
    tall = torch.where(hit < share * HIT_CELL, HIT_HEIGHT * height**3, 0.0)
    light = torch.zeros(*tall.shape, HIT_CELL, dtype=draws.dtype, device=draws.device)
    cell = (place * HIT_CELL).long().clamp_(max=HIT_CELL - 1)  # a draw may round to 1
    light.scatter_(2, cell[..., None], tall[..., None])
    light = light.flatten(1)
    beside = F.pad(light, (1, 1))
    return (light + (beside[:, :-2] + beside[:, 2:]) / 2)[:, :pixels]


def pieces(pixels: int) -> int:
    """How many pieces of BLANKED_PIECE pixels cover a spectrum."""
    return -(-pixels // BLANKED_PIECE)


def blank(flux: Tensor, hidden: Tensor) -> Tensor:
    """(batch, pixel) standardised flux with pieces set to the continuum; hidden: (batch, piece) bool."""
    return flux.masked_fill(hidden.repeat_interleave(BLANKED_PIECE, dim=1)[:, : flux.shape[1]], BLANK)


def smooth_noise(knots: Tensor, pixels: int) -> Tensor:
    """Interpolate random knots (batch, knot) evenly spread over a spectrum linearly to (batch, pixels)."""
    return F.interpolate(knots[:, None], size=pixels, mode="linear", align_corners=True)[:, 0]
