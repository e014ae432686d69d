"""Who exchanges gradients and holds the optimiser: DistributedDataParallel or DeepSpeed, behind one interface.

Weights and moments leave and enter as whole tensors by name, so that a checkpoint knows neither strategy nor ranks.

Tested in tests/unit/test_checkpoint.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from harps_dist.config import Training
from harps_dist.data.observer import Batch
from harps_dist.models.supervised import Output, SpectrumModel
from harps_dist.runs.checkpoint import Moments, Snapshot
from harps_dist.training.precision import LossScale


class Strategy(Protocol):
    """Learns from batches. All ranks call every method together."""

    forward: Callable[[Batch], Output]

    def accumulating(self, last: bool) -> AbstractContextManager:
        """Around forward and backward of a part of a rank's batch; gradients are exchanged with the last."""
        ...

    def backward(self, loss: Tensor, loss_scale: LossScale) -> None:
        """Add the gradient of a loss, whose mean over ranks is the global one, multiplied by the scale."""
        ...

    def update(self, learning_rate: Tensor, loss_scale: LossScale) -> Tensor:
        """Clip and step; () bool, False where a gradient was not finite, and nothing but the gradients is changed.

        learning_rate: () on the device.
        """
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


def adam(model: nn.Module, training: Training) -> torch.optim.Adam:
    """Adam over what is not frozen, of which only the moments are state."""
    return torch.optim.Adam([p for _, p in trained_parameters(model)], lr=training.learning_rate, betas=training.betas)


def fused_adam(model: nn.Module, training: Training, learning_rate: Tensor, captured: bool) -> torch.optim.Adam:
    """`adam` in one pass over all parameters; where its `found_inf` is 1 it changes nothing.

    learning_rate: () tensor on the device, which is read anew in every step. captured: whether steps will be part of a
    CUDA graph, the first few excepted, of which PyTorch would warn.
    """
    warnings.filterwarnings("ignore", message=".*step\\(\\) is running without CUDA graph capture")
    return torch.optim.Adam(
        [p for _, p in trained_parameters(model)],
        lr=learning_rate,
        betas=training.betas,
        fused=True,
        capturable=captured,
    )


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that are not frozen."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory with the originals."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def clip(model: nn.Module, clip_norm: float | None, loss_scale: LossScale) -> Tensor:
    """Take the loss scale out of the gradients and clip them; () bool, False where one is not finite."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) / loss_scale.value
    if clip_norm is not None:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0) / loss_scale.value)
    elif loss_scale.changes:
        torch._foreach_mul_(gradients, 1 / loss_scale.value)
    return torch.isfinite(norm)


def plain_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    """Copies of the moments of an optimiser that holds whole parameters."""
    return {name: copied(optimizer.state[parameter]) for name, parameter in trained_parameters(model)}


def restore_plain(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Put such copies back."""
    fused = optimizer.defaults.get("fused")  # one that is not counts its steps on the host
    for name, parameter in trained_parameters(model):
        if name in moments:
            where = parameter.device if fused else "cpu"
            optimizer.state[parameter] = {
                key: value.to(where, copy=True) if value.ndim == 0 else value.to(parameter, copy=True)
                for key, value in moments[name].items()
            }
