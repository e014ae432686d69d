"""Codes of all training samples in memory, read from the release once; every rank holds its share of them.

The order stays what it is: for each global batch the ranks hand each other the samples that their slices ask for.

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.data.batches import Codes, RawBatch, empty_like, stacked_codes
from harps_dist.data.order import Order, rank_slice
from harps_dist.data.read_ahead import read_ahead
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError

Exchange = Callable[[Tensor, list[int], list[int]], Tensor]  # rows to send, how many to and from each rank
InStep = Callable[[Iterable[Any], int], Iterator[Any]]  # items, and how many the rank with most has
_READ_TOGETHER = 32
_SHARE_OF_FREE_MEMORY = 0.8


class _Held(NamedTuple):
    """This rank's share of one kind. member: (row of the index,) number of the row's member, -1 for other kinds."""

    member: np.ndarray
    codes: Tensor
    scale: Tensor


class ResidentCodes:
    """This rank's share of the codes, and the exchange of them. Member m lies on rank m modulo `world`.

    memory: where the share lies, the host's or the device's. workers: threads that read it.
    Raises ConfigError where it does not fit.
    """

    def __init__(
        self,
        release: Release,
        order: Order,
        rank: int,
        world: int,
        memory: torch.device,
        workers: int,
        exchange: Exchange,
        in_step: InStep = lambda items, longest: iter(items),
    ):
        self._in_step = in_step
        self._order, self._rank, self._world, self._exchange = order, rank, world, exchange
        parts = _kinds(release, order)
        self._check_memory(release, memory)
        self._flux, self._sed = (self._read(release, part, memory, workers) for part in parts)

    def _check_memory(self, release: Release, memory: torch.device) -> None:
        needed, free = resident_bytes(release, self._order, self._world), free_bytes(memory)
        if needed > _SHARE_OF_FREE_MEMORY * free:
            raise ConfigError(
                f"a rank's share of the release takes {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB of its "
                f"{'GPU' if memory.type == 'cuda' else 'host'} memory are free. Start more ranks, or set "
                f"--data.resident {'host' if memory.type == 'cuda' else 'no'}."
            )

    def _read(self, release: Release, rows: np.ndarray, memory: torch.device, workers: int) -> _Held:
        if not len(rows):
            return _Held(np.full(len(release.index), -1), torch.empty(0, 0), torch.empty(0, 0))
        member, first_rows = _members(release, rows)
        mine = first_rows[self._rank :: self._world]
        example = release.coded(int(rows[0]))
        codes, scale = (empty_like(part, len(mine), memory) for part in example)
        pieces = _Pieces(release, mine)
        stream = read_ahead(pieces.__getitem__, range(len(pieces)), workers)
        longest = -(-len(first_rows[:: self._world]) // _READ_TOGETHER)  # pieces that a rank has to read
        for number, (codes_read, scale_read) in enumerate(self._in_step(stream, longest)):
            part = slice(number * _READ_TOGETHER, number * _READ_TOGETHER + len(codes_read))
            codes[part], scale[part] = codes_read, scale_read
        return _Held(member, codes, scale)

    def complete(self, stream: Iterator[RawBatch], steps: range, size: int) -> Iterator[RawBatch]:
        """Give the raw batches of some steps, which came without codes, theirs. size: of the global batch."""
        for step, raw in zip(steps, stream, strict=True):
            batch = self._order.batch(step, size).rows
            slices = [batch[rank_slice(size, rank, self._world)] for rank in range(self._world)]
            flux, flux_scale = self._gather(self._flux, slices, raw.key.device)
            sed, sed_scale = self._gather(self._sed, slices, raw.key.device)
            yield raw._replace(**Codes(flux, flux_scale, sed, sed_scale)._asdict())

    def _gather(self, held: _Held, slices: list[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
        wanted = [members[members >= 0] for members in (held.member[rows] for rows in slices)]
        if not sum(map(len, wanted)):
            return torch.empty(0, 0, dtype=torch.int16, device=device), torch.empty(0, 0, device=device)
        own = wanted[self._rank]
        if self._world == 1:
            number = torch.from_numpy(own).to(held.codes.device)
            return held.codes.index_select(0, number).to(device), held.scale.index_select(0, number).to(device)
        sent = [members[members % self._world == self._rank] // self._world for members in wanted]
        received = [int((own % self._world == rank).sum()) for rank in range(self._world)]
        number = torch.from_numpy(np.concatenate(sent)).to(held.codes.device)
        counts = list(map(len, sent))
        place = torch.from_numpy(np.argsort(own % self._world, kind="stable")).to(device)
        parts = []
        for part in (held.codes, held.scale):
            arrived = self._exchange(part.index_select(0, number).to(device), counts, received)
            parts.append(torch.empty_like(arrived).index_copy_(0, place, arrived))
        return parts[0], parts[1]


def resident_bytes(release: Release, order: Order, ranks: int) -> float:
    """What a rank's share of the codes of all training samples takes."""
    return sum(
        len(_members(release, rows)[1]) * sum(part.nbytes for part in release.coded(int(rows[0]))) / ranks
        for rows in _kinds(release, order)
        if len(rows)
    )


def _kinds(release: Release, order: Order) -> list[np.ndarray]:
    """The rows of real spectra and those of simulated ones."""
    kind, rows = release.index["kind"], order.rows
    return [rows[kind[rows] == "real"], rows[kind[rows] != "real"]]


def free_bytes(memory: torch.device) -> int:
    """Free memory of a device, or this rank's part of what the host could give without swapping."""
    if memory.type == "cuda":
        return torch.cuda.mem_get_info(memory)[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    raise ConfigError("the free memory of this machine is not known. Set --data.resident no.")


class _Pieces:
    """Codes and scales of some rows, a few at a time."""

    def __init__(self, release: Release, rows: np.ndarray):
        self._release, self._rows = release, rows

    def __len__(self) -> int:
        return -(-len(self._rows) // _READ_TOGETHER)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return stacked_codes(self._release, self._rows[number * _READ_TOGETHER : (number + 1) * _READ_TOGETHER])


def _members(release: Release, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of the index,) member numbers, -1 for rows not asked for, and a row of each member, as shards go.

    Simulated samples of one SED share a member.
    """
    index = release.index
    _, shard = np.unique(index["shard"][rows], return_inverse=True)
    offset = index["offset"][rows]
    _, first, number = np.unique(shard * (offset.max() + 1) + offset, return_index=True, return_inverse=True)
    member = np.full(len(index), -1)
    member[rows] = number
    return member, rows[first]
