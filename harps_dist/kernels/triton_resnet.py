"""Triton kernels of the pre-activation residual block over rows (`taps`), forward and backward. Imports Triton.

Activations are written as they leave a convolution; InstanceNorm and ReLU happen while they are loaded, from statistics
(batch, 2, channel) float32: the mean, and one over the deviation. Gradients are written before their way through the
norm, as h = dL/dx̂ · [x̂ > 0] of a normalised input x̂; whoever loads h turns it into
g = (h - Σh / N - x̂ Σ(h x̂) / N) / deviation, with the two sums as (batch, 2, channel) float32. So every activation and
every gradient is written once. Rows, padding and masks are those of `triton_convolution`.

Tested in tests/unit/test_resnet_blocks.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normalised(x, statistics, q, j, n, FIRST: tl.constexpr, A: tl.constexpr, J: tl.constexpr, C: tl.constexpr):
    """Numbers `j` of the windows of rows `q`, normalised, zero outside the spectrum: (q, j) float32."""
    at = (q[:, None] + FIRST) * A + j[None, :]
    inside = (at >= 0) & (at < n) & (j < J)[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(statistics + j % C)
    scale = tl.load(statistics + C + j % C)
    return tl.where(inside, (values - mean[None, :]) * scale[None, :], 0.0)


@triton.jit
def gradient(
    h, y, statistics, sums, share, q, b, n, B: tl.constexpr, C: tl.constexpr, NORMED: tl.constexpr
):  # fmt: skip
    """Gradient of rows `q` of y, zero outside the spectrum: (q, b) in the dtype of h.

    NORMED: h still has to pass the norm, share is 1 / N. Otherwise h is the gradient itself.
    """
    at = q[:, None] * B + b[None, :]
    inside = (at >= 0) & (at < n) & (b < B)[None, :]
    g = tl.load(h + at, mask=inside, other=0.0)
    if NORMED:
        along = normalised(y, statistics, q, b, n, 0, B, B, C)
        scale = tl.load(statistics + C + b % C)
        of_h = tl.load(sums + b % C) * share
        of_product = tl.load(sums + C + b % C) * share
        passed = scale[None, :] * (g.to(tl.float32) - of_h[None, :] - along * of_product[None, :])
        g = tl.where(inside, passed, 0.0).to(h.dtype.element_ty)
    return g


@triton.jit
def matrix(m, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(rows, columns) of a row-major matrix, zero outside it."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(m + rows[:, None] * COLUMNS + columns[None, :], mask=inside, other=0.0)


@triton.jit
def transposed_matrix(m, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(columns, rows) of a row-major matrix, zero outside it."""
    inside = (rows < ROWS)[None, :] & (columns < COLUMNS)[:, None]
    return tl.load(m + rows[None, :] * COLUMNS + columns[:, None], mask=inside, other=0.0)


