"""Whole models on every rank: gradients averaged by PyTorch's DistributedDataParallel.

Tested in tests/distributed/test_strategies.py.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from harps_dist.config import Engine, Training
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.runs.checkpoint import Moments, Snapshot
from harps_dist.training.clock import StepClock
from harps_dist.training.precision import ForwardPass, LossScale
from harps_dist.training.strategies.base import clip, copied, fused_adam, plain_moments, restore_plain

# Before training begins, and no step changes them. PyTorch 2.13 renames the argument and warns of the former name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
BUFFERS_ARE_SHARED: Any = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class DataParallel:
    """Every rank holds everything; gradients are averaged while they are taken."""

    def __init__(
        self,
        model: SpectrumModel,
        training: Training,
        engine: Engine,
        world: World,
        clock: StepClock,
        say: Callable[[str], None],
    ):
        self._model, self._world, self._clip_norm = model, world, training.clip_norm
        on_cpu = world.device.type == "cpu"
        self._rate = torch.zeros((), dtype=torch.float64 if on_cpu else torch.float32, device=world.device)
        self._optimizer = fused_adam(model, training, self._rate, engine.graph is True)
        self.forward: Any = ForwardPass(model, training.known_precision, world.device, engine.compile is True, say)
        if world.size > 1:
            # Of kernels with one channel: the stride of a dimension of size 1 means nothing, and none can be set.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True, **BUFFERS_ARE_SHARED)
            if on_cpu:  # a GPU's stream is not seen from here
                self.forward.register_comm_hook(clock, _timed_average)

    def accumulating(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last or self._world.size == 1 else self.forward.no_sync()

    def backward(self, loss: Tensor, loss_scale: LossScale) -> None:
        (loss * loss_scale.value if loss_scale.changes else loss).backward()

    def update(self, learning_rate: Tensor, loss_scale: LossScale) -> Tensor:
        self._rate.copy_(learning_rate)
        finite = clip(self._model, self._clip_norm, loss_scale)
        self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch.amp tells it
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return finite

    def snapshot(self) -> Snapshot | None:
        if not self._world.is_main:
            return None
        return Snapshot(copied(self._model.state_dict()), plain_moments(self._model, self._optimizer))

    def restore(self, moments: Moments) -> None:
        restore_plain(self._model, self._optimizer, moments)

    def evaluated(self) -> SpectrumModel:
        return self._model


def _timed_average(clock: StepClock, bucket):  # torch refuses annotations that are text
    """Average a bucket of gradients over the ranks, and tell the clock how long it was on its way."""

    def arrived(average: torch.futures.Future[Tensor]) -> Tensor:
        clock.arrive()
        return average.value()

    clock.depart()
    return default_hooks.allreduce_hook(dist.group.WORLD, bucket).then(arrived)  # type: ignore[arg-type]
