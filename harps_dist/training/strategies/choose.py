"""The strategy that a recipe names.

Tested in tests/distributed/test_strategies.py.
"""

from __future__ import annotations

from collections.abc import Callable

from harps_dist.config import Engine, Training
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.training.clock import StepClock
from harps_dist.training.strategies.base import Strategy
from harps_dist.training.strategies.ddp import DataParallel


def make_strategy(
    model: SpectrumModel,
    training: Training,
    engine: Engine,
    world: World,
    clock: StepClock,
    say: Callable[[str], None] = print,
) -> Strategy:
    """The strategy that the engine names. clock: told of "comm". say: told what a user should know.

    Raises ConfigError for settings that cannot work together.
    """
    if engine.strategy == "deepspeed":
        from harps_dist.training.strategies.deepspeed import DeepSpeed

        return DeepSpeed(model, training, engine, world, say)
    return DataParallel(model, training, engine, world, clock, say)
