"""Pre-activation residual blocks in channels-last: every activation and every gradient written to memory once.

A block is y = conv2(relu(norm(z))) + skip(relu(norm(x))) with z = conv1(relu(norm(x))), both norms InstanceNorm without
affine. Forward reads x and writes z, then reads z and x and writes y. Backward reads the gradient of y, y and z and
writes that of z, then reads both gradients, y, z and x and writes that of x. The norms live in loads and stores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import Tiles, padded

EPS = 1e-5  # nn.InstanceNorm1d's
PARAMETERS = 6


class Block(NamedTuple):
    """kernel, stride: of the first transposed convolution; the second has stride 1, the skip kernel 1.

    first, second: how the two convolutions are cut up; both have the group of the first.
    """

    kernel: int
    stride: int
    first: Tiles
    second: Tiles

    def convolutions(self, pixels: int) -> tuple[Convolution, Convolution, Convolution]:
        """First, second and skip, over rows that belong to the same `group` pixels of the block's input."""
        group = self.first.group if pixels % self.first.group == 0 else 1
        return (
            Convolution(self.kernel, self.stride, True, group),
            Convolution(self.kernel, 1, True, group * self.stride),
            Convolution(1, self.stride, True, group),
        )


class _Norm(NamedTuple):
    """An activation, (batch, pixel, channel), with its (batch, 2, channel) mean and reciprocal deviation."""

    values: Tensor
    statistics: Tensor


class _Gradient(NamedTuple):
    """A gradient of `of`; with `sums` (batch, 2, channel) the one behind its norm, else the gradient itself."""

    values: Tensor
    of: _Norm
    sums: Tensor | None

    @property
    def arguments(self) -> tuple[Tensor | float, ...]:
        statistics = self.of.statistics
        return self.values, *self.of, statistics if self.sums is None else self.sums, 1 / self.of.values.shape[1]


def resnet_blocks(x: Tensor, blocks: list[Block], parameters: list[Tensor]) -> Tensor:
    """The blocks one after the other, (batch, pixel, channel) to (batch, pixel, channel) in the dtype of x.

    x: float32, bfloat16 or float16; statistics and sums run in float32. parameters: six of each block, weight and bias
    of its first and second convolution and of its skip, as PyTorch stores them. Gradients come in their dtypes and
    have the same bits on every run. Needs Triton and CUDA (`availability.available`).
    """
    return _ResNetBlocks.apply(x, tuple(blocks), *parameters)


