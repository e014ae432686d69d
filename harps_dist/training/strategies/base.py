"""Who exchanges gradients and holds the optimiser: DistributedDataParallel or DeepSpeed, behind one interface.

Weights and moments leave and enter as whole tensors by name, so that a checkpoint knows neither strategy nor ranks.

Tested in tests/unit/test_checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from harps_dist.config import Training
from harps_dist.data.observer import Batch
from harps_dist.models.supervised import Output, SpectrumModel
from harps_dist.runs.checkpoint import Moments, Snapshot


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
