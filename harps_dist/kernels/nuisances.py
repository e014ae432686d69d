"""What spectra show that their labels do not tell (`spectra.nuisance`), in few passes over memory, by Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harps_dist.spectra.doppler import DOUBLINGS, POLE
from harps_dist.spectra.nuisance import CONTINUUM_BLOCK, envelope

ROWS = 8  # blocks of the continuum that a program takes
BLOCK = 512  # pixels that a program takes


def disturbed(
    sed: Tensor,
    sed_scale: Tensor,
    line_error: Tensor | None,
    broaden: Callable[[Tensor], Tensor] | None,
    ripple: Tensor | None,
) -> Tensor:
    """(batch, source pixel) float32 samples of disturbed SEDs.

    sed: (batch, source pixel) int16 or float32 B-spline coefficients with sed_scale (batch, 2), scale and zero;
    positive. line_error: (batch, knot), as `nuisance.scale_lines` has it between knots. broaden: of (batch, source
    pixel). ripple: (batch, knot), by how much the continuum differs. None: without it. Needs Triton and CUDA.
    """
    sed, sed_scale = sed.contiguous(), sed_scale.contiguous()
    if broaden is None:
        return _disturbed(sed, sed_scale, line_error, ripple, samples=False)
    blurred = broaden(_disturbed(sed, sed_scale, line_error, None, samples=False))
    if ripple is None:
        return blurred.contiguous()
    plain = torch.eye(1, 2, device=sed.device).expand(len(sed), 2).contiguous()
    return _disturbed(blurred.contiguous(), plain, None, ripple, samples=True)


def prefiltered(samples: Tensor) -> Tensor:
    """`doppler.bspline_coefficients` of float32 samples (batch, pixel), contiguous. Needs Triton and CUDA."""
    from harps_dist.kernels.triton_nuisances import prefilter

    batch, width = samples.shape
    coefficients = torch.empty_like(samples)
    reach = sum(2**n for n in range(DOUBLINGS[torch.float32]))
    with torch.cuda.device_of(samples):
        prefilter[(-(-width // BLOCK), batch)](samples, coefficients, width, POLE, reach, BLOCK)
    return coefficients


def _disturbed(
    sed: Tensor, sed_scale: Tensor, line_error: Tensor | None, ripple: Tensor | None, samples: bool
) -> Tensor:
    from harps_dist.kernels.triton_nuisances import block_maxima, disturb_samples

    batch, width = sed.shape
    flux = torch.empty(batch, width, device=sed.device)
    upper = error = bent = flux
    with torch.cuda.device_of(sed):
        if line_error is not None:
            blocks = -(-width // CONTINUUM_BLOCK)
            maxima = torch.empty(batch, blocks, device=sed.device)
            size_p = 1 << (CONTINUUM_BLOCK - 1).bit_length()
            block_maxima[(-(-blocks // ROWS), batch)](
                sed, sed_scale, maxima, width, blocks, CONTINUUM_BLOCK, size_p, ROWS
            )
            upper, error = envelope(maxima).contiguous(), line_error.contiguous()
        if ripple is not None:
            bent = ripple.contiguous()
        counts = upper.shape[1], error.shape[1], bent.shape[1]
        steps = counts[0] / width, (counts[1] - 1) / (width - 1), (counts[2] - 1) / (width - 1)
        disturb_samples[(-(-width // BLOCK), batch)](
            sed, sed_scale, upper, error, bent, flux, width, *counts, line_error is not None, ripple is not None,
            samples, *steps, BLOCK,
        )  # fmt: skip
    return flux
