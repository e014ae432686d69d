"""From raw batches to standardised spectra, on the device.

The CPU reads codes and draws velocities, keyed to the sample; the device does the rest for a whole batch at once:
shift, response, noise, median.

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harps_dist.data.augment import Augment
from harps_dist.data.batches import RawBatch
from harps_dist.data.reader import Decoding
from harps_dist.formats.line_corrections import read_corrections
from harps_dist.kernels.availability import Kernels, check_kernels
from harps_dist.kernels.nuisances import disturbed, prefiltered
from harps_dist.kernels.spectra import SpectrumKernels
from harps_dist.spectra import nuisance as disturbances
from harps_dist.spectra.doppler import (
    BLOCK,
    C_KMS,
    Windows,
    bspline_coefficients,
    doppler_shift,
    resample_shifted,
    spline_samples,
    spline_values,
    spline_windows,
)
from harps_dist.spectra.grid import fill_plan
from harps_dist.spectra.noise import keyed_normals, keyed_uniforms, normal_halves
from harps_dist.spectra.observation import observe

NOISE, LINES, BROADENING, CONTINUUM = range(4)  # purposes of what the device draws
DEPTHS, MISSING, UNLISTED, LEVELS, HITS, BLANKED, CORRECTED = range(4, 11)
LEVEL = (  # columns of what is drawn once a spectrum
    *("line_depth", "missing_lines", "unlisted_lines", "rotation_kms", "macroturbulence_kms"),
    *("scattered_light", "cosmic_hits", "blanked"),
)
IN_KERNELS = ("line_error", "broadening_kms", "continuum")  # nuisances; with others of the star PyTorch does them all
ON_DETECTOR = ("scattered_light", "cosmic_hits", "blanked")


class Batch(NamedTuple):
    """Standardised spectra (batch, pixel), labels (batch, label), which are simulated, rows of the index, keys.

    Labels are NaN where missing. label_errors: (batch, label) standard deviations of labels that fits gave, else 0.
    """

    flux: Tensor
    labels: Tensor
    simulated: Tensor
    rows: Tensor
    key: Tensor
    label_errors: Tensor


class Observer:
    """Turns raw batches into standardised spectra on the device they lie on.

    compile: fuse the arithmetic with torch.compile, which wants a compiler (on a GPU Triton) and a minute at first.
    dtype: of spectra and arithmetic, float32, or float64 for comparisons; what is drawn has the 24 bits of float32.
    kernels: "triton" makes float32 spectra that are simulated in fewer passes over memory: the same draws, values to
    rounding. Raises ConfigError where Triton or a GPU is missing, and for a file of line corrections that is none.
    """

    def __init__(
        self,
        decoding: Decoding,
        augment: Augment,
        device: torch.device,
        compile: bool = False,
        dtype: torch.dtype = torch.float32,
        kernels: Kernels = "torch",
    ):
        check_kernels(kernels)
        self.grid, self.source_grid, self.augment = decoding.grid, decoding.source_grid, augment
        self.device, self._dtype = device, dtype
        self._window = self.grid.within(self.source_grid)
        self._runs = _runs(self.grid.valid)
        self._pixels = int(self.grid.valid.sum())
        left, right, weight = fill_plan(self.grid)
        invalid = np.flatnonzero(~self.grid.valid)
        self._fill = (
            torch.from_numpy(invalid).to(device),
            torch.from_numpy(left[invalid]).to(device),
            torch.from_numpy(right[invalid]).to(device),
            torch.from_numpy(weight[invalid]).to(device, dtype),
        )
        basis = torch.from_numpy(decoding.basis).to(device, dtype)
        self._shifts_response = augment.berv_kms > 0
        if not self._shifts_response:
            basis = basis[:, self._window]
        elif augment.shift == "cubic" and len(basis):
            basis = bspline_coefficients(basis)
        self._basis = basis.contiguous().split(decoding.terms)

        def fused(function: Callable) -> Callable:
            return torch.compile(function) if compile else function

        self._observe_spline, self._observe, self._noise = fused(_observe_spline), fused(_observe), fused(_noise)
        self._spline, self._restore = fused(spline_values), fused(decoding.codec.restore)
        nuisance = augment.nuisance
        self._star = nuisance.model_copy(update=dict.fromkeys(ON_DETECTOR, 0.0))
        self._detector = nuisance.only(*ON_DETECTOR)
        by_knots = self._alters_lines or nuisance.lines
        self._knots = disturbances.knots_in_velocity(self.source_grid, device, dtype) if by_knots else None
        if nuisance.lines:
            found = read_corrections(Path(nuisance.lines), "--data.augment.nuisance.lines").at(self.source_grid.wave_aa)
            self._factor, self._added = (torch.from_numpy(part).to(device, dtype) for part in found)
        self._kernels, self._disturbs_by_kernels = None, False
        if kernels == "triton" and dtype == torch.float32:
            cubic, noise = augment.shift == "cubic", NOISE if augment.noise else None
            self._kernels = SpectrumKernels(
                self.grid, self.source_grid, decoding.basis, decoding.terms, cubic, self._shifts_response, noise, device
            )
            others = self._star.model_copy(update=dict.fromkeys(IN_KERNELS, 0.0))
            self._disturbs_by_kernels = not others.on

    def __call__(self, raw: RawBatch) -> Batch:
        raw, real = self._in_format(raw), len(raw.flux)
        flux = torch.empty(len(raw.key), self.grid.length, dtype=self._dtype, device=raw.key.device)
        if real:
            valid, first = self._restore(raw.flux, raw.flux_scale, self._pixels), 0
            for run in self._runs:
                flux[:real, run] = valid[:, first : first + run.stop - run.start]
                first += run.stop - run.start
            self._fill_invalid(flux[:real])
        if len(raw.sed):
            self.standardise(self.simulate(raw), flux[real:])
            if self._detector.on:
                self._on_detector(flux[real:], raw.key[real:])
        simulated = torch.arange(len(flux), device=flux.device) >= real
        return Batch(flux, raw.labels, simulated, raw.rows, raw.key, raw.label_errors)

    def simulate(self, raw: RawBatch) -> Tensor:
        """(simulated, pixel) counts of the simulated spectra of a raw batch, in medians of R (Eqs. A.1, A.2)."""
        raw = self._in_format(raw)
        key = raw.key[len(raw.flux) :]
        cubic, drawn = self.augment.shift == "cubic", bool(self._star.on)
        sed, scale = raw.sed, raw.sed_scale
        if drawn or not (cubic or self._kernels):
            sed = self._disturbed(raw, key)
            scale = torch.eye(1, 2, device=sed.device, dtype=sed.dtype).expand(len(sed), 2)
        if self._kernels:
            return self._kernels.counts(
                sed, scale, raw.rv_kms, raw.berv_kms, raw.response, raw.residual, raw.residual_of, key,
                samples=drawn and not cubic,
            )  # fmt: skip
        terms = self._terms(raw)
        noise = self._noise(key, terms[0].shape[1]) if self.augment.noise else None
        counts = torch.empty_like(terms[0])
        if cubic:
            windows = spline_windows(sed, raw.rv_kms, self.source_grid, self.grid)
            windows = windows._replace(values=windows.values.to(self._dtype))  # fused code is slow on int16
            dilution = (1 + raw.rv_kms / C_KMS).to(self._dtype)[:, None]
            self._observe_spline(windows, scale / dilution, terms, noise, counts)
        else:
            sed = doppler_shift(sed, raw.rv_kms, self.source_grid, self.grid, "linear")
            self._observe(_in_blocks(sed), terms, noise, counts)
        return counts.flatten(1)[:, : self.grid.length]

    def standardise(self, counts: Tensor, flux: Tensor) -> None:
        """Write counts (batch, pixel) by the median of their valid pixels (Eq. 2) into flux, and fill the others."""
        if self._kernels:
            self._kernels.standardise(counts, flux)
            return
        valid = torch.cat([counts[:, run] for run in self._runs], dim=1)
        if counts.device.type == "cpu":  # ten times as fast there, the same value
            kept, values = (self._pixels - 1) // 2, valid.numpy()
            values.partition(kept, axis=1)
            median = valid[:, kept : kept + 1]
        else:
            median = valid.median(dim=1, keepdim=True).values
        torch.div(counts, median, out=flux)
        self._fill_invalid(flux)

    def _fill_invalid(self, flux: Tensor) -> None:
        invalid, left, right, weight = self._fill
        if len(invalid):
            bridged = torch.lerp(flux.index_select(1, left), flux.index_select(1, right), weight)
            flux.index_copy_(1, invalid, bridged)

    def _in_format(self, raw: RawBatch) -> RawBatch:
        """The batch with numbers that arithmetic in float64 begins with; codes stay as they are for float32."""
        if self._dtype == torch.float32:
            return raw
        names = ("flux", "flux_scale", "sed", "sed_scale", "response", "residual")
        return raw._replace(**{name: getattr(raw, name).to(self._dtype) for name in names})

    def _samples(self, raw: RawBatch) -> Tensor:
        return spline_samples(raw.sed.to(self._dtype) * raw.sed_scale[:, :1] + raw.sed_scale[:, 1:])

    def _terms(self, raw: RawBatch) -> tuple[Tensor, Tensor, Tensor]:
        """log R, log R2 / R and log V0, (simulated, block, BLOCK) each, where BERV puts them."""
        coefficients = raw.response.split([len(part) for part in self._basis], dim=1)
        terms = [part @ basis for part, basis in zip(coefficients, self._basis, strict=True)]
        cubic = self.augment.shift == "cubic"
        if len(raw.residual_of):
            missed = raw.residual.to(self._dtype).transpose(0, 1)
            missed = missed if self._shifts_response else missed[..., self._window]
            for term, part in zip(terms, missed, strict=True):
                spline = self._shifts_response and cubic
                term.index_add_(0, raw.residual_of, bspline_coefficients(part) if spline else part.contiguous())
        if self._shifts_response:
            for number, term in enumerate(terms):
                if cubic:
                    windows = spline_windows(term, raw.berv_kms, self.source_grid, self.grid)
                    terms[number] = self._spline(windows).flatten(1)
                else:
                    terms[number] = resample_shifted(term, raw.berv_kms, self.source_grid, self.grid, "linear")
        mean, ratio, floor = map(_in_blocks, terms)
        return mean, ratio, floor

    def _disturb(self, sed: Tensor, key: Tensor) -> Tensor:
        nuisance, pixels = self._star, sed.shape[-1]
        if nuisance.lines:
            sed = self._correct_lines(sed, key)
        if nuisance.line_error:
            sed = disturbances.scale_lines(sed, disturbances.smooth_noise(self._line_errors(key), pixels))
        if self._alters_lines:
            sed = self._alter_lines(sed, key)
        if nuisance.broadening_kms or nuisance.rotation_kms or nuisance.macroturbulence_kms:
            sed = self._broaden(sed, key)
        if nuisance.continuum:
            sed = sed * (1 + disturbances.smooth_noise(self._ripples(key), pixels))
        return sed

    def _correct_lines(self, sed: Tensor, key: Tensor) -> Tensor:
        knots = self._knots
        assert knots is not None
        normals = keyed_normals(key, disturbances.line_knots(knots.size)[1], CORRECTED).to(self._dtype)
        share = disturbances.correction_shares(normals, self._star.lines_scatter, knots)
        return disturbances.change_lines(sed, 1 + share * self._factor, share * self._added)

    @property
    def _alters_lines(self) -> bool:
        nuisance = self._star
        return bool(nuisance.line_depth or nuisance.missing_lines or nuisance.unlisted_lines)

    def _level(self, key: Tensor, name: str) -> Tensor:
        """(batch, 1) uniform draw of a nuisance, one a spectrum."""
        return keyed_uniforms(key, len(LEVEL), LEVELS)[:, LEVEL.index(name), None].to(self._dtype)

    def _alter_lines(self, sed: Tensor, key: Tensor) -> Tensor:
        nuisance, knots = self._star, self._knots
        assert knots is not None
        factor = torch.ones(len(key), knots.size, dtype=self._dtype, device=key.device)
        added = torch.zeros_like(factor)
        if nuisance.line_depth:
            normals = keyed_normals(key, sum(disturbances.line_knots(knots.size)), DEPTHS).to(self._dtype)
            largest = self._level(key, "line_depth") * nuisance.line_depth
            factor = disturbances.depth_factors(normals, largest, knots.size)
        if nuisance.missing_lines:
            together = round(disturbances.PIECE_KMS / disturbances.KNOT_KMS)
            drawn = keyed_uniforms(key, -(-knots.size // together), MISSING).to(self._dtype)
            gone = drawn < self._level(key, "missing_lines") * nuisance.missing_lines
            factor = factor.masked_fill(gone.repeat_interleave(together, dim=1)[:, : knots.size], 0.0)
        if nuisance.unlisted_lines:
            drawn, strength = keyed_uniforms(key, 2 * knots.size, UNLISTED).to(self._dtype).chunk(2, dim=1)
            share = self._level(key, "unlisted_lines") * nuisance.unlisted_lines * disturbances.KNOT_KMS / 1000
            added = torch.where(drawn < share, strength**3, 0.0)
        return disturbances.change_lines(sed, knots.at_pixels(factor), knots.at_pixels(added))

    def _on_detector(self, flux: Tensor, key: Tensor) -> None:
        """Change standardised flux (simulated, pixel) by what an extraction leaves in it."""
        nuisance, pixels = self._detector, flux.shape[1]
        if nuisance.scattered_light:
            light = (4 * self._level(key, "scattered_light") - 1) / 3 * nuisance.scattered_light
            flux.add_(light).div_(1 + light)
        if nuisance.cosmic_hits:
            draws = keyed_uniforms(key, 3 * -(-pixels // disturbances.HIT_CELL), HITS).to(self._dtype)
            share = self._level(key, "cosmic_hits") * nuisance.cosmic_hits / 1000
            flux.add_(disturbances.cosmic_hits(draws, share, pixels))
        if nuisance.blanked:
            drawn = keyed_uniforms(key, disturbances.pieces(pixels), BLANKED).to(self._dtype)
            flux.copy_(disturbances.blank(flux, drawn < self._level(key, "blanked") * nuisance.blanked))
        self._fill_invalid(flux)

    def _line_errors(self, key: Tensor) -> Tensor:
        nuisance = self.augment.nuisance
        knots = 2 + round(self.source_grid.length * self.grid.step_aa / nuisance.line_scale_aa)
        return keyed_normals(key, knots, LINES).to(self._dtype) * nuisance.line_error

    def _broaden(self, sed: Tensor, key: Tensor) -> Tensor:
        nuisance = self._star
        sigma = keyed_uniforms(key, 1, BROADENING)[:, 0] * nuisance.broadening_kms
        rotation, macroturbulence = (
            self._level(key, name)[:, 0] ** 2 * getattr(nuisance, name) if getattr(nuisance, name) else None
            for name in ("rotation_kms", "macroturbulence_kms")
        )
        return disturbances.broaden(sed, self.source_grid, sigma, rotation, macroturbulence)

    def _ripples(self, key: Tensor) -> Tensor:
        nuisance = self.augment.nuisance
        return keyed_normals(key, nuisance.continuum_knots, CONTINUUM).to(self._dtype) * nuisance.continuum

    def _disturbed(self, raw: RawBatch, key: Tensor) -> Tensor:
        """(simulated, source pixel) disturbed SEDs in the form that they are shifted in."""
        nuisance, cubic = self.augment.nuisance, self.augment.shift == "cubic"
        if not self._disturbs_by_kernels:
            sed = self._disturb(self._samples(raw), key)
            return bspline_coefficients(sed) if cubic else sed
        sed = disturbed(
            raw.sed,
            raw.sed_scale,
            self._line_errors(key) if nuisance.line_error else None,
            (lambda sed: self._broaden(sed, key)) if nuisance.broadening_kms else None,
            self._ripples(key) if nuisance.continuum else None,
        )
        return prefiltered(sed) if cubic else sed


def _observe_spline(
    sed: Windows,
    sed_scale: Tensor,
    terms: tuple[Tensor, Tensor, Tensor],
    noise: tuple[Tensor, Tensor] | None,
    counts: Tensor,
) -> None:
    """Observe SEDs that are given as windows of B-spline codes with scale and zero."""
    _observe(spline_values(sed) * sed_scale[:, :1, None] + sed_scale[:, 1:, None], terms, noise, counts)


def _observe(
    sed: Tensor, terms: tuple[Tensor, Tensor, Tensor], noise: tuple[Tensor, Tensor] | None, counts: Tensor
) -> None:
    """Write the counts of shifted SEDs seen through log R, log R2 / R and log V0; all (batch, block, BLOCK).

    In halves, for noise is made in pairs: so a compiler needs one pass over memory.
    """
    half, mean = -(-sed.shape[1] // 2), torch.exp(terms[0])
    flux, sigma = observe(sed, mean, mean * torch.exp(terms[1]), torch.exp(terms[2]))
    for number, part in enumerate((slice(half), slice(half, None))):
        drawn = sigma[:, part] * noise[number][:, : sed.shape[1] - half * number] if noise else 0
        counts[:, part] = flux[:, part] + drawn


def _noise(key: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Normal draws for either half of so many blocks; made in pairs, one for each."""
    half = -(-blocks // 2)
    first, second = normal_halves(key, 2 * half * BLOCK, NOISE)
    return first.unflatten(1, (half, BLOCK)), second.unflatten(1, (half, BLOCK))


def _in_blocks(values: Tensor) -> Tensor:
    """(batch, pixel) as (batch, block, BLOCK), the last one filled up."""
    missing = -values.shape[1] % BLOCK
    return (F.pad(values, (0, missing)) if missing else values).unflatten(1, (-1, BLOCK))


def _runs(valid: np.ndarray) -> list[slice]:
    """The runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], valid, [False]]).astype(np.int8)))
    return [slice(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
