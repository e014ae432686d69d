"""From rows of a release to batches of standardised spectra on the device.

The CPU reads codes and draws velocities, keyed to the sample; the device does the rest in one operation for the whole
batch: shift, response, noise, median. Nothing here depends on ranks, workers or timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harps_dist.data.augment import Augment
from harps_dist.data.keyed import key_of, uniforms
from harps_dist.data.order import Order, rank_slice
from harps_dist.data.reader import Instrument, Release
from harps_dist.data.scarcity import scarce_labels
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
from harps_dist.spectra.grid import STEP_AA, fill_plan
from harps_dist.spectra.labels import NAMES
from harps_dist.spectra.noise import keyed_normals, keyed_uniforms, normal_halves
from harps_dist.spectra.nuisance import broaden, scale_lines, smooth_noise
from harps_dist.spectra.observation import observe

RV, BERV = NAMES.index("rv"), NAMES.index("berv")
NOISE, LINES, BROADENING, CONTINUUM = range(4)  # purposes of what the device draws


class RawBatch(NamedTuple):
    """What leaves the CPU: codes, and what is drawn for each sample. Real spectra come first.

    flux and flux_scale (real, ...): codes of the release's codec. sed (simulated, source pixel) int16 B-spline
    coefficients, sed_scale (simulated, 2) their scale and zero. response (simulated, vector): coefficients; residual
    (some, 3, source pixel) float16 is added to the terms of the simulated samples residual_of (some,). rv_kms, berv_kms
    (simulated,). key (batch,) of what the device draws; labels (batch, label) with NaN where missing; rows and epochs
    (batch,): which row of the index, drawn in which epoch.
    """

    flux: Tensor
    flux_scale: Tensor
    sed: Tensor
    sed_scale: Tensor
    response: Tensor
    residual: Tensor
    residual_of: Tensor
    rv_kms: Tensor
    berv_kms: Tensor
    key: Tensor
    labels: Tensor
    rows: Tensor
    epochs: Tensor

    def to(self, device: torch.device) -> RawBatch:
        return RawBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Batch(NamedTuple):
    """Standardised spectra (batch, pixel), labels (batch, label), which are simulated, rows of the index, keys.

    Labels are NaN where missing.
    """

    flux: Tensor
    labels: Tensor
    simulated: Tensor
    rows: Tensor
    key: Tensor


class Codes(NamedTuple):
    """Codes of real spectra and of SEDs with their scales, as in `RawBatch`."""

    flux: Tensor
    flux_scale: Tensor
    sed: Tensor
    sed_scale: Tensor


def read_codes(release: Release, rows: np.ndarray) -> Codes:
    """Read the codes of rows (batch,) of the index, real ones first."""
    real = int((release.index["kind"][rows] == "real").sum())
    flux, flux_scale = _stacked(release, rows[:real])
    sed, sed_scale = _stacked(release, rows[real:])
    return Codes(flux, flux_scale, sed, sed_scale)


def no_codes(release: Release, rows: np.ndarray) -> Codes:
    """Leave the codes out, for `ResidentCodes` to add them."""
    nothing = torch.empty(0, 0)
    return Codes(nothing, nothing, nothing, nothing)


def _stacked(release: Release, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    if not len(rows):
        return torch.empty(0, 0, dtype=torch.int16), torch.empty(0, 0)
    coded = [release.coded(int(row)) for row in rows]
    codes = torch.from_numpy(np.stack([part.codes for part in coded]))
    return codes, torch.from_numpy(np.stack([part.scale for part in coded]))


def assemble(
    release: Release,
    rows: np.ndarray,
    epochs: np.ndarray,
    labels: np.ndarray,
    augment: Augment,
    seed: int,
    codes_of: Callable[[Release, np.ndarray], Codes] = read_codes,
) -> RawBatch:
    """Rows (batch,) of the index, drawn in epochs (batch,), with their labels (row of the index, label).

    What is drawn for simulated spectra is keyed by their star: its own, but for those of a generative core, which share
    velocities and noise, so that they differ in one label alone. codes_of: where the codes of the rows come from.
    """
    index = release.index
    real_first = np.argsort(index["kind"][rows] != "real", kind="stable")
    rows, epochs = rows[real_first], epochs[real_first]
    real = int((index["kind"][rows] == "real").sum())
    identity = [*index["key"][rows[:real]], *(_identity(release, row) for row in rows[real:])]
    names = [(seed, int(epoch), name) for name, epoch in zip(identity, epochs, strict=True)]
    velocity = np.array([2 * uniforms(2, "velocity", *name) - 1 for name in names[real:]]).reshape(-1, 2)
    rv_kms, berv_kms = velocity[:, 0] * augment.rv_kms, velocity[:, 1] * augment.berv_kms
    labels = labels[rows]
    labels[real:, RV] = rv_kms
    labels[real:, BERV] = berv_kms if augment.berv_kms else np.nan
    missed = [(k, part) for k, row in enumerate(rows[real:]) if (part := release.residual_of(row)) is not None]
    response = [release.coefficients(row) for row in rows[real:]]
    return RawBatch(
        *codes_of(release, rows),
        response=torch.from_numpy(np.stack(response)) if response else torch.empty(0, 0),
        residual=torch.from_numpy(np.stack([part for _, part in missed])) if missed else torch.empty(0, 3, 0),
        residual_of=torch.tensor([k for k, _ in missed], dtype=torch.int64),
        rv_kms=torch.from_numpy(rv_kms),
        berv_kms=torch.from_numpy(berv_kms),
        key=torch.tensor([key_of("device", *name) >> 1 for name in names], dtype=torch.int64),
        labels=torch.from_numpy(labels),
        rows=torch.from_numpy(rows),
        epochs=torch.from_numpy(epochs),
    )


def _identity(release: Release, row: int) -> str:
    """What the draws of a simulated sample are keyed by."""
    return release.index["star" if release.index["kind"][row] == "generative" else "key"][row]


class Observer:
    """Turns raw batches into standardised spectra on the device they lie on.

    compile: fuse the arithmetic with torch.compile, which wants a compiler (on a GPU Triton) and a minute at first.
    """

    def __init__(self, instrument: Instrument, augment: Augment, device: torch.device, compile: bool = False):
        self.grid, self.source_grid, self.augment = instrument.grid, instrument.source_grid, augment
        self._window = self.grid.within(self.source_grid)
        self._runs = _runs(self.grid.valid)
        self._pixels = int(self.grid.valid.sum())
        left, right, weight = fill_plan(self.grid)
        invalid = np.flatnonzero(~self.grid.valid)
        self._fill = (
            torch.from_numpy(invalid).to(device),
            torch.from_numpy(left[invalid]).to(device),
            torch.from_numpy(right[invalid]).to(device),
            torch.from_numpy(weight[invalid]).float().to(device),
        )
        basis = torch.from_numpy(instrument.basis).to(device)
        self._shifts_response = augment.berv_kms > 0
        if not self._shifts_response:
            basis = basis[:, self._window]
        elif augment.shift == "cubic" and len(basis):
            basis = bspline_coefficients(basis)
        self._basis = basis.contiguous().split(instrument.terms)

        def fused(function: Callable) -> Callable:
            return torch.compile(function) if compile else function

        self._observe_spline, self._observe, self._noise = fused(_observe_spline), fused(_observe), fused(_noise)
        self._spline, self._restore = fused(spline_values), fused(instrument.codec.restore)

    def __call__(self, raw: RawBatch) -> Batch:
        parts = []
        if len(raw.flux):
            valid = self._restore(raw.flux, raw.flux_scale, self._pixels)
            flux, first = valid.new_empty(len(valid), self.grid.length), 0
            for run in self._runs:
                flux[:, run] = valid[:, first : first + run.stop - run.start]
                first += run.stop - run.start
            parts.append(self._filled(flux))
        if len(raw.sed):
            parts.append(self.standardise(self.simulate(raw)))
        flux = torch.cat(parts) if len(parts) > 1 else parts[0]
        simulated = torch.arange(len(flux), device=flux.device) >= len(raw.flux)
        return Batch(flux, raw.labels, simulated, raw.rows, raw.key)

    def simulate(self, raw: RawBatch) -> Tensor:
        """(simulated, pixel) counts of the simulated spectra of a raw batch, in medians of R (Eqs. A.1, A.2)."""
        key = raw.key[len(raw.flux) :]
        terms = self._terms(raw)
        noise = self._noise(key, terms[0].shape[1]) if self.augment.noise else None
        if self.augment.shift == "linear":
            sed = self._disturb(self._samples(raw), key)
            sed = doppler_shift(sed, raw.rv_kms, self.source_grid, self.grid, "linear")
            return self._joined(self._observe(_in_blocks(sed), terms, noise))
        if self.augment.nuisance.any:
            sed = bspline_coefficients(self._disturb(self._samples(raw), key))
            scale = torch.tensor([[1.0, 0.0]], device=sed.device)
        else:
            sed, scale = raw.sed, raw.sed_scale
        windows = spline_windows(sed, raw.rv_kms, self.source_grid, self.grid)
        windows = windows._replace(values=windows.values.float())  # fused code is slow on int16
        dilution = (1 + raw.rv_kms / C_KMS).float()[:, None]
        return self._joined(self._observe_spline(windows, scale / dilution, terms, noise))

    def _joined(self, halves: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(halves, dim=1).flatten(1)[:, : self.grid.length]

    def standardise(self, flux: Tensor) -> Tensor:
        """Divide by the median of the valid pixels (Eq. 2) and fill the others; (batch, pixel), changed in place."""
        valid = torch.cat([flux[:, run] for run in self._runs], dim=1) if self._runs[1:] else flux[:, self._runs[0]]
        if flux.device.type == "cpu":  # ten times as fast there, the same value
            kept = (self._pixels - 1) // 2
            median = torch.from_numpy(np.partition(valid.numpy(), kept, axis=1)[:, kept : kept + 1])
        else:
            median = valid.median(dim=1, keepdim=True).values
        return self._filled(flux.div_(median))

    def _filled(self, flux: Tensor) -> Tensor:
        invalid, left, right, weight = self._fill
        if len(invalid):
            bridged = torch.lerp(flux.index_select(1, left), flux.index_select(1, right), weight)
            flux.index_copy_(1, invalid, bridged)
        return flux

    def _samples(self, raw: RawBatch) -> Tensor:
        return spline_samples(raw.sed.float() * raw.sed_scale[:, :1] + raw.sed_scale[:, 1:])

    def _terms(self, raw: RawBatch) -> tuple[Tensor, Tensor, Tensor]:
        """log R, log R2 / R and log V0, (simulated, block, BLOCK) each, where BERV puts them."""
        coefficients = raw.response.split([len(part) for part in self._basis], dim=1)
        terms = [part @ basis for part, basis in zip(coefficients, self._basis, strict=True)]
        cubic = self.augment.shift == "cubic"
        if len(raw.residual_of):
            missed = raw.residual.float().transpose(0, 1)
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
        nuisance, pixels = self.augment.nuisance, sed.shape[-1]
        if nuisance.line_error:
            knots = 2 + round(pixels * STEP_AA / nuisance.line_scale_aa)
            error = keyed_normals(key, knots, LINES) * nuisance.line_error
            sed = scale_lines(sed, smooth_noise(error, pixels))
        if nuisance.broadening_kms:
            sigma = keyed_uniforms(key, 1, BROADENING)[:, 0]
            sed = broaden(sed, self.source_grid, sigma * nuisance.broadening_kms)
        if nuisance.continuum:
            drawn = keyed_normals(key, nuisance.continuum_knots, CONTINUUM) * nuisance.continuum
            sed = sed * (1 + smooth_noise(drawn, pixels))
        return sed


def _observe_spline(
    sed: Windows, sed_scale: Tensor, terms: tuple[Tensor, Tensor, Tensor], noise: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The same of SEDs given as windows of B-spline codes with scale and zero."""
    return _observe(spline_values(sed) * sed_scale[:, :1, None] + sed_scale[:, 1:, None], terms, noise)


