"""The arithmetic and the memory traffic of a model, counted on tensors that have shapes but no memory.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from harps_dist.models.config import Model
    from harps_dist.spectra.grid import Grid

TRAINING = 3  # forward passes that a forward and a backward pass cost


class ForwardCost(NamedTuple):
    """What one spectrum's forward pass in float32 costs.

    flops: a multiply-add is two; norms and activations not counted.
    bytes: read and written when no operations are fused; weights count once a batch and are left out.
    outputs: numbers that convolutions write, which is all that must pass through memory when the rest is fused."""

    flops: float
    bytes: float
    outputs: float


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of what operations read and write, and what convolutions write; views cost nothing."""

    def __init__(self, weights: set[int]):
        super().__init__()
        self.bytes, self.outputs, self._weights = 0, 0, weights

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            self.outputs += made.numel()
        if not function.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)]
            self.bytes += sum(leaf.nbytes for leaf in tensors if id(leaf) not in self._weights)
        return made


def forward_cost(config: Model, grid: Grid) -> ForwardCost:
    """Build the model on fake tensors and count; takes a second or two for the full grid."""
    from torch._subclasses import FakeTensorMode

    from harps_dist.models.build import build_model

    with FakeTensorMode(), torch.no_grad():
        model = build_model(config, grid)
        inputs = torch.zeros(1, grid.length if config.reads else len(config.labels))
        flops = forward_flops(model.passed, inputs)
        with _Traffic({id(tensor) for tensor in (*model.parameters(), *model.buffers())}) as traffic:
            model.passed(inputs)
    return ForwardCost(flops, traffic.bytes, traffic.outputs)


def forward_flops(network: Callable[[Tensor], object], inputs: Tensor) -> float:
    """FLOPs of a forward pass; biases, norms, activations and Fourier transforms are not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(inputs)
    return float(counter.get_total_flops())
