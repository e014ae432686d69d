"""The raw batches of a training, as they are read for it.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from harps_dist.config import Recipe
from harps_dist.data.batches import RawBatch, TrainingBatches, load, no_codes, read_codes
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.data.resident import ResidentCodes
from harps_dist.ranks.world import World
from harps_dist.training.automatic import Loading


def training_stream(
    recipe: Recipe, release: Release, order: Order, world: World, steps: range, loading: Loading
) -> Iterator[RawBatch]:
    """This rank's raw batches of some steps, on the device. Raises ConfigError where resident codes do not fit."""
    training, held = recipe.training, loading.resident != "no"
    batches = TrainingBatches(
        release,
        order,
        recipe.data,
        training.seed,
        training.batch_size,
        world.rank,
        world.size,
        no_codes if held else partial(read_codes, pinned=world.device.type == "cuda"),
    )
    stream = load(batches, steps, loading.workers, world.device)
    if not held:
        return stream
    memory = world.device if loading.resident == "device" else torch.device("cpu")
    codes = ResidentCodes(
        release, order, world.rank, world.size, memory, loading.workers, world.exchange, world.in_step
    )
    return codes.complete(stream, steps, training.batch_size)
