"""InstanceNorm and ReLU in channels-last, each direction in one kernel, for layers between cuDNN's convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-5  # nn.InstanceNorm1d's
CHANNELS = 16  # of a program; 32 bytes of bfloat16, the least that memory hands out


def norm_relu(x: Tensor) -> Tensor:
    """ReLU of InstanceNorm without affine over the pixels, (batch, pixel, channel) to the same in the dtype of x.

    x: float32, bfloat16 or float16; statistics run in float32. Needs Triton and CUDA (`availability.available`).
    """
    return _NormReLU.apply(x)


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from harps_dist.kernels.triton_norm import norm_relu_forward

        x = x.contiguous()
        batch, pixels, channels = x.shape
        y = torch.empty_like(x)
        statistics = x.new_empty(batch, 2, channels, dtype=torch.float32)
        rows, grid = _cut(x)
        with torch.cuda.device_of(x):
            norm_relu_forward[grid](
                x, y, statistics, pixels, 1 / pixels, channels, CHANNELS, rows, -(-pixels // rows), EPS
            )
        ctx.save_for_backward(x, statistics)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        from harps_dist.kernels.triton_norm import norm_relu_backward

        x, statistics = ctx.saved_tensors
        _, pixels, channels = x.shape
        dx = torch.empty_like(x)
        rows, grid = _cut(x)
        with torch.cuda.device_of(x):
            norm_relu_backward[grid](
                x, statistics, dy.contiguous(), dx, pixels, 1 / pixels, channels, CHANNELS, rows, -(-pixels // rows)
            )
        return dx


def _cut(x: Tensor) -> tuple[int, tuple[int, int]]:
    """Pixels that a program takes at a time, and the grid."""
    batch, pixels, channels = x.shape
    return min(256, max(16, 1 << (pixels - 1).bit_length())), (-(-channels // CHANNELS), batch)
