"""How fast samples reach a model: a release against other ways of storing the same samples, in one run."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from harps_dist.benchmarks.nine_arrays import nine_arrays
from harps_dist.benchmarks.other_ways import KINDS, NINE, Stored, StoredKind, Streamed, WebDataset, write_other_ways
from harps_dist.config import Data
from harps_dist.data.augment import Augment
from harps_dist.data.batches import EvaluationBatches, TrainingBatches, in_batches, load, read_codes
from harps_dist.data.manifest import Index
from harps_dist.data.observer import Observer
from harps_dist.data.order import GlobalBatch, Mix, Order
from harps_dist.data.read_ahead import read_ahead
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.ownership import json_file, write_json
from harps_dist.ranks.world import cpu_name

if TYPE_CHECKING:
    from rich.table import Table

BATCH = 8  # spectra made at a time, which a core's cache holds
LOADED = 32  # spectra of a batch that is loaded
BATCHES_A_THREAD = 4  # of a pass, at least
COPIED = 2**26  # bytes a thread, to measure how fast bytes move
OURS = "harps_dist"
What = Literal["load", "whole"]
WHATS: tuple[What, ...] = get_args(What)


@dataclass(frozen=True)
class Loading:
    """One measurement. what: "load", until a sample's arrays are in memory, or "whole", until its spectrum is.

    workers: threads that load, of ours; processes that do the whole, of the others; 0 for this process alone. cold:
    files were dropped from the page cache before. mb: bytes a spectrum takes on disk, 1e6. ratio: spectra per second
    over those of the nine arrays, same what, workers and cold; ours with workers over their whole. floor_per_s: of ours
    in memory, spectra per second if as many threads did nothing but read their bytes and write their codes, as fast as
    they copy.
    """

    way: str
    kind: StoredKind
    what: What
    workers: int
    cold: bool
    spectra_per_s: float
    mb: float
    ratio: float | None = None
    floor_per_s: float | None = None

    @property
    def mb_per_s(self) -> float:
        return self.spectra_per_s * self.mb


def data_speeds(
    release: Release,
    samples: int,
    workers: Iterable[int],
    seconds: float,
    compile: bool,
    scratch: Path | None = None,
    device: str = "cpu",
) -> list[Loading]:
    """Measure all ways that are installed on the same samples. One thread a process; files in a folder of `scratch`.

    device: where ours become spectra; the other ways use the CPU.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loadings: list[Loading] = []
    try:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            for kind in KINDS:
                rows = release.index.rows(kind)[:samples]
                if len(rows):
                    observer = Observer(release.decoding, Augment(), torch.device(device), compile)
                    loadings += _of_kind(release, kind, rows, tuple(workers), seconds, observer, Path(folder) / kind)
    finally:
        torch.set_num_threads(threads)
    if not loadings:
        raise ConfigError(f"{release.location} has neither real nor simulated samples to read.")
    return with_ratios(loadings)


