"""Triton kernels of a convolution to one channel in float32, forward and backward. Imports Triton.

x: (batch, pixel, channel) contiguous, C channels padded to CP. m: (KERNEL, C) float32 taps. Every number of x is
multiplied KERNEL times only, so there is nothing for a tensor core to do.

Tested in tests/unit/test_output_convolution.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def output_forward(
    x, m, bias, y, pixels, KERNEL: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """One tile of ROWS pixels of one spectrum. y: (batch, pixel) float32."""
    spectrum = tl.program_id(1).to(tl.int64)
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CP)
    total = tl.zeros((ROWS,), tl.float32)
    for t in tl.static_range(KERNEL):
        at = q + t - KERNEL // 2
        inside = ((at >= 0) & (at < pixels))[:, None] & (c < C)[None, :]
        values = tl.load(x + spectrum * pixels * C + at[:, None] * C + c[None, :], mask=inside, other=0.0)
        taps = tl.load(m + t * C + c, mask=c < C, other=0.0)
        total += tl.sum(values.to(tl.float32) * taps[None, :], 1)
    tl.store(y + spectrum * pixels + q, total + tl.load(bias), mask=q < pixels)


@triton.jit
def output_backward(
    x, m, dy, dx, dm, dbias, pixels, tiles,
    KERNEL: tl.constexpr, KP: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Both gradients from one reading of x and dy. Each program takes every num_programs-th of all tiles.

    dm: (program, KERNEL, C) and dbias: (program,) float32 partial sums.
    """
    program = tl.program_id(0)
    per_spectrum = tl.cdiv(pixels, ROWS)
    c = tl.arange(0, CP)
    k = tl.arange(0, KP)
    sums_m = tl.zeros((KP, CP), tl.float32)
    sums_b = tl.zeros((ROWS,), tl.float32)
    for r in range(ROUNDS):
        tile = program + r * tl.num_programs(0)
        spectrum = tl.where(tile < tiles, tile // per_spectrum, 0).to(tl.int64)
        q = tl.where(tile < tiles, tile % per_spectrum, per_spectrum) * ROWS + tl.arange(0, ROWS)
        at = q[:, None] * C + c[None, :]
        inside = (q < pixels)[:, None] & (c < C)[None, :]
        values = tl.load(x + spectrum * pixels * C + at, mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros((ROWS, CP), tl.float32)
        for t in tl.static_range(KERNEL):
            source = q - t + KERNEL // 2
            there = (source >= 0) & (source < pixels) & (q < pixels)
            g = tl.load(dy + spectrum * pixels + source, mask=there, other=0.0)
            taps = tl.load(m + t * C + c, mask=c < C, other=0.0)
            total += g[:, None] * taps[None, :]
            sums_m += tl.where(k[:, None] == t, tl.sum(g[:, None] * values, 0)[None, :], 0.0)
            if t == KERNEL // 2:
                sums_b += g
        tl.store(dx + spectrum * pixels * C + at, total.to(dx.dtype.element_ty), mask=inside)
    tl.store(dbias + program, tl.sum(sums_b, 0))
    tl.store(
        dm + program * KERNEL * C + k[:, None] * C + c[None, :], sums_m, mask=(k < KERNEL)[:, None] & (c < C)[None, :]
    )
