"""Other ways of storing the same samples: a memory-mapped file, a tar of .npy, and formats that are installed.

Tested in tests/unit/test_data_speed.py.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from harps_dist.benchmarks.nine_arrays import simulated_spectrum, standardised
from harps_dist.data.reader import Release

StoredKind = Literal["simulated", "real"]
KINDS: tuple[StoredKind, ...] = get_args(StoredKind)
NINE = "nine arrays, memmap"
PEERS = {"webdataset, .npy": "webdataset", "litdata": "litdata", "mosaicml-streaming": "streaming"}


class Stored(Dataset):
    """Arrays of single samples, as another way of storing gives them; `whole` makes them spectra."""

    def __init__(self, read: Callable[[int], np.ndarray], count: int, release: Release, kind: StoredKind, whole: bool):
        self.read, self.count, self.grid, self.kind, self.whole = read, count, release.grid, kind, whole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> np.ndarray:
        if number >= self.count:
            raise IndexError(number)
        return self.finish(self.read(number), number) if self.whole else self.read(number)

    def finish(self, arrays: np.ndarray, number: int) -> np.ndarray:
        if self.kind == "real":
            return standardised(arrays, self.grid)
        noise = np.random.default_rng(number)
        return simulated_spectrum(arrays, noise.uniform(-100, 100), self.grid, noise)


class Streamed(IterableDataset):
    """Samples from a way that has no random access."""

    def __init__(self, stored: Stored, open_: Callable[[], Iterable[np.ndarray]]):
        self.stored, self.open = stored, open_

    def __iter__(self) -> Iterator[np.ndarray]:
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for number, arrays in enumerate(islice(self.open(), first, None, step)):
            yield self.stored.finish(arrays, number) if self.stored.whole else arrays


class Memmap:
    """One .npy of all samples, mapped; read as if for the first time in every process."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, number: int) -> np.ndarray:
        return np.array(np.load(self.path, mmap_mode="r")[number])


class WebDataset:
    """Samples of a tar of .npy, one after the other."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self) -> Iterable[np.ndarray]:
        import webdataset

        for sample in webdataset.WebDataset(str(self.path), shardshuffle=False, workersplitter=None).decode():
            yield sample["arrays.npy"]


class LitData:
    """Samples of litdata's chunks."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._data: Any = None

    def __call__(self, number: int) -> np.ndarray:
        if self._data is None:
            import litdata

            self._data = litdata.StreamingDataset(str(self.folder))
        return self._data[number]["arrays"]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_data": None}


class MosaicStreaming:
    """Samples of mosaicml-streaming's MDS shards; opened here, for its shared memory wants a first process."""

    def __init__(self, folder: Path):
        import streaming

        self._data = streaming.StreamingDataset(local=str(folder), batch_size=1)

    def __call__(self, number: int) -> np.ndarray:
        return self._data[number]["arrays"]


def write_other_ways(folder: Path, arrays: list[np.ndarray]) -> dict[str, tuple[Any, list[Path]]]:
    """Write the samples in every other way; returns how to read each, and its files."""
    np.save(folder / "arrays.npy", np.stack(arrays))
    ways: dict[str, tuple[Any, list[Path]]] = {NINE: (Memmap(folder / "arrays.npy"), [folder / "arrays.npy"])}
    installed = {way for way, package in PEERS.items() if importlib.util.find_spec(package)}
    if "webdataset, .npy" in installed:
        import webdataset

        with webdataset.TarWriter(str(folder / "arrays.tar")) as tar:
            for number, sample in enumerate(arrays):
                tar.write({"__key__": f"{number:06d}", "arrays.npy": sample})
        ways["webdataset, .npy"] = WebDataset(folder / "arrays.tar"), [folder / "arrays.tar"]
    if "litdata" in installed:
        import litdata

        os.environ.setdefault("DATA_OPTIMIZER_CACHE_FOLDER", str(folder / "litdata-cache"))
        litdata.optimize(
            _LitSample(folder / "arrays.npy"),
            list(range(len(arrays))),
            str(folder / "litdata"),
            chunk_bytes="256MB",
            num_workers=1,
        )
        ways["litdata"] = LitData(folder / "litdata"), sorted((folder / "litdata").glob("*.bin"))
    if "mosaicml-streaming" in installed:
        import streaming

        with streaming.MDSWriter(out=str(folder / "mds"), columns={"arrays": "ndarray"}, size_limit=2**28) as writer:
            for sample in arrays:
                writer.write({"arrays": sample})
        ways["mosaicml-streaming"] = MosaicStreaming(folder / "mds"), sorted((folder / "mds").glob("*.mds"))
    return ways


class _LitSample:
    def __init__(self, path: Path):
        self.read = Memmap(path)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        return {"arrays": self.read(number)}
