"""The last convolution of a decoder: many pixels, few channels to one, in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harps_dist.kernels.tiles import OUTPUT


def output_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(batch, pixel, channel) to (batch, pixel) float32: a convolution to one channel that keeps the length.

    x: float32, bfloat16 or float16. weight: (1, channel, odd kernel), bias: (1,), as nn.Conv1d stores them. Gradients
    have the same bits on every run. Needs Triton and CUDA (`availability.available`).
    """
    return _OutputConvolution.apply(x, weight, bias)


class _OutputConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from harps_dist.kernels.triton_output import output_forward

        x = x.contiguous()
        taps = weight.detach()[0].float().t().contiguous()
        (batch, pixels, channels), kernel = x.shape, len(taps)
        y = x.new_empty(batch, pixels, dtype=torch.float32)
        tile = OUTPUT.forward
        with torch.cuda.device_of(x):
            output_forward[(-(-pixels // tile.rows), batch)](
                x, taps, bias.detach().float(), y, pixels, kernel, channels, _power(channels), tile.rows,
                num_warps=tile.warps,
            )  # fmt: skip
        ctx.save_for_backward(x, taps)
        ctx.dtypes = weight.dtype, bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        from harps_dist.kernels.triton_output import output_backward

        x, taps = ctx.saved_tensors
        (batch, pixels, channels), kernel = x.shape, len(taps)
        tile = OUTPUT.backward
        count = batch * -(-pixels // tile.rows)
        programs = min(OUTPUT.programs, count)
        dx = torch.empty_like(x)
        dm, dbias = taps.new_empty(programs, kernel, channels), taps.new_empty(programs)
        with torch.cuda.device_of(x):
            output_backward[(programs,)](
                x, taps, dy.float().contiguous(), dx, dm, dbias, pixels, count, kernel, _power(kernel), channels,
                _power(channels), tile.rows, -(-count // programs), num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        weight_dtype, bias_dtype = ctx.dtypes
        dweight = dm.sum(0).t().unsqueeze(0).contiguous()
        return dx, dweight.to(weight_dtype), dbias.sum(0, keepdim=True).to(bias_dtype)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