def _observe(
    sed: Tensor, terms: tuple[Tensor, Tensor, Tensor], noise: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Halves of the counts of shifted SEDs seen through log R, log R2 / R and log V0; all (batch, block, BLOCK)."""
    half, mean = -(-sed.shape[1] // 2), torch.exp(terms[0])
    flux, sigma = observe(sed, mean, mean * torch.exp(terms[1]), torch.exp(terms[2]))
    first, second = flux[:, :half], flux[:, half:]
    if noise is None:
        return first, second
    drawn, paired = noise
    return first + sigma[:, :half] * drawn, second + sigma[:, half:] * paired[:, : second.shape[1]]


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


class TrainingData(Protocol):
    """What decides a training sample besides the order."""

    @property
    def augment(self) -> Augment: ...

    @property
    def label_fraction(self) -> float: ...

    @property
    def label_fraction_by(self) -> Literal["per_spectrum", "per_star"]: ...


class TrainingBatches(Dataset):
    """This rank's part of every global batch; item s belongs to step s."""

    def __init__(
        self,
        release: Release,
        order: Order,
        data: TrainingData,
        seed: int,
        size: int,
        rank: int = 0,
        world: int = 1,
        codes_of: Callable[[Release, np.ndarray], Codes] = read_codes,
    ):
        self._codes_of = codes_of
        self._release, self._order, self._augment, self._seed, self._size = release, order, data.augment, seed, size
        self._labels = scarce_labels(release.index, data.label_fraction, data.label_fraction_by, seed)
        self._slice = rank_slice(size, rank, world)

    def __getitem__(self, step: int) -> RawBatch:
        rows, epochs = self._order.batch(step, self._size)
        rows, epochs = rows[self._slice], epochs[self._slice]
        return assemble(self._release, rows, epochs, self._labels, self._augment, self._seed, self._codes_of)


class EvaluationBatches(Dataset):
    """Given batches of rows; what is drawn for simulated ones is the same at every evaluation."""

    EPOCH = -1

    def __init__(self, release: Release, batches: Sequence[np.ndarray], augment: Augment, seed: int):
        self._release, self._batches, self._augment, self._seed = release, batches, augment, seed

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> RawBatch:
        rows = self._batches[number]
        epochs = np.full(len(rows), self.EPOCH)
        return assemble(self._release, rows, epochs, self._release.index.labels, self._augment, self._seed)


def in_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows (n,) in batches of `size`, the last one shorter."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def load(dataset: Dataset, numbers: range, workers: int, device: torch.device) -> Iterator[RawBatch]:
    """Stream the numbered raw batches to the device, read ahead by `workers` processes (0: in this one)."""
    loader = DataLoader(
        dataset,
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )
    return (raw.to(device) for raw in loader)