def _of_kind(
    release: Release,
    kind: StoredKind,
    rows: np.ndarray,
    workers: tuple[int, ...],
    seconds: float,
    observer: Observer,
    folder: Path,
) -> list[Loading]:
    folder.mkdir(parents=True)
    ours = EvaluationBatches(release, in_batches(rows, BATCH), Augment(), 0)
    index = release.index
    members = {(index["shard"][row], index["offset"][row]): int(index["bytes"][row]) for row in rows}
    shards = [Path(release.location) / name for name, _ in members]
    found = []

    def measured(
        way: str, what: What, count: int, cold: bool, mb: float, files: list[Path], run: Callable[[], Any]
    ) -> None:
        rate = _rate(run, len(rows), seconds, files if cold else None)
        found.append(Loading(way, kind, what, count, cold, rate, mb))

    def loaded(count: int, cold: bool) -> None:
        run, samples = _load_as_training(release, rows, count, observer.device)
        rate = _rate(run, samples, seconds, shards if cold else None)
        floor = _copied_per_s(count) / (1e6 * mb + moved)
        found.append(Loading(OURS, kind, "load", count, cold, rate, mb, floor_per_s=floor))

    def finished() -> None:
        _consume(observer(ours[n].to(observer.device)) for n in range(len(ours)))
        if observer.device.type == "cuda":
            torch.cuda.synchronize(observer.device)

    finished()  # compile, and fill the page cache
    mb = sum(members.values()) / len(rows) / 1e6
    moved = sum(part.nbytes for part in release.coded(int(rows[0])))
    for cold in (False, True):
        loaded(0, cold)
        measured(OURS, "whole", 0, cold, mb, shards, finished)
    for count in filter(None, workers):
        loaded(count, False)

    arrays = [nine_arrays(release, int(row)) if kind == "simulated" else release.array(int(row)) for row in rows]
    mb = arrays[0].nbytes / 1e6
    for way, (read, files) in write_other_ways(folder, arrays).items():
        for what in WHATS:
            stored = Stored(read, len(rows), release, kind, what == "whole")
            data: Dataset = Streamed(stored, read) if isinstance(read, WebDataset) else stored
            for cold in (False, True):
                measured(way, what, 0, cold, mb, files, partial(_consume, data))
        for count in filter(None, workers):
            measured(way, "whole", count, False, mb, files, _with_workers(data, count))
    return found


class _InTurn:
    """An order that takes the same rows again and again, as the other ways do."""

    def __init__(self, rows: np.ndarray):
        self._rows = rows

    def batch(self, step: int, size: int) -> GlobalBatch:
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), len(self._rows))
        return GlobalBatch(self._rows[places], epochs)


