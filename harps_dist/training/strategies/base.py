"""Who exchanges gradients and holds the optimiser: DistributedDataParallel or DeepSpeed, behind one interface.

Weights and moments leave and enter as whole tensors by name, so that a checkpoint knows neither strategy nor ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from harps_dist.config import Engine, Training
from harps_dist.data.observer import Batch
from harps_dist.models.supervised import Output, SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.training.clock import StepClock
from harps_dist.training.precision import ForwardPass

Moments = dict[str, dict[str, Tensor]]  # by parameter: exp_avg, exp_avg_sq and step of Adam


class Snapshot(NamedTuple):
    """Whole weights and moments on the CPU, that nothing changes any more."""

    weights: dict[str, Tensor]
    moments: Moments


class Strategy(Protocol):
    """Learns from batches. All ranks call every method together."""

    forward: Callable[[Batch], Output]

    def accumulating(self, last: bool) -> AbstractContextManager:
        """Around forward and backward of a part of a rank's batch; gradients are exchanged with the last."""
        ...

    def backward(self, loss: Tensor, loss_scale: float) -> None:
        """Add the gradient of a loss, whose mean over ranks is the global one, multiplied by the scale."""
        ...

    def update(self, learning_rate: float, loss_scale: float) -> bool:
        """Clip and step; False where a gradient was not finite, and nothing but the gradients is changed."""
        ...

    def snapshot(self) -> Snapshot | None:
        """Copies, on the main rank."""
        ...

    def restore(self, moments: Moments) -> None:
        """Take over the moments of a checkpoint; the weights are in the model before a strategy is made of it."""
        ...

    def evaluated(self) -> SpectrumModel:
        """The model with its weights as they are now, to be evaluated on this rank alone."""
        ...


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


def adam(model: nn.Module, training: Training) -> torch.optim.Adam:
    """Adam over what is not frozen, of which only the moments are state."""
    return torch.optim.Adam([p for _, p in trained_parameters(model)], lr=training.learning_rate, betas=training.betas)


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that are not frozen."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory with the originals."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def clip_if_finite(model: nn.Module, clip_norm: float | None, loss_scale: float) -> bool:
    """Take the loss scale out of the gradients and clip them; False where one is not finite."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) / loss_scale
    if not torch.isfinite(norm):
        return False
    factor = 1.0 if clip_norm is None else min(1.0, clip_norm / (float(norm) + 1e-6))
    if factor / loss_scale != 1.0:
        torch._foreach_mul_(gradients, factor / loss_scale)
    return True


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
        self._optimizer = adam(model, training)
        self.forward: Any = ForwardPass(model, training.precision, world.device, engine.compile, say)
        if world.size > 1:
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True)
            if world.device.type == "cpu":  # a GPU's stream is not seen from here
                self.forward.register_comm_hook(clock, _timed_average)

    def accumulating(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last or self._world.size == 1 else self.forward.no_sync()

    def backward(self, loss: Tensor, loss_scale: float) -> None:
        (loss * loss_scale).backward()

    def update(self, learning_rate: float, loss_scale: float) -> bool:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        finite = clip_if_finite(self._model, self._clip_norm, loss_scale)
        if finite:
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


def plain_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    """Copies of the moments of an optimiser that holds whole parameters."""
    return {name: copied(optimizer.state[parameter]) for name, parameter in trained_parameters(model)}


def restore_plain(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Put such copies back."""
    for name, parameter in trained_parameters(model):
        if name in moments:
            optimizer.state[parameter] = {
                key: value.clone() if value.ndim == 0 else value.to(parameter, copy=True)
                for key, value in moments[name].items()
            }
