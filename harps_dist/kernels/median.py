"""Medians of whole spectra by counting, not by sorting."""

from __future__ import annotations

import torch
from torch import Tensor

DIGITS, BINS = 4, 256  # 8 bits at a time: counting takes as long as there are bins to a warp
BLOCK = 4096  # pixels of a program


def valid_median(flux: Tensor, valid: Tensor, kept: int) -> Tensor:
    """(batch,) lower medians of the valid pixels, what `torch.median` gives, to the bit but for the sign of 0.

    flux: (batch, pixel) float32, contiguous; NaN where any valid pixel is NaN. valid: (pixel,) int8, `kept` of them 1,
    the others 0; kept is at least 1. Reads the flux four times and copies nothing. Needs Triton and CUDA
    (`availability.available`).
    """
    from harps_dist.kernels.triton_median import count_digit, write_medians

    batch, pixels = flux.shape
    histograms = torch.zeros(batch, DIGITS + 1, BINS, dtype=torch.int32, device=flux.device)
    medians = flux.new_empty(batch)
    with torch.cuda.device_of(flux):
        for digit in range(DIGITS):
            count_digit[(-(-pixels // BLOCK), batch)](
                flux, valid, histograms, pixels, kept, digit, DIGITS, BINS, BLOCK, num_warps=8
            )
        write_medians[(batch,)](histograms, medians, kept, DIGITS, BINS)
    return medians
