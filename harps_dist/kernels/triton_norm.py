"""Triton kernels of InstanceNorm and ReLU in channels-last, forward and backward. Imports Triton.

x: (batch, pixel, channel) contiguous. One program takes CP channels of one spectrum and goes over its pixels more
than once, from cache after the first time. The deviation is taken about the mean, so that a large mean costs no
digits.

Tested in tests/unit/test_norm_relu.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_relu_forward(
    x, y, statistics, pixels, share, C: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr, ROUNDS: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """y = relu(norm(x)). statistics: (batch, 2, C) float32, mean and reciprocal deviation. share: 1 / pixels."""
    spectrum = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * CP + tl.arange(0, CP)
    x += spectrum * pixels * C
    first = tl.load(x + c, mask=c < C, other=0.0).to(tl.float32)
    total = tl.zeros((CP,), tl.float32)
    for r in range(ROUNDS):
        q = r * ROWS + tl.arange(0, ROWS)
        inside = (q < pixels)[:, None] & (c < C)[None, :]
        values = tl.load(x + q[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(inside, values - first[None, :], 0.0), 0)
    mean = first + total * share
    squares = tl.zeros((CP,), tl.float32)
    for r in range(ROUNDS):
        q = r * ROWS + tl.arange(0, ROWS)
        inside = (q < pixels)[:, None] & (c < C)[None, :]
        values = tl.load(x + q[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, values - mean[None, :], 0.0)
        squares += tl.sum(off * off, 0)
    scale = 1 / tl.sqrt(squares * share + EPS)
    tl.store(statistics + spectrum * 2 * C + c, mean, mask=c < C)
    tl.store(statistics + spectrum * 2 * C + C + c, scale, mask=c < C)
    for r in range(ROUNDS):
        q = r * ROWS + tl.arange(0, ROWS)
        inside = (q < pixels)[:, None] & (c < C)[None, :]
        at = q[:, None] * C + c[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        active = tl.maximum((values - mean[None, :]) * scale[None, :], 0.0)
        tl.store(y + spectrum * pixels * C + at, active.to(y.dtype.element_ty), mask=inside)


@triton.jit
def norm_relu_backward(
    x, statistics, dy, dx, pixels, share, C: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr, ROUNDS: tl.constexpr
):  # fmt: skip
    """dx = (h - Σh / N - x̂ Σ(h x̂) / N) / deviation with h = dy · [x̂ > 0]. share: 1 / N, N pixels."""
    spectrum = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * CP + tl.arange(0, CP)
    x += spectrum * pixels * C
    dy += spectrum * pixels * C
    mean = tl.load(statistics + spectrum * 2 * C + c, mask=c < C, other=0.0)
    scale = tl.load(statistics + spectrum * 2 * C + C + c, mask=c < C, other=0.0)
    of_h = tl.zeros((CP,), tl.float32)
    of_product = tl.zeros((CP,), tl.float32)
    for r in range(ROUNDS):
        q = r * ROWS + tl.arange(0, ROWS)
        inside = (q < pixels)[:, None] & (c < C)[None, :]
        at = q[:, None] * C + c[None, :]
        along = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
        h = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        h = tl.where(along > 0, h, 0.0)
        of_h += tl.sum(h, 0)
        of_product += tl.sum(h * along, 0)
    for r in range(ROUNDS):
        q = r * ROWS + tl.arange(0, ROWS)
        inside = (q < pixels)[:, None] & (c < C)[None, :]
        at = q[:, None] * C + c[None, :]
        along = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
        h = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        h = tl.where(along > 0, h, 0.0)
        g = scale[None, :] * (h - (of_h * share)[None, :] - along * (of_product * share)[None, :])
        tl.store(dx + spectrum * pixels * C + at, g.to(dx.dtype.element_ty), mask=inside)