class _ResNetBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: tuple[Block, ...], *parameters: Tensor) -> Tensor:
        inner = _Norm(x.contiguous(), instance_statistics(x))
        saved = [*inner]
        ctx.dtypes = [p.dtype for p in parameters]
        for i, block in enumerate(blocks):
            weights = [p.detach() for p in parameters[PARAMETERS * i : PARAMETERS * (i + 1)]]
            convolutions = block.convolutions(inner.values.shape[1])
            matrices = [c.matrices(w, x.dtype) for c, w in zip(convolutions, weights[::2], strict=True)]
            bias1, bias2, bias_skip = (bias.float() for bias in weights[1::2])
            middle = _convolve(inner, convolutions[0], matrices[0], bias1, block.first, None, True)
            through = inner, convolutions[2], matrices[2]
            last = i == len(blocks) - 1
            inner = _convolve(middle, convolutions[1], matrices[1], bias2 + bias_skip, block.second, through, not last)
            saved += [*matrices, *middle, *inner]
        ctx.save_for_backward(*saved)
        ctx.blocks = blocks
        return inner.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gradients: list[Tensor] = []
        outer = _Gradient(dy.contiguous(), _Norm(*saved[-2:]), None)
        for i in reversed(range(len(ctx.blocks))):
            m1, m2, m_skip, *rest = saved[2 + 7 * i : 9 + 7 * i]
            middle, inner = _Norm(*rest[:2]), _Norm(*saved[7 * i : 7 * i + 2])
            first, second, skip = ctx.blocks[i].convolutions(inner.values.shape[1])
            block = ctx.blocks[i]
            of_middle, dm2, dbias2, _ = _convolve_backward(middle, second, m2, outer, block.second, None)
            through = outer, skip, m_skip
            outer, dm1, dbias1, dm_skip = _convolve_backward(inner, first, m1, of_middle, block.first, through)
            assert dm_skip is not None
            weights = first.weight(dm1), dbias1, second.weight(dm2), dbias2, skip.weight(dm_skip), dbias2
            gradients = [*weights, *gradients]
        gradients = [g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return _through_norm(outer) if ctx.needs_input_grad[0] else None, None, *gradients


def instance_statistics(x: Tensor) -> Tensor:
    """(batch, pixel, channel) to (batch, 2, channel) float32: mean, and one over the deviation, of each channel."""
    variance, mean = torch.var_mean(x.float(), dim=1, correction=0)
    return torch.stack([mean, (variance + EPS).rsqrt()], dim=1)


def _through_norm(gradient: _Gradient) -> Tensor:
    """The gradient of an activation from the one behind its norm."""
    values, (x, statistics), sums = gradient
    assert sums is not None
    (mean, scale), (of_h, of_product) = statistics.unsqueeze(2).unbind(1), (sums.unsqueeze(2) / x.shape[1]).unbind(1)
    along = (x.float() - mean) * scale
    return (scale * (values.float() - of_h - along * of_product)).to(x.dtype)


def _convolve(
    x: _Norm,
    convolution: Convolution,
    matrices: Tensor,
    bias: Tensor,
    tiles: Tiles,
    through: tuple[_Norm, Convolution, Tensor] | None,
    moments: bool,
) -> _Norm:
    """convolution(relu(norm(x))) + bias, with `through` plus its skip; statistics are empty unless `moments`."""
    from harps_dist.kernels.triton_resnet import finish_statistics, norm_conv_forward

    batch, pixels, c_in = x.values.shape
    c_out = bias.numel()
    rows, tile = convolution.rows(c_in, c_out), tiles.forward
    y = x.values.new_empty(batch, convolution.length(pixels), c_out)
    number = pixels // convolution.pixels_in
    cuts = -(-number // tile.rows)
    found = bias.new_empty(batch, cuts, 2, rows.row_out) if moments else bias
    statistics = bias.new_empty(batch, 2, c_out) if moments else bias
    skipped, row_skip = (x, matrices), 0
    if through is not None:
        skipped, row_skip = (through[0], through[2]), through[2].shape[1]
    c_skip = skipped[0].values.shape[2]
    with torch.cuda.device_of(y):
        norm_conv_forward[(cuts, batch)](
            *x, matrices, bias, y, found, *skipped[0], skipped[1],
            pixels * c_in, y[0].numel(), skipped[0].values[0].numel(),
            rows.taps, rows.first, rows.row_in, c_in, rows.row_out, padded(rows.row_out), c_out,
            row_skip, padded(row_skip) if row_skip else 16, c_skip, moments,
            tile.rows, min(tiles.chunk, padded(rows.taps * rows.row_in)), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if moments:
            channels = padded(c_out)
            block = min(4096 // channels, padded(cuts))
            finish_statistics[(batch,)](
                found, statistics, cuts, number, tile.rows, rows.row_out, c_out, channels, block, -(-cuts // block), EPS
            )
    return _Norm(y, statistics)


def _convolve_backward(
    x: _Norm,
    convolution: Convolution,
    matrices: Tensor,
    dy: _Gradient,
    tiles: Tiles,
    through: tuple[_Gradient, Convolution, Tensor] | None,
) -> tuple[_Gradient, Tensor, Tensor, Tensor | None]:
    """The gradient behind the norm of x, and those of matrices, bias and the skip's matrices."""
    from harps_dist.kernels.triton_resnet import norm_conv_backward

    batch, pixels, c_in = x.values.shape
    c_out = dy.values.shape[2]
    rows, tile = convolution.rows(c_in, c_out), tiles.backward
    cuts = -(-pixels // (convolution.pixels_in * tile.rows))
    programs = min(tiles.programs, batch * cuts)
    dx = torch.empty_like(x.values)
    partial = x.statistics.new_empty
    sums, dm, dbias = (
        partial(batch, cuts, 2, rows.row_in),
        partial(programs, *matrices.shape),
        partial(programs, rows.row_out),
    )
    skip, row_skip, c_skip, m_skip, dm_skip = dy, 0, c_out, matrices, dm
    if through is not None:
        skip, _, m_skip = through
        row_skip, c_skip = m_skip.shape[2], skip.values.shape[2]
        dm_skip = partial(programs, *m_skip.shape)
    skip_h, skip_y, *of_skip = skip.arguments
    with torch.cuda.device_of(dx):
        norm_conv_backward[(programs,)](
            *x, matrices, *dy.arguments, dx, sums, dm, dbias, m_skip, skip_h, skip_y, *of_skip, dm_skip,
            pixels * c_in, dy.values[0].numel(), skip.values[0].numel(), batch * cuts,
            rows.taps, rows.first, rows.row_in, padded(rows.row_in), c_in, rows.row_out, padded(rows.row_out), c_out,
            padded(rows.taps * rows.row_in), dy.sums is not None,
            row_skip, padded(row_skip) if row_skip else 16, c_skip, skip.sums is not None,
            tile.rows, -(-batch * cuts // programs), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    sums = sums.unflatten(3, (-1, c_in)).sum((1, 3))
    dbias = dbias.view(-1, c_out).sum(0)
    return _Gradient(dx, x, sums), dm.sum(0), dbias, dm_skip.sum(0) if through is not None else None
