"""What a run would take, before it is started: samples, steps, bytes, memory and, from a short probe, time.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from harps_dist.config import Engine, Recipe
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.models.cost import TRAINING, forward_cost
from harps_dist.ranks.world import World
from harps_dist.runs.run import initial_model
from harps_dist.training.automatic import Loading, Settings, settle_here
from harps_dist.training.graph import WARM_STEPS
from harps_dist.training.learner import Learner, check_batch_size
from harps_dist.training.peaks import Peaks, measured_peaks
from harps_dist.training.stream import training_stream

if TYPE_CHECKING:
    from rich.table import Table

_PROBE_STEPS = 3


def plan(recipe: Recipe, name: str, release: Release, world: World, engine: Engine) -> Table:
    """Everything that is known of a run before it is trained, as a table; takes a few steps and forgets them.

    Raises ConfigError for settings that cannot work.
    """
    from rich.table import Table

    training = recipe.training
    check_batch_size(recipe, world.size)
    order = Order(release.index, recipe.data.mix, training.seed, release.digest)
    steps = training.steps or math.ceil(training.epochs * order.epoch_length / training.batch_size)
    settings = settle_here(recipe, engine, release, order, world)
    recipe, engine, training = settings.recipe, settings.engine, settings.recipe.training
    step_s, memory_gb = _probe(settings, release, order, world)
    index, rows = release.index, np.unique(order.rows)
    shards = {index["shard"][row] for row in rows}
    parameters = sum(parameter.numel() for parameter in initial_model(recipe, release.manifest).parameters())
    peaks, cost = measured_peaks(world.device, training.known_precision), forward_cost(recipe.model, release.grid)
    floor_s = _floor(cost.flops, cost.bytes, peaks) * training.batch_size / world.size
    train_s, steps_an_epoch = steps * step_s, order.epoch_length / training.batch_size
    readers = world.size * max(1, settings.loading.workers)
    minutes = engine.max_minutes or _job_minutes(os.environ)
    restarts = math.ceil(train_s / 60 / minutes) - 1 if minutes else None
    facts = {
        "release": f"{release.location} {release.digest[:12]}, grid {release.grid.name}",
        "samples of the training split": f"{len(rows):,}, {order.epoch_length:,} drawn an epoch",
        "steps": f"{steps:,} of {training.batch_size} spectra, {steps_an_epoch:,.1f} an epoch",
        "read an epoch": f"{float(index['bytes'][order.rows].sum()) / 1e9:.3f} GB, from {len(shards)} shards",
        "shards a reader": f"{len(shards) / readers:.1f} ({readers} readers on {world.size} ranks)",
        "parameters": f"{parameters:,}; weights and moments {parameters * 12 / 1e6:.0f} MB",
        "peak memory of a rank": f"{memory_gb:.2f} GiB",
        "settings": settings.line or "as given",
        "step": f"{1e3 * step_s:.1f} ms measured; {1e3 * floor_s:.1f} ms at the device's measured peaks",
        "an epoch": _duration(step_s * steps_an_epoch),
        "the run": f"{_duration(train_s)}, validation and checkpoints besides",
        "restarts": "none: no --max-minutes" if restarts is None else f"{restarts}, after {minutes:g} minutes each",
    }
    table = Table(
        title=f"{name} on {world.size} ranks, {engine.strategy}, {training.known_precision}", show_header=False
    )
    for what, value in facts.items():
        table.add_row(what, value)
    return table


def _job_minutes(environment: Mapping[str, str]) -> float | None:
    """How long a job of SLURM may run, where this is one."""
    try:
        return (int(environment["SLURM_JOB_END_TIME"]) - int(environment["SLURM_JOB_START_TIME"])) / 60
    except KeyError:
        return None


def _floor(flops: float, bytes_: float, peaks: Peaks) -> float:
    """Seconds a spectrum takes in training at best: its arithmetic, or its traffic if no operations were fused."""
    return TRAINING * max(flops / peaks.flops, bytes_ / peaks.bytes)


def _probe(settings: Settings, release: Release, order: Order, world: World) -> tuple[float, float]:
    """Seconds of a step, reading included, and GiB of memory at most, from a few steps."""
    import resource

    steps = range(WARM_STEPS + 1 + _PROBE_STEPS if settings.engine.graph is True else 1 + _PROBE_STEPS)
    stream = training_stream(settings.recipe, release, order, world, steps, Loading(0, "no"))
    learner = Learner(settings.recipe, release, world, settings.engine)
    seconds = []
    for _ in steps:
        started = time.perf_counter()
        learner.learn(next(stream), 0.0)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds.append(time.perf_counter() - started)
    on_gpu = world.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    learner.settle()
    return float(np.median(seconds[-_PROBE_STEPS:])), peak / 2**30


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
