"""Convolution, bias and LeakyReLU in one pass over memory, and their gradients in another, channels-last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import Tiles, padded, tiles_for


def conv_leaky(
    x: Tensor, weight: Tensor, bias: Tensor, convolution: Convolution, slope: float, tiles: Tiles | None = None
) -> Tensor:
    """LeakyReLU(convolution(x) + bias), (batch, pixel, channel) to (batch, pixel, channel) in the dtype of x.

    x: float32, bfloat16 or float16; sums run in float32. weight, bias: as PyTorch stores them, any dtype; their
    gradients come in it. convolution: what nn.Conv1d or nn.ConvTranspose1d would do. slope: of negative values. tiles:
    how the work is cut up; None takes what was measured for this layer.

    Every gradient has the same bits on every run: partial sums are added in a fixed order, without atomics. Without
    Triton or CUDA this raises ImportError or RuntimeError (`availability.available`).
    """
    c_in, c_out = weight.shape[:2] if convolution.transposed else weight.shape[1::-1]
    tiles = tiles or tiles_for(c_in, c_out, convolution, x.dtype)
    convolution = replace(convolution, group=tiles.group)
    return _ConvLeaky.apply(x, weight, bias, convolution, slope, tiles)


class _ConvLeaky(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, convolution: Convolution, slope: float, tiles: Tiles
    ) -> Tensor:
        from harps_dist.kernels.triton_convolution import conv_leaky_forward

        x = x.contiguous()
        batch, pixels, c_in = x.shape
        matrices = convolution.matrices(weight.detach(), x.dtype)
        c_out = bias.numel()
        rows = convolution.rows(c_in, c_out)
        y = x.new_empty(batch, convolution.length(pixels), c_out)
        n_in, n_out = pixels * c_in, y.shape[1] * c_out
        tile = tiles.forward
        with torch.cuda.device_of(x):
            conv_leaky_forward[(-(-n_out // (rows.row_out * tile.rows)), batch)](
                x, matrices, bias.detach().float(), y, n_in, n_out,
                rows.taps, rows.first, rows.row_in, rows.row_out, padded(rows.row_out),
                c_out, slope, tile.rows, min(tiles.chunk, padded(rows.taps * rows.row_in)),
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        ctx.save_for_backward(x, matrices, y)
        ctx.layer = convolution, slope, tiles, weight.dtype, bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from harps_dist.kernels.triton_convolution import conv_leaky_backward

        x, matrices, y = ctx.saved_tensors
        convolution, slope, tiles, weight_dtype, bias_dtype = ctx.layer
        batch, pixels, c_in = x.shape
        c_out = y.shape[2]
        rows, tile = convolution.rows(c_in, c_out), tiles.backward
        n_in, n_out = pixels * c_in, y.shape[1] * c_out
        count = batch * -(-n_out // (rows.row_out * tile.rows))
        programs = min(tiles.programs, count)
        need_dx = ctx.needs_input_grad[0]
        dx = torch.empty_like(x) if need_dx else x
        sums_m = x.new_empty(programs, *matrices.shape, dtype=torch.float32)
        sums_b = x.new_empty(programs, rows.row_out, dtype=torch.float32)
        with torch.cuda.device_of(x):
            conv_leaky_backward[(programs,)](
                x, matrices, y, dy.contiguous(), dx, sums_m, sums_b, n_in, n_out, count,
                rows.taps, rows.first, rows.row_in, padded(rows.row_in), rows.row_out, padded(rows.row_out),
                padded(rows.taps * rows.row_in), slope, tile.rows, -(-count // programs), need_dx,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        dweight = convolution.weight(sums_m.sum(0)).to(weight_dtype)
        dbias = sums_b.sum(0).view(-1, c_out).sum(0).to(bias_dtype)
        return dx if need_dx else None, dweight, dbias, None, None, None
