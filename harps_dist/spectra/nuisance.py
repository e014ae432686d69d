"""What a spectrum shows that its labels do not tell: broadening, line-list errors, continuum shape.

Real spectra differ from synthetic ones in these. Simulating them lets a model trained on simulations carry
over to the sky, and gives the unknown factors of an autoencoder something to learn.

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import Grid

CONTINUUM_BLOCK = 100  # pixels whose maximum is a point of the pseudo-continuum


def broaden(flux: Tensor, grid: Grid, sigma_kms: Tensor) -> Tensor:
    """Convolve with a Gaussian of constant velocity width (rotation and macroturbulence together).

    flux: (batch, pixel) on `grid`; sigma_kms: (batch,) standard deviation, 0 leaves the flux as it is. The
    width in pixels is that of the grid's middle wavelength. Ends are mirrored.
    """
    middle_aa = grid.wave0_aa + grid.step_aa * grid.length / 2
    sigma = (sigma_kms / C_KMS * middle_aa / grid.step_aa).to(flux.dtype)[:, None]
    pad = min(256, flux.shape[-1] - 1)
    padded = F.pad(flux[:, None], (pad, pad), mode="reflect")[:, 0]
    length = _fast_length(padded.shape[-1])  # zeros behind the mirrored end are as far off
    frequency = torch.fft.rfftfreq(length, device=flux.device, dtype=flux.dtype)
    transfer = torch.exp(-2 * (torch.pi * sigma * frequency) ** 2)
    blurred = torch.fft.irfft(torch.fft.rfft(padded, n=length).mul_(transfer), n=length)
    return blurred[:, pad : pad + flux.shape[-1]]


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


def smooth_noise(knots: Tensor, pixels: int) -> Tensor:
    """Interpolate random knots (batch, knot) evenly spread over a spectrum linearly to (batch, pixels)."""
    return F.interpolate(knots[:, None], size=pixels, mode="linear", align_corners=True)[:, 0]
