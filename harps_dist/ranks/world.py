"""The ranks of a run: one process, or those that torchrun, srun or the deepspeed launcher started.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from harps_dist.errors import ConfigError, HarpsDistError, Interrupted
from harps_dist.ranks.memory import keep_freed_memory
from harps_dist.ranks.preemption import StopRequest

T = TypeVar("T")
_PATIENCE = timedelta(minutes=60)  # how long ranks wait for the one that builds the demo release


@dataclass(frozen=True)
class World:
    """This process among all ranks. stop: whether it is asked to end."""

    rank: int
    size: int
    device: torch.device
    stop: StopRequest = field(default_factory=StopRequest)

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> World:
        """A process that is all there is."""
        return cls(0, 1, torch.device(device))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """What the maker calls the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; the argument stays as it is."""
        tensor = tensor.clone()
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def stack_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """(batch, ...) rows of all ranks in their order, on every rank, without gradient. counts: rows of each rank."""
        if self.size == 1:
            return rows.detach()
        padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send the first sent[0] of rows (n, ...) to rank 0, and so on; returns what came, by the rank it came from."""
        flat = rows.flatten(1).contiguous().view(torch.uint8)  # which gloo and NCCL both know
        arrived = flat.new_empty(sum(received), flat.shape[1])
        dist.all_to_all_single(arrived, flat, received, sent)
        return arrived.view(rows.dtype).unflatten(1, rows.shape[1:])

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the main rank's values of tensors on their devices, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, value: object) -> list:
        """Every rank's picklable value, in the order of ranks, on every rank."""
        values: list = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def of_main(self, make: Callable[[], T]) -> T:
        """What the main rank makes, picklable, on every rank; all raise a HarpsDistError that it raised."""
        made: T | HarpsDistError | None = None
        if self.is_main:
            try:
                made = make()
            except HarpsDistError as error:
                made = error
        made = self.gather(made)[0]
        if isinstance(made, HarpsDistError):
            raise made
        return cast(T, made)

    @contextmanager
    def claiming(self, claim: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Around what all ranks write: the main rank holds the claim; all raise a HarpsDistError that it raised."""
        with ExitStack() as stack:
            self.of_main(lambda: stack.enter_context(claim()))
            yield

    def check(self) -> None:
        """Raises Interrupted on all ranks where one was asked to stop. All call it together, between steps."""
        asked = torch.tensor([self.stop.reason is not None], dtype=torch.float32, device=self.device)
        if self.sum(asked):
            self.interrupt()

    def interrupt(self) -> None:
        """Raise Interrupted on all ranks, which have agreed to do so, with the reason of the first that has one."""
        reason = next(filter(None, self.gather(self.stop.reason)))
        raise Interrupted(f"stopped by {reason}. Give the same command again to go on.")

    def in_step(self, items: Iterable[T], longest: int) -> Iterator[T]:
        """Yield this rank's items, with a `check` before each. longest: the largest number of items that a rank has."""
        iterator = iter(items)
        for _ in range(longest):
            self.check()
            yield from islice(iterator, 1)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, from a launcher or from the step that srun started.

    The port follows from the job's number, so that jobs that share a node do not meet. Raises ConfigError where srun
    started several tasks, but `scontrol` cannot tell on which nodes.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or tasks == "1":
        return {name: environment[name] for name in names if name in environment}
    nodes = environment["SLURM_STEP_NODELIST"]
    try:
        first = _scontrol("hostnames", nodes).split()[0]
        address = next(word for word in _scontrol("node", first).split() if word.startswith("NodeAddr="))
    except (OSError, subprocess.CalledProcessError, LookupError, StopIteration) as error:
        raise ConfigError(
            f"scontrol cannot tell where the nodes {nodes} are: {error!r}. Start the ranks with torchrun on each node."
        ) from None
    found = {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": address.partition("=")[2],
        "MASTER_PORT": str(20_000 + int(environment["SLURM_JOB_ID"]) % 20_000),
    }
    return found | {name: environment[name] for name in names[3:] if name in environment}


def _scontrol(*what: str) -> str:
    return subprocess.run(["scontrol", "show", *what], capture_output=True, text=True, check=True).stdout


@contextmanager
def join_world(max_minutes: float | None = None) -> Iterator[World]:
    """Join the other ranks (environment of torchrun, deepspeed or srun), on a GPU where there is one.

    While the block runs, SIGTERM and SIGUSR1 ask it to stop, as does the time limit; see `World.check`. On the way out
    all ranks meet at a barrier before the process group ends: gloo aborts otherwise.
    """
    os.environ.update(rank_environment(os.environ))
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    with StopRequest(max_minutes).listening() as stop:
        if size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        world = World(rank, size, device, stop)
        try:
            try:
                yield world
            except Interrupted:  # of all ranks together
                world.barrier()
                raise
            world.barrier()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
