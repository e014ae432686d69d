"""Triton kernels of convolution, bias and LeakyReLU over rows (`taps`), forward and backward. Imports Triton.

x: (batch, n_in) and y: (batch, n_out), channels-last and contiguous, n = pixels · channels. Rows of x have A numbers,
rows of y have B. y[q] = Σ_o x[q + FIRST + o] M[o] is one matrix product: the TAPS rows that y[q] reads lie side by side
in memory, so they are a window of TAPS · A numbers that starts at (q + FIRST) · A. A ragged last row is masked. AP, BP
and JP are A, B and TAPS · A padded to powers of two that a matrix product takes (16 or more).

Tested in tests/unit/test_conv_leaky.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def window(x, q, j, n_in, FIRST: tl.constexpr, A: tl.constexpr, J: tl.constexpr):
    """Numbers `j` of the windows of rows `q`, zero outside the spectrum: (q, j)."""
    at = (q[:, None] + FIRST) * A + j[None, :]
    return tl.load(x + at, mask=(at >= 0) & (at < n_in) & (j < J)[None, :], other=0.0)


@triton.jit
def leaky_gradient(dy, y, q, b, n_out, B: tl.constexpr, SLOPE: tl.constexpr):
    """Gradient before LeakyReLU of rows `q`, zero outside the spectrum: (q, b)."""
    at = q[:, None] * B + b[None, :]
    inside = (at >= 0) & (at < n_out) & (b < B)[None, :]
    g = tl.load(dy + at, mask=inside, other=0.0)
    activated = tl.load(y + at, mask=inside, other=0.0)
    return tl.where(activated > 0, g, g * SLOPE).to(dy.dtype.element_ty)


@triton.jit
def conv_leaky_forward(
    x, m, bias, y, n_in, n_out,
    TAPS: tl.constexpr, FIRST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, BP: tl.constexpr,
    CHANNELS: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One tile of ROWS rows of one spectrum. m: (TAPS · A, B) in the dtype of x. bias: (CHANNELS,) float32."""
    J: tl.constexpr = TAPS * A
    x += tl.program_id(1).to(tl.int64) * n_in
    y += tl.program_id(1).to(tl.int64) * n_out
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = tl.arange(0, BP)
    sums = tl.zeros((ROWS, BP), tl.float32)
    for start in tl.static_range(0, J, CHUNK):
        j = start + tl.arange(0, CHUNK)
        a = window(x, q, j, n_in, FIRST, A, J)
        taps = tl.load(m + j[:, None] * B + b[None, :], mask=(j < J)[:, None] & (b < B)[None, :], other=0.0)
        sums = tl.dot(a, taps, sums, input_precision="ieee")
    sums += tl.load(bias + b % CHANNELS)[None, :]
    sums = tl.where(sums > 0, sums, sums * SLOPE)
    at = q[:, None] * B + b[None, :]
    tl.store(y + at, sums.to(y.dtype.element_ty), mask=(at < n_out) & (b < B)[None, :])


@triton.jit
def conv_leaky_backward(
    x, m, y, dy, dx, dm, dbias, n_in, n_out, tiles,
    TAPS: tl.constexpr, FIRST: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, B: tl.constexpr, BP: tl.constexpr,
    JP: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, ROUNDS: tl.constexpr, NEED_DX: tl.constexpr,
):  # fmt: skip
    """Both gradients from one reading of x, y and dy. Each program takes every num_programs-th of all tiles.

    dm: (program, TAPS · A, B) and dbias: (program, B) float32 partial sums over the program's tiles. dx as x; not
    touched unless NEED_DX. ROUNDS: tiles of a program, the last of which may not exist.
    """
    J: tl.constexpr = TAPS * A
    program = tl.program_id(0)
    per_spectrum = tl.cdiv(n_out, B * ROWS)
    a = tl.arange(0, AP)
    b = tl.arange(0, BP)
    j = tl.arange(0, JP)
    sums_m = tl.zeros((JP, BP), tl.float32)
    sums_b = tl.zeros((BP,), tl.float32)
    for r in range(ROUNDS):
        tile = program + r * tl.num_programs(0)
        spectrum = tl.where(tile < tiles, tile // per_spectrum, 0).to(tl.int64)
        q = tl.where(tile < tiles, tile % per_spectrum, per_spectrum) * ROWS + tl.arange(0, ROWS)
        g = leaky_gradient(dy + spectrum * n_out, y + spectrum * n_out, q, b, n_out, B, SLOPE)
        sums_b += tl.sum(g.to(tl.float32), 0)
        rows = window(x + spectrum * n_in, q, j, n_in, FIRST, A, J)
        sums_m = tl.dot(tl.trans(rows), g, sums_m, input_precision="ieee")
        if NEED_DX:
            sums_x = tl.zeros((ROWS, AP), tl.float32)
            for o in tl.static_range(TAPS):
                g = leaky_gradient(dy + spectrum * n_out, y + spectrum * n_out, q - (FIRST + o), b, n_out, B, SLOPE)
                inside = (a < A)[None, :] & (b < B)[:, None]
                taps = tl.load(m + o * A * B + a[None, :] * B + b[:, None], mask=inside, other=0.0)
                sums_x = tl.dot(g, taps, sums_x, input_precision="ieee")
            at = q[:, None] * A + a[None, :]
            inside = (at < n_in) & (a < A)[None, :]
            tl.store(dx + spectrum * n_in + at, sums_x.to(dx.dtype.element_ty), mask=inside)
    tl.store(dbias + program * B + b, sums_b, mask=b < B)
    inside = (j < J)[:, None] & (b < B)[None, :]
    tl.store(dm + program * J * B + j[:, None] * B + b[None, :], sums_m, mask=inside)
