"""From rows of a release to raw batches on the device: codes as they are stored, and what is drawn for each sample.

Nothing here depends on ranks, workers or timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from harps_dist.data.augment import Augment
from harps_dist.data.codec import Coded
from harps_dist.data.keyed import keys_of, uniforms_of_keys
from harps_dist.data.order import GlobalBatch, rank_slice
from harps_dist.data.read_ahead import read_ahead
from harps_dist.data.reader import Release
from harps_dist.data.scarcity import scarce_labels
from harps_dist.spectra.labels import NAMES

RV, BERV = NAMES.index("rv"), NAMES.index("berv")


class RawBatch(NamedTuple):
    """What leaves the CPU: codes, and what is drawn for each sample. Real spectra come first.

    flux and flux_scale (real, ...): codes of the release's codec. sed (simulated, source pixel) int16 B-spline
    coefficients, sed_scale (simulated, 2) their scale and zero. response (simulated, vector): coefficients; residual
    (some, 3, source pixel) float16 is added to the terms of the simulated samples residual_of (some,). rv_kms, berv_kms
    (simulated,). key (batch,) of what the device draws; labels (batch, label) with NaN where missing; label_errors
    (batch, label) standard deviations of those that fits gave, 0 for others; rows and epochs (batch,): which row of the
    index, drawn in which epoch.
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
    label_errors: Tensor
    rows: Tensor
    epochs: Tensor

    def to(self, device: torch.device) -> RawBatch:
        return RawBatch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def pinned(self) -> RawBatch:
        """This batch in memory that a GPU reads by itself; what is there already stays."""
        return RawBatch(*(tensor.pin_memory() for tensor in self))


class Codes(NamedTuple):
    """Codes of real spectra and of SEDs with their scales, as in `RawBatch`."""

    flux: Tensor
    flux_scale: Tensor
    sed: Tensor
    sed_scale: Tensor


def read_codes(release: Release, rows: np.ndarray, pinned: bool = False) -> Codes:
    """Read the codes of rows (batch,) of the index, real ones first; pinned: into memory that a GPU reads by itself."""
    real = int((release.index["kind"][rows] == "real").sum())
    return Codes(*stacked_codes(release, rows[:real], pinned), *stacked_codes(release, rows[real:], pinned))


def no_codes(release: Release, rows: np.ndarray) -> Codes:
    """Leave the codes out, for `ResidentCodes` to add them."""
    nothing = torch.empty(0, 0)
    return Codes(nothing, nothing, nothing, nothing)


def stacked_codes(release: Release, rows: np.ndarray, pinned: bool = False) -> tuple[Tensor, Tensor]:
    """Codes (row, ...) and scales (row, ...) of rows of one kind, each read to its place."""
    if not len(rows):
        return torch.empty(0, 0, dtype=torch.int16), torch.empty(0, 0)
    first = release.coded(int(rows[0]))
    codes, scale = (empty_like(part, len(rows), pin_memory=pinned) for part in first)
    places = list(map(Coded, codes.numpy(), scale.numpy()))
    places[0].codes[...], places[0].scale[...] = first
    for row, place in zip(rows[1:].tolist(), places[1:], strict=True):
        release.coded_into(row, place)
    return codes, scale


def empty_like(part: np.ndarray, count: int, device: torch.device | None = None, pin_memory: bool = False) -> Tensor:
    """(count, ...) tensor for so many arrays like this one."""
    dtype = torch.from_numpy(np.empty(0, part.dtype)).dtype
    return torch.empty((count, *part.shape), dtype=dtype, device=device, pin_memory=pin_memory)


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
    simulated = release.index["kind"][rows] != "real"
    real_first = np.argsort(simulated, kind="stable")
    rows, epochs, real = rows[real_first], epochs[real_first], len(rows) - int(simulated.sum())
    names = [f"{seed}\0{epoch}\0{name}" for epoch, name in zip(epochs.tolist(), release.drawn_by[rows], strict=True)]
    velocity = 2 * uniforms_of_keys(2, keys_of("velocity", names[real:])) - 1
    rv_kms, berv_kms = velocity[:, 0] * augment.rv_kms, velocity[:, 1] * augment.berv_kms
    labels = labels[rows]
    labels[real:, RV] = rv_kms
    labels[real:, BERV] = berv_kms if augment.berv_kms else np.nan
    residual_of, residual = release.residuals(rows[real:])
    return RawBatch(
        *codes_of(release, rows),
        response=torch.from_numpy(release.coefficients(rows[real:])),
        residual=torch.from_numpy(residual),
        residual_of=torch.from_numpy(residual_of),
        rv_kms=torch.from_numpy(rv_kms),
        berv_kms=torch.from_numpy(berv_kms),
        key=torch.from_numpy((keys_of("device", names) >> np.uint64(1)).astype(np.int64)),
        labels=torch.from_numpy(labels),
        label_errors=torch.from_numpy(np.nan_to_num(release.index.errors[rows])),
        rows=torch.from_numpy(rows),
        epochs=torch.from_numpy(epochs),
    )


class Batches(Protocol):
    """Raw batches by their numbers; several threads may ask at once."""

    def __getitem__(self, number: int) -> RawBatch: ...


class TrainingData(Protocol):
    """What decides a training sample besides the order."""

    @property
    def augment(self) -> Augment: ...

    @property
    def label_fraction(self) -> float: ...

    @property
    def label_fraction_by(self) -> Literal["per_spectrum", "per_star"]: ...


class Ordered(Protocol):
    """What says which samples a training sees: `Order`, or a shorter sequence where speed is measured."""

    def batch(self, step: int, size: int) -> GlobalBatch: ...


class TrainingBatches:
    """This rank's part of every global batch; item s belongs to step s."""

    def __init__(
        self,
        release: Release,
        order: Ordered,
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


class EvaluationBatches:
    """Given batches of rows; what is drawn for simulated ones is the same at every evaluation. Labels of fits are
    missing: nothing is judged by them."""

    EPOCH = -1

    def __init__(self, release: Release, batches: Sequence[np.ndarray], augment: Augment, seed: int):
        self._release, self._batches, self._augment, self._seed = release, batches, augment, seed
        self._labels = release.index.truths

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> RawBatch:
        rows = self._batches[number]
        epochs = np.full(len(rows), self.EPOCH)
        return assemble(self._release, rows, epochs, self._labels, self._augment, self._seed)


def in_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows (n,) in batches of `size`, the last one shorter."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def load(batches: Batches, numbers: range, workers: int, device: torch.device) -> Iterator[RawBatch]:
    """Stream the numbered raw batches to the device, read ahead by `workers` threads (0: when they are asked for).

    For a GPU they are put where it fetches them from while it computes.
    """

    def read(number: int) -> RawBatch:
        raw = batches[number]
        return raw.pinned() if device.type == "cuda" else raw

    return (raw.to(device) for raw in read_ahead(read, numbers, workers))