@triton.jit
def norm_conv_forward(
    x, statistics, m, bias, y, moments, skip, skip_statistics, skip_m, n_in, n_out, n_skip,
    TAPS: tl.constexpr, FIRST: tl.constexpr, A: tl.constexpr, C_IN: tl.constexpr, B: tl.constexpr, BP: tl.constexpr,
    C_OUT: tl.constexpr, SKIP: tl.constexpr, SP: tl.constexpr, C_SKIP: tl.constexpr, MOMENTS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One tile: y = convolution(relu(norm(x))) + bias, with SKIP > 0 plus relu(norm(skip)) times a matrix.

    m: (TAPS · A, B), skip_m: (SKIP, B) for rows of SKIP numbers, both in the dtype of x. bias: (C_OUT,) float32.
    moments: (batch, tile, 2, B) float32, mean and sum of squared deviations of each column of what was written; they
    are centred in the tile, so that a mean of many deviations costs no digits. Only where MOMENTS.
    """
    J: tl.constexpr = TAPS * A
    spectrum = tl.program_id(1).to(tl.int64)
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = tl.arange(0, BP)
    total = tl.zeros((ROWS, BP), tl.float32)
    for start in tl.static_range(0, J, CHUNK):
        j = start + tl.arange(0, CHUNK)
        a = normalised(x + spectrum * n_in, statistics + spectrum * 2 * C_IN, q, j, n_in, FIRST, A, J, C_IN)
        a = tl.maximum(a, 0.0).to(x.dtype.element_ty)
        total = tl.dot(a, matrix(m, j, b, J, B), total, input_precision="ieee")
    if SKIP > 0:
        j = tl.arange(0, SP)
        a = normalised(
            skip + spectrum * n_skip, skip_statistics + spectrum * 2 * C_SKIP, q, j, n_skip, 0, SKIP, SKIP, C_SKIP
        )
        a = tl.maximum(a, 0.0).to(x.dtype.element_ty)
        total = tl.dot(a, matrix(skip_m, j, b, SKIP, B), total, input_precision="ieee")
    total += tl.load(bias + b % C_OUT)[None, :]
    at = q[:, None] * B + b[None, :]
    inside = (at < n_out) & (b < B)[None, :]
    written = total.to(y.dtype.element_ty)
    tl.store(y + spectrum * n_out + at, written, mask=inside)
    if MOMENTS:
        values = tl.where(inside, written.to(tl.float32), 0.0)
        count = tl.minimum(ROWS, n_out // B - tl.program_id(0) * ROWS).to(tl.float32)
        mean = tl.sum(values, 0) / count
        off = tl.where(inside, values - mean[None, :], 0.0)
        tile = spectrum * tl.num_programs(0) + tl.program_id(0)
        tl.store(moments + tile * 2 * B + b, mean, mask=b < B)
        tl.store(moments + tile * 2 * B + B + b, tl.sum(off * off, 0), mask=b < B)


@triton.jit
def finish_statistics(
    moments, statistics, tiles, rows, ROWS: tl.constexpr, B: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    BLOCK: tl.constexpr, ROUNDS: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Statistics of one spectrum from the moments of its tiles, each of ROWS rows but the last.

    moments: (batch, tile, 2, B). Columns b and b + C are the same channel. statistics: (batch, 2, C).
    """
    spectrum = tl.program_id(0).to(tl.int64)
    moments += spectrum * tiles * 2 * B
    c = tl.arange(0, CP)
    shift = tl.load(moments + c, mask=c < C, other=0.0)
    total = tl.zeros((CP,), tl.float32)
    for r in range(ROUNDS):
        t = r * BLOCK + tl.arange(0, BLOCK)
        inside = (t < tiles)[:, None] & (c < C)[None, :]
        count = tl.minimum(ROWS, rows - t * ROWS).to(tl.float32)
        for phase in tl.static_range(B // C):
            mean = tl.load(moments + t[:, None] * 2 * B + phase * C + c[None, :], mask=inside, other=0.0)
            total += tl.sum(tl.where(inside, count[:, None] * (mean - shift[None, :]), 0.0), 0)
    number = rows.to(tl.float32) * (B // C)
    centre = shift + total / number
    total = tl.zeros((CP,), tl.float32)
    for r in range(ROUNDS):
        t = r * BLOCK + tl.arange(0, BLOCK)
        inside = (t < tiles)[:, None] & (c < C)[None, :]
        count = tl.minimum(ROWS, rows - t * ROWS).to(tl.float32)
        for phase in tl.static_range(B // C):
            at = t[:, None] * 2 * B + phase * C + c[None, :]
            off = tl.load(moments + at, mask=inside, other=0.0) - centre[None, :]
            squares = tl.load(moments + at + B, mask=inside, other=0.0) + count[:, None] * off * off
            total += tl.sum(tl.where(inside, squares, 0.0), 0)
    tl.store(statistics + spectrum * 2 * C + c, centre, mask=c < C)
    tl.store(statistics + spectrum * 2 * C + C + c, 1 / tl.sqrt(total / number + EPS), mask=c < C)


@triton.jit
def norm_conv_backward(
    x, statistics, m, h, y, y_statistics, y_sums, y_share, dx, sums, dm, dbias,
    skip_m, skip_h, skip_y, skip_statistics, skip_sums, skip_share, dskip_m, n_in, n_out, n_skip, tiles,
    TAPS: tl.constexpr, FIRST: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, C_IN: tl.constexpr,
    B: tl.constexpr, BP: tl.constexpr, C_OUT: tl.constexpr, JP: tl.constexpr, NORMED: tl.constexpr,
    SKIP: tl.constexpr, SP: tl.constexpr, C_SKIP: tl.constexpr, SKIP_NORMED: tl.constexpr,
    ROWS: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Gradients of y = convolution(relu(norm(x))) + bias; each program takes every num_programs-th of all tiles.

    h: the gradient of y, before the norm behind y where NORMED. dx: dL/dx̂ · [x̂ > 0]. sums: (batch, tile, 2, A) float32,
    over the tile's rows, of dx and of dx · x̂. dm: (program, TAPS · A, B), dbias: (program, B), float32 partial sums.
    With SKIP > 0 relu(norm(x)) also went through skip_m (A, SKIP), one row to one, into skip_y of gradient skip_h;
    dskip_m: (program, A, SKIP).
    """
    J: tl.constexpr = TAPS * A
    program = tl.program_id(0)
    per_spectrum = tl.cdiv(n_in, A * ROWS)
    a = tl.arange(0, AP)
    b = tl.arange(0, BP)
    j = tl.arange(0, JP)
    s = tl.arange(0, SP)
    sums_m = tl.zeros((JP, BP), tl.float32)
    sums_b = tl.zeros((BP,), tl.float32)
    sums_s = tl.zeros((AP, SP), tl.float32)
    for r in range(ROUNDS):
        tile = program + r * tl.num_programs(0)
        spectrum = tl.where(tile < tiles, tile // per_spectrum, 0).to(tl.int64)
        q = tl.where(tile < tiles, tile % per_spectrum, per_spectrum) * ROWS + tl.arange(0, ROWS)
        of_x = statistics + spectrum * 2 * C_IN
        h_b, y_b = h + spectrum * n_out, y + spectrum * n_out
        of_y, sums_y = y_statistics + spectrum * 2 * C_OUT, y_sums + spectrum * 2 * C_OUT
        g = gradient(h_b, y_b, of_y, sums_y, y_share, q, b, n_out, B, C_OUT, NORMED)
        sums_b += tl.sum(g.to(tl.float32), 0)
        rows = normalised(x + spectrum * n_in, of_x, q, j, n_in, FIRST, A, J, C_IN)
        rows = tl.maximum(rows, 0.0).to(x.dtype.element_ty)
        sums_m = tl.dot(tl.trans(rows), g, sums_m, input_precision="ieee")
        sums_x = tl.zeros((ROWS, AP), tl.float32)
        for o in tl.static_range(TAPS):
            g = gradient(h_b, y_b, of_y, sums_y, y_share, q - (FIRST + o), b, n_out, B, C_OUT, NORMED)
            sums_x = tl.dot(g, transposed_matrix(m + o * A * B, a, b, A, B), sums_x, input_precision="ieee")
        along = normalised(x + spectrum * n_in, of_x, q, a, n_in, 0, A, A, C_IN)
        if SKIP > 0:
            g = gradient(
                skip_h + spectrum * n_skip, skip_y + spectrum * n_skip, skip_statistics + spectrum * 2 * C_SKIP,
                skip_sums + spectrum * 2 * C_SKIP, skip_share, q, s, n_skip, SKIP, C_SKIP, SKIP_NORMED,
            )  # fmt: skip
            sums_x = tl.dot(g, transposed_matrix(skip_m, a, s, A, SKIP), sums_x, input_precision="ieee")
            active = tl.maximum(along, 0.0).to(x.dtype.element_ty)
            sums_s = tl.dot(tl.trans(active), g, sums_s, input_precision="ieee")
        written = tl.where(along > 0, sums_x, 0.0).to(dx.dtype.element_ty)
        at = q[:, None] * A + a[None, :]
        tl.store(dx + spectrum * n_in + at, written, mask=(at < n_in) & (a < A)[None, :])
        written = written.to(tl.float32)  # rows outside have x̂ = 0 and so none of it
        inside = (a < A) & (tile < tiles)
        tl.store(sums + tile.to(tl.int64) * 2 * A + a, tl.sum(written, 0), mask=inside)
        tl.store(sums + tile.to(tl.int64) * 2 * A + A + a, tl.sum(written * along, 0), mask=inside)
    tl.store(dbias + program * B + b, sums_b, mask=b < B)
    inside = (j < J)[:, None] & (b < B)[None, :]
    tl.store(dm + program * J * B + j[:, None] * B + b[None, :], sums_m, mask=inside)
    if SKIP > 0:
        inside = (a < A)[:, None] & (s < SKIP)[None, :]
        tl.store(dskip_m + program * A * SKIP + a[:, None] * SKIP + s[None, :], sums_s, mask=inside)
