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
from harps_dist.data.keyed import key_of, uniforms
from harps_dist.data.order import Order, rank_slice
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

    def pinned(self) -> RawBatch:
        """This batch in memory that a GPU reads by itself."""
        return RawBatch(*(tensor.pin_memory() for tensor in self))


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


class TrainingBatches:
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


class EvaluationBatches:
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


def load(batches: Batches, numbers: range, workers: int, device: torch.device) -> Iterator[RawBatch]:
    """Stream the numbered raw batches to the device, read ahead by `workers` threads (0: when they are asked for).

    For a GPU they are put where it fetches them from while it computes.
    """

    def read(number: int) -> RawBatch:
        raw = batches[number]
        return raw.pinned() if device.type == "cuda" else raw

    return (raw.to(device) for raw in read_ahead(read, numbers, workers))
