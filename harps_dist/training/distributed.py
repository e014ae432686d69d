"""The ranks of a run: one process, or those that torchrun or srun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(minutes=60)  # how long ranks wait for the one that builds the demo release


@dataclass(frozen=True)
class World:
    """This process among all ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; the argument stays as it is."""
        tensor = tensor.clone()
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def stack_rows(self, rows: Tensor) -> Tensor:
        """(batch, ...) rows of all ranks in their order, on every rank, without gradient; batches may differ by one."""
        if self.size == 1:
            return rows.detach()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        longest = int(max(counts))
        padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send the first sent[0] of rows (n, ...) to rank 0, and so on; returns what came, by the rank it came from."""
        flat = rows.flatten(1).contiguous().view(torch.uint8)  # which gloo and NCCL both know
        arrived = flat.new_empty(sum(received), flat.shape[1])
        dist.all_to_all_single(arrived, flat, received, sent)
        return arrived.view(rows.dtype).unflatten(1, rows.shape[1:])

    def gather(self, value: object) -> list:
        """Every rank's picklable value, in the order of ranks, on every rank."""
        values: list = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world() -> Iterator[World]:
    """Join the other ranks (environment of torchrun), on a GPU where there is one.

    On the way out all ranks meet at a barrier before the process group ends: gloo aborts otherwise.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    world = World(rank, size, device)
    try:
        yield world
        world.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
