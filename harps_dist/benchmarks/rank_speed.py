"""What more ranks cost: the same step alone, beside others that do not talk to it, and together with them.

Tested in tests/integration/test_benchmark.py.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from harps_dist.config import Engine, Recipe
from harps_dist.data.batches import TrainingBatches
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.ownership import json_file, write_json
from harps_dist.ranks.world import World, cpu_name
from harps_dist.training.automatic import settle_here
from harps_dist.training.learner import Learner

if TYPE_CHECKING:
    from rich.table import Table

ROUNDS = 5
METHOD = (
    "Weak scaling: each rank learns from as many spectra of its own, the same ones over and over, reading left out. In "
    "turns, five times: one rank alone while the others wait; all at once without exchanging anything; all together. "
    "Medians of the turns, of all ranks' times the mean. Contention is what the second costs above the first "
    "(cores share memory and clocks), communication what the third costs above the second, waiting for the slowest "
    "included. Efficiency is the first over the third."
)


@dataclass(frozen=True)
class RankSpeed:
    """Milliseconds of a step. exchanged_mb: gradients of a step."""

    recipe: str
    grid: str
    strategy: str
    ranks: int
    spectra_of_a_rank: int
    one_alone_ms: float
    all_alone_ms: float
    together_ms: float
    exchanged_mb: float

    @property
    def contention(self) -> float:
        return self.all_alone_ms / self.one_alone_ms - 1

    @property
    def communication(self) -> float:
        return self.together_ms / self.all_alone_ms - 1

    @property
    def efficiency(self) -> float:
        return self.one_alone_ms / self.together_ms


def rank_speed(
    recipe: Recipe, name: str, release: Release, world: World, engine: Engine, spectra: int, seconds: float
) -> RankSpeed:
    """Measure a recipe's step on this many ranks, which all call it together.

    spectra: that each rank learns from in a step. seconds: how long each turn takes at least.
    """
    whole = recipe.changed(training={"batch_size": spectra * world.size})
    part = recipe.changed(training={"batch_size": spectra})
    order = Order(release.index, recipe.data.mix, recipe.training.seed, release.digest)
    seed, size = recipe.training.seed, spectra * world.size
    raw = TrainingBatches(release, order, recipe.data, seed, size, world.rank, world.size)[0].to(world.device)
    settings = settle_here(whole, engine.model_copy(update={"graph": False}), release, order, world)
    whole, engine = settings.recipe, settings.engine
    part = part.changed(training={"precision": whole.training.precision}, data={"compile": whole.data.compile})
    alone = Learner(part, release, World(0, 1, world.device), engine.model_copy(update={"strategy": "ddp"}))
    together = Learner(whole, release, world, engine)

    def turn(learner: Learner, steps: int) -> float:
        """Milliseconds of a step."""
        started = time.perf_counter()
        for _ in range(steps):
            learner.learn(raw, 1e-9)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        return 1e3 * (time.perf_counter() - started) / steps

    for learner in (alone, together):
        turn(learner, 2)  # warms up
    steps = max(3, round(1e3 * seconds / world.gather(turn(alone, 2))[0]))
    times = []
    for _ in range(ROUNDS):
        world.barrier()
        one = turn(alone, steps) if world.is_main else 0.0
        world.barrier()
        each = turn(alone, steps)
        world.barrier()
        times.append((world.gather(one)[0], np.mean(world.gather(each)), np.mean(world.gather(turn(together, steps)))))
    one_ms, each_ms, together_ms = np.median(times, axis=0).tolist()
    parameters = sum(parameter.numel() for parameter in together.model.parameters() if parameter.requires_grad)
    strategy = engine.strategy if engine.strategy == "ddp" else f"deepspeed, ZeRO {engine.zero}"
    return RankSpeed(
        name, release.grid.name, strategy, world.size, spectra, one_ms, each_ms, together_ms, 4e-6 * parameters
    )


def rank_table(speed: RankSpeed) -> Table:
    """The measurement as a rich table, the method in its caption."""
    from rich.table import Table

    title = (
        f"{speed.recipe}, grid {speed.grid}, {speed.ranks} ranks of {speed.spectra_of_a_rank} spectra, {speed.strategy}"
    )
    table = Table(title=title, caption=METHOD, show_header=False)
    table.add_row("a step, one rank alone", f"{speed.one_alone_ms:.1f} ms")
    table.add_row("all ranks, without exchange", f"{speed.all_alone_ms:.1f} ms, contention {speed.contention:+.1%}")
    exchanged = f"communication {speed.communication:+.1%} for {speed.exchanged_mb:.1f} MB of gradients"
    table.add_row("all ranks together", f"{speed.together_ms:.1f} ms, {exchanged}")
    table.add_row("weak-scaling efficiency", f"{speed.efficiency:.1%}")
    return table


_BESIDES = {"contention", "communication", "efficiency", "device", "threads_of_a_rank", "torch", "python", "method"}
RANKS = json_file("speeds of ranks", "--json", {*(field.name for field in fields(RankSpeed)), *_BESIDES})


def write_ranks(speed: RankSpeed, device: torch.device, path: Path | None) -> None:
    """Write the figures with the device's name and the method; see `ownership.write_json`."""
    content = asdict(speed) | {
        "contention": speed.contention,
        "communication": speed.communication,
        "efficiency": speed.efficiency,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads_of_a_rank": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "method": METHOD,
    }
    write_json(path, RANKS, content)
