"""From rows of a release to batches of standardised spectra on the device.

The CPU reads bytes and draws what is keyed to the sample; the device shifts, combines orders, adds noise and
standardises. Nothing here depends on ranks, workers or timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harps_dist.data.augment import Augment
from harps_dist.data.keyed import key_of, uniforms
from harps_dist.data.order import Order, rank_slice
from harps_dist.data.reader import Release
from harps_dist.data.scarcity import scarce_labels
from harps_dist.spectra.doppler import Method, bspline_coefficients, doppler_shift, resample_shifted
from harps_dist.spectra.grid import STEP_AA, Grid, fill_plan
from harps_dist.spectra.labels import NAMES
from harps_dist.spectra.nuisance import broaden, scale_lines, smooth_noise
from harps_dist.spectra.observation import observe

RV, BERV = NAMES.index("rv"), NAMES.index("berv")


class RawBatch(NamedTuple):
    """What leaves the CPU: real spectra as they are, simulated ones as SED and response. Real ones come first.

    flux (real, pixel); sed (simulated, source pixel); response (simulated, 3, source pixel); rv_kms and berv_kms
    (simulated,); key (batch,) of what the device draws; labels (batch, label) with NaN where missing; rows (batch,)
    of the index.
    """

    flux: Tensor
    sed: Tensor
    response: Tensor
    rv_kms: Tensor
    berv_kms: Tensor
    key: Tensor
    labels: Tensor
    rows: Tensor

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


def assemble(
    release: Release, rows: np.ndarray, epochs: np.ndarray, labels: np.ndarray, augment: Augment, seed: int
) -> RawBatch:
    """Read rows (batch,) of the index, drawn in epochs (batch,), with their labels (row of the index, label).

    What is drawn for simulated spectra is keyed by their star: its own, but for those of a generative core, which share
    velocities and noise, so that they differ in one label alone.
    """
    index, pixels = release.index, release.source_grid.length
    real_first = np.argsort(index["kind"][rows] != "real", kind="stable")
    rows, epochs = rows[real_first], epochs[real_first]
    real = int((index["kind"][rows] == "real").sum())
    identity = [*index["key"][rows[:real]], *index["star"][rows[real:]]]
    names = [(seed, int(epoch), name) for name, epoch in zip(identity, epochs, strict=True)]
    velocity = np.array([2 * uniforms(2, "velocity", *name) - 1 for name in names[real:]]).reshape(-1, 2)
    rv_kms, berv_kms = velocity[:, 0] * augment.rv_kms, velocity[:, 1] * augment.berv_kms
    labels = labels[rows]
    labels[real:, RV] = rv_kms
    labels[real:, BERV] = berv_kms if augment.berv_kms else np.nan
    return RawBatch(
        flux=_stack([release.array(row) for row in rows[:real]], (release.grid.length,)),
        sed=_stack([release.array(row) for row in rows[real:]], (pixels,)),
        response=_stack([release.response_of(row) for row in rows[real:]], (3, pixels)),
        rv_kms=torch.from_numpy(rv_kms),
        berv_kms=torch.from_numpy(berv_kms),
        key=torch.tensor([key_of("device", *name) >> 1 for name in names], dtype=torch.int64),
        labels=torch.from_numpy(labels),
        rows=torch.from_numpy(rows),
    )


def _stack(arrays: list[np.ndarray], shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.empty((0, *shape))


def generators_of(key: Tensor, purpose: int = 0) -> list[torch.Generator]:
    """One generator per sample on the keys' device; other purposes draw independently of each other."""
    return [torch.Generator(key.device).manual_seed(k ^ purpose) for k in key.tolist()]


