"""A release for everyday use from Python: standardised spectra with labels in their units, in batches.

Tested in tests/integration/test_python.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.data.augment import Augment
from harps_dist.data.batches import assemble, in_batches
from harps_dist.data.keyed import permutation
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.spectra.labels import NAMES

Split = Literal["train", "validation", "test"]
Kind = Literal["real", "simulated", "generative"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Spectra(NamedTuple):
    """flux: (n, pixel) float32, standardised. labels: (n,) float64 each, by name, NaN where missing; in the training
    split they may be a fit's. simulated: (n,) bool. keys: what the samples are called."""

    flux: Tensor
    labels: dict[str, Tensor]
    simulated: Tensor
    keys: list[str]


class Samples:
    """The samples of a release: a folder or a URL."""

    def __init__(self, location: str | Path):
        self.release = Release(location)
        self.grid = self.release.grid

    def __len__(self) -> int:
        return sum(len(self._rows(split, kind)) for split in SPLITS for kind in ("real", "simulated"))

    def __repr__(self) -> str:
        index = self.release.index
        counts = ", ".join(f"{len(index.rows(kind)):,} {kind}" for kind in ("real", "simulated", "generative"))
        return f"<release {self.release.location} {self.release.digest[:12]}: grid {self.grid.name}; {counts}>"

    def batches(
        self,
        split: Split = "train",
        size: int = 32,
        device: torch.device | str = "cpu",
        kind: Kind | None = None,
        augment: Augment = Augment(),  # noqa: B008
        epoch: int = 0,
    ) -> Iterator[Spectra]:
        """Every sample of a split once, shuffled; simulated ones with velocities and noise of their own.

        kind: of samples, real and simulated ones if None. epoch: another one has another order and other draws, the
        same one the same. The last batch may be smaller. Raises ConfigError for a split that has none.
        """
        if split not in SPLITS:
            raise ConfigError(f"a release has no split {split!r}. Name one of {', '.join(SPLITS)}.")
        kinds: tuple[Kind, ...] = ("real", "simulated") if kind is None else (kind,)
        rows = np.concatenate([self._rows(split, one) for one in kinds])
        if not len(rows):
            raise ConfigError(f"{self.release.location} has no {' or '.join(kinds)} samples in its split {split}.")
        return self._batches(rows[permutation(len(rows), "batches", epoch)], size, torch.device(device), augment, epoch)

    def _rows(self, split: Split, kind: Kind) -> np.ndarray:
        return self.release.index.rows(kind, split)

    def _batches(
        self, rows: np.ndarray, size: int, device: torch.device, augment: Augment, epoch: int
    ) -> Iterator[Spectra]:
        release = self.release
        observer = Observer(release.decoding, augment, device)
        for part in in_batches(rows, size):
            raw = assemble(release, part, np.full(len(part), epoch), release.index.labels, augment, seed=0)
            found = observer(raw.to(device))
            labels = dict(zip(NAMES, found.labels.double().unbind(1), strict=True))
            keys = release.index["key"][raw.rows.numpy()]
            yield Spectra(found.flux, labels, found.simulated, list(keys))


def open_release(location: str | Path) -> Samples:
    """The samples of a release, which lies in a folder or behind a URL."""
    return Samples(location)
