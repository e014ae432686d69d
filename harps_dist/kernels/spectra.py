"""Simulated spectra in a few passes over memory, by Triton.

Tested in tests/unit/test_observer_by_kernels.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harps_dist.kernels.median import valid_median
from harps_dist.spectra.doppler import BLOCK, bspline_coefficients
from harps_dist.spectra.grid import Grid, fill_plan

BLOCKS = 2  # of BLOCK pixels, that a program takes of either half of a spectrum
WARPS = 4
SPECTRA = 4  # that a program makes one after the other, while the vectors of the response stay in its cache
FILLED = 2048  # pixels that a program divides by the median


class SpectrumKernels:
    """Makes the simulated spectra of one release in float32, on a GPU with Triton (`availability.available`).

    basis: (vector, source pixel), those of log R, of log R2 / R and of log V0, `terms` of each. cubic: how spectra are
    shifted, linearly otherwise. shifts_response: whether BERV moves it. noise: the purpose of its draws, None for none.
    """

    def __init__(
        self,
        grid: Grid,
        source_grid: Grid,
        basis: np.ndarray,
        terms: tuple[int, int, int],
        cubic: bool,
        shifts_response: bool,
        noise: int | None,
        device: torch.device,
    ):
        self._grid, self._margin = grid, grid.start - source_grid.start
        self._width, self._origin = source_grid.length, float(grid.start + grid.instrument.origin_steps)
        self._cubic, self._shifts_response, self._noise = cubic, shifts_response, noise
        self._ends = terms[0], terms[0] + terms[1], sum(terms)
        vectors = torch.from_numpy(basis).to(device, torch.float32)
        self._basis = self._shiftable(vectors) if len(vectors) else vectors
        self._valid = torch.from_numpy(grid.valid.astype(np.int8)).to(device)
        self._kept = int(grid.valid.sum())
        left, right, weight = fill_plan(grid)
        self._fill = (
            torch.from_numpy(left.astype(np.int32)).to(device),
            torch.from_numpy(right.astype(np.int32)).to(device),
            torch.from_numpy(weight.astype(np.float32)).to(device),
        )

    def counts(
        self,
        sed: Tensor,
        sed_scale: Tensor,
        rv_kms: Tensor,
        berv_kms: Tensor,
        response: Tensor,
        residual: Tensor,
        residual_of: Tensor,
        key: Tensor,
        samples: bool = False,
    ) -> Tensor:
        """(batch, pixel) counts of simulated spectra in medians of R (Eqs. A.1, A.2).

        sed: (batch, source pixel) int16 or float32 B-spline coefficients, or their samples, with sed_scale (batch, 2),
        scale and zero; rv_kms, berv_kms (batch,); response (batch, vector); residual (some, 3, source pixel) of the
        spectra residual_of (some,); key (batch,) int64. samples only for linear shifts.
        """
        from harps_dist.kernels.triton_spectra import simulate_counts

        batch, pixels = len(sed), self._grid.length
        half = -(-pixels // (2 * BLOCK))  # blocks; the second half may be a block shorter
        counts = torch.empty(batch, pixels, device=sed.device)
        row = torch.full((batch,), -1, dtype=torch.int32, device=sed.device)
        row[residual_of] = torch.arange(len(residual_of), dtype=torch.int32, device=sed.device)
        residual = self._shiftable(residual) if len(residual_of) else residual.float()
        with torch.cuda.device_of(sed):
            simulate_counts[(-(-batch // SPECTRA), -(-half // BLOCKS))](
                sed.contiguous(), sed_scale.contiguous(), rv_kms.double(), berv_kms.double(), self._basis,
                response.float().contiguous(), residual, row, key, counts, batch, pixels, self._width, self._margin,
                half, self._origin, *self._ends, self._cubic, samples, self._shifts_response, len(residual_of) > 0,
                self._noise is not None, self._noise or 0, BLOCK, BLOCKS, SPECTRA, num_warps=WARPS,
            )  # fmt: skip
        return counts

    def standardise(self, counts: Tensor, flux: Tensor) -> None:
        """Write counts (batch, pixel) by the median of their valid pixels (Eq. 2) into flux, and fill the others."""
        from harps_dist.kernels.triton_spectra import divide_and_fill

        medians = valid_median(counts, self._valid, self._kept)
        batch, pixels = counts.shape
        with torch.cuda.device_of(counts):
            divide_and_fill[(-(-pixels // FILLED), batch)](
                counts, medians, self._valid, *self._fill, flux, pixels, FILLED, num_warps=4
            )

    def _shiftable(self, samples: Tensor) -> Tensor:
        """(..., source pixel) samples in the form that the response is shifted in."""
        if not (self._cubic and self._shifts_response):
            return samples.contiguous()
        return bspline_coefficients(samples.float().flatten(0, -2)).view(samples.shape)