def _load_as_training(
    release: Release, rows: np.ndarray, threads: int, device: torch.device
) -> tuple[Callable[[], None], int]:
    """A pass over the rows, or several, by the code that training loads with; and how many samples it takes."""
    size = min(LOADED, len(rows))
    steps = range(max(len(rows) // size, BATCHES_A_THREAD * threads))
    codes_of = partial(read_codes, pinned=device.type == "cuda")
    batches = TrainingBatches(release, _InTurn(rows), Data(), 0, size, codes_of=codes_of)

    def run() -> None:
        _consume(load(batches, steps, threads, device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run, len(steps) * size


@cache
def _copied_per_s(threads: int) -> float:
    """Bytes that so many threads (0: this one) read and write per second when they copy what no cache holds."""
    sources = [np.ones(COPIED, np.uint8) for _ in range(max(1, threads))]
    targets = [np.zeros_like(source) for source in sources]

    def copy(number: int) -> None:
        np.copyto(targets[number], sources[number])

    seconds = min(_seconds(lambda: _consume(read_ahead(copy, range(len(sources)), threads))) for _ in range(5))
    return 2 * COPIED * len(sources) / seconds


def _with_workers(data: Dataset, count: int) -> Callable[[], Any]:
    """A pass over the data by loader processes that were started before."""
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=count,
        multiprocessing_context="spawn",
        persistent_workers=True,
        prefetch_factor=4,
    )
    _consume(loader)
    return lambda: _consume(loader)


def _consume(samples: Any) -> None:
    """Take samples one by one and keep none, as training does."""
    deque(samples, maxlen=0)


def _rate(run: Callable[[], Any], samples: int, seconds: float, drop: list[Path] | None) -> float:
    """Samples per second of the median of passes, three at least, that fill so many seconds."""
    passes: list[float] = []
    while len(passes) < 3 or sum(passes) < seconds:
        for path in drop or []:
            _drop_from_page_cache(path)
        passes.append(_seconds(run))
    return samples / float(np.median(passes))


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _drop_from_page_cache(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def with_ratios(loadings: list[Loading]) -> list[Loading]:
    """Rates with their ratio to those of the nine arrays."""
    base = {(one.kind, one.what, one.workers, one.cold): one.spectra_per_s for one in loadings if one.way == NINE}

    def ratio(one: Loading) -> float | None:
        what: What = "whole" if one.workers else one.what
        nine = base.get((one.kind, what, one.workers, one.cold))
        return one.spectra_per_s / nine if nine else None

    return [replace(one, ratio=ratio(one)) for one in loadings]


@dataclass(frozen=True)
class Shuffling:
    """How random the order is, and how it reads. pool: samples that are shuffled together.

    meeting_again: how much more often than by chance two samples of a batch share one in the next epoch.
    pools_read_mb: contiguous bytes per request where a pool is read, 1e6; random_read_mb: the same if every sample were
    asked for alone.
    """

    pool: int
    samples: int
    batch: int
    meeting_again: float
    pools_read_mb: float
    random_read_mb: float


def shuffling(index: Index, digest: str, mix: Mix, batch: int = 32, epochs: int = 6) -> Shuffling:
    """Measure the order of a release with this index."""
    order = Order(index, mix, 0, digest)
    size = order.epoch_length // batch * batch
    batch_of = np.empty((epochs, len(index)), np.int64)
    batch_of[:] = -1
    for epoch in range(epochs):
        batch_of[epoch, order.epoch(epoch)[:size]] = np.arange(size) // batch
    again, pairs = 0, 0
    for before, after in pairwise(batch_of):
        for number in range(size // batch):
            rows = np.flatnonzero(before == number)
            later = after[rows][after[rows] >= 0]
            together = np.unique(later, return_counts=True)[1]
            again += (together * (together - 1)).sum()
            pairs += len(later) * (len(later) - 1)
    members = dict(zip(zip(index["block"], index["offset"], strict=True), index["bytes"], strict=True))
    span: dict[int, int] = {}  # of a block; samples that share an SED share its bytes
    for (block, _), bytes_ in members.items():
        span[int(block)] = span.get(int(block), 0) + int(bytes_)
    rows = order.rows
    blocks = {int(block) for block in index["block"][rows]}
    return Shuffling(
        pool=mix.pool,
        samples=order.epoch_length,
        batch=batch,
        meeting_again=float(again / max(pairs, 1) / ((batch - 1) / (size - 1))),
        pools_read_mb=float(np.mean([span[block] for block in blocks]) / 1e6),
        random_read_mb=float(index["bytes"][rows].mean() / 1e6),
    )


def loading_table(loadings: list[Loading]) -> Table:
    """The measurements as a rich table."""
    from rich.table import Table

    table = Table(title=f"Reading samples on {cpu_name()}, one thread a process")
    for header in ("spectra", "way", "until", "workers", "files"):
        table.add_column(header)
    for header in ("spectra/s", "floor/s", "ms", "MB each", "MB/s", "× nine arrays"):
        table.add_column(header, justify="right")
    for one in loadings:
        table.add_row(
            one.kind,
            one.way,
            {"load": "in memory", "whole": "spectrum"}[one.what],
            str(one.workers),
            "cold" if one.cold else "warm",
            f"{one.spectra_per_s:,.0f}",
            f"{one.floor_per_s:,.0f}" if one.floor_per_s else "–",
            f"{1e3 / one.spectra_per_s:.2f}",
            f"{one.mb:.3f}",
            f"{one.mb_per_s:,.0f}",
            f"{one.ratio:.1f}" if one.ratio else "–",
        )
    return table


LOADING = json_file(
    "speeds of loading",
    "--json",
    {"cpu", "device", "torch", "python", "compile", "release", "grid", "order", "loading"},
)


def write_loading(
    loadings: list[Loading], order: Shuffling, release: Release, compile: bool, device: str, path: Path | None
) -> None:
    """Write every figure and ratio; see `ownership.write_json`."""
    content = {
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compile": compile,
        "release": release.digest,
        "grid": release.grid.name,
        "order": asdict(order),
        "loading": [asdict(one) | {"mb_per_s": one.mb_per_s} for one in loadings],
    }
    write_json(path, LOADING, content)