class Observer:
    """Turns raw batches into standardised spectra on the device they lie on."""

    def __init__(self, grid: Grid, source_grid: Grid, augment: Augment, device: torch.device):
        self.grid, self.source_grid, self.augment = grid, source_grid, augment
        self._window = grid.within(source_grid)
        self._valid = torch.from_numpy(np.flatnonzero(grid.valid)).to(device)
        left, right, weight = (torch.from_numpy(plan).to(device) for plan in fill_plan(grid))
        self._fill = None if grid.valid.all() else (left, right, weight.float())

    def __call__(self, raw: RawBatch) -> Batch:
        flux = raw.flux
        if len(raw.sed):
            flux = torch.cat([flux, self.standardise(self.simulate(raw))])
        simulated = torch.arange(len(flux), device=flux.device) >= len(raw.flux)
        return Batch(flux, raw.labels, simulated, raw.rows, raw.key)

    def simulate(self, raw: RawBatch) -> Tensor:
        """(simulated, pixel) counts of the simulated spectra of a raw batch (Eqs. A.1, A.2)."""
        generators = generators_of(raw.key[len(raw.flux) :])
        sed = self._disturb(raw.sed, generators)
        if self.augment.shift == "cubic":
            sed = bspline_coefficients(sed)
        sed = doppler_shift(sed, raw.rv_kms, self.source_grid, self.grid, self.augment.shift)
        mean, variance, floor = self._response(raw).unbind(1)
        flux, sigma = observe(sed, mean, variance, floor)
        if self.augment.noise:
            noise = [torch.randn(self.grid.length, generator=g, device=flux.device) for g in generators]
            flux = flux + sigma * torch.stack(noise)
        return flux

    def standardise(self, flux: Tensor) -> Tensor:
        """Fill invalid pixels and divide by the median of the valid ones (Eq. 2); (batch, pixel)."""
        median = flux[:, self._valid].median(dim=1, keepdim=True).values
        if self._fill:
            left, right, weight = self._fill
            flux = flux[:, left] * (1 - weight) + flux[:, right] * weight
        return flux / median

    def _response(self, raw: RawBatch) -> Tensor:
        if not self.augment.berv_kms:
            return raw.response[..., self._window]
        mean, variance, floor = raw.response.unbind(1)
        mean = bspline_coefficients(mean) if self.augment.shift == "cubic" else mean
        methods: tuple[Method, ...] = (
            self.augment.shift,
            "linear",
            "linear",
        )  # a per cent of the noise's level would do
        shifted = [
            resample_shifted(array.contiguous(), raw.berv_kms, self.source_grid, self.grid, method)
            for array, method in zip((mean, variance, floor), methods, strict=True)
        ]
        return torch.stack(shifted, dim=1)

    def _disturb(self, sed: Tensor, generators: list[torch.Generator]) -> Tensor:
        nuisance, pixels, device = self.augment.nuisance, sed.shape[-1], sed.device
        if nuisance.line_error:
            knots = 2 + round(pixels * STEP_AA / nuisance.line_scale_aa)
            error = torch.stack([torch.randn(knots, generator=g, device=device) for g in generators])
            sed = scale_lines(sed, smooth_noise(error * nuisance.line_error, pixels))
        if nuisance.broadening_kms:
            sigma = torch.cat([torch.rand(1, generator=g, device=device) for g in generators])
            sed = broaden(sed, self.source_grid, sigma * nuisance.broadening_kms)
        if nuisance.continuum:
            drawn = [torch.randn(nuisance.continuum_knots, generator=g, device=device) for g in generators]
            sed = sed * (1 + smooth_noise(torch.stack(drawn) * nuisance.continuum, pixels))
        return sed


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
        self, release: Release, order: Order, data: TrainingData, seed: int, size: int, rank: int = 0, world: int = 1
    ):
        self._release, self._order, self._augment, self._seed, self._size = release, order, data.augment, seed, size
        self._labels = scarce_labels(release.index, data.label_fraction, data.label_fraction_by, seed)
        self._slice = rank_slice(size, rank, world)

    def __getitem__(self, step: int) -> RawBatch:
        rows, epochs = self._order.batch(step, self._size)
        return assemble(self._release, rows[self._slice], epochs[self._slice], self._labels, self._augment, self._seed)


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
