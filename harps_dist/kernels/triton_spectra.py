"""Triton kernels that make simulated spectra: shift, response, noise; then median and fill. Imports Triton.

A source spectrum, of `width` pixels, reaches `margin` pixels beyond the target, of `pixels`, at its blue end. Blocks of
BLOCK target pixels share the whole part of their offset (`spectra.doppler`). Draws are those of `spectra.noise`.

Tested in tests/unit/test_observer_by_kernels.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mixed(bits):
    """`noise._mixed` of uint32."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def keyed_bits(key, counter, PURPOSE: tl.constexpr):
    """`noise.keyed_bits` at numbers `counter`: uint32. key: int64."""
    low = key.to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    mixture: tl.constexpr = (PURPOSE * 0x9E3779B1) % 4294967296
    return mixed(mixed(mixed(counter.to(tl.uint32) * 0x9E3779B9 + low) ^ high) + mixture)


@triton.jit
def normal_pair(key, counter, PURPOSE: tl.constexpr):
    """The pairs that `noise.normal_halves` makes at numbers `counter`.

    Its angle, π 2^-31 times an integer, is taken apart into quarter turns and the rest in integers: Cephes' polynomials
    then give cosine and sine to rounding, without the tables that angles of any size would need.
    """
    bits = keyed_bits(key, counter, PURPOSE)
    uniform = ((bits >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08  # 2^-24
    turn = mixed(bits + 0x5851F42D)
    quarters = (turn + 0x20000000) >> 30
    x = (turn - (quarters << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09  # π 2^-31
    z = x * x
    sine = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cosine = 1 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    odd = (quarters & 1) == 1
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    first = tl.where((quarters == 1) | (quarters == 2), -first, first)
    second = tl.where(quarters >= 2, -second, second)
    radius = tl.sqrt(-2 * tl.log(uniform))
    return radius * first, radius * second


@triton.jit
def source_of(velocity, block, within, margin, ORIGIN: tl.constexpr, BLOCK: tl.constexpr, CUBIC: tl.constexpr):
    """Where a velocity [km/s] puts target pixels: the source pixel before, and how far behind it, (block, within).

    CUBIC: the fraction may leave 0..1 a little, as in `doppler.spline_windows`.
    """
    beta = velocity.to(tl.float64) / 299792.458
    slope = -beta / (1 + beta)
    offset = slope * ((block * BLOCK).to(tl.float64) + ORIGIN)
    whole = tl.floor(offset + slope * ((BLOCK - 1) / 2))
    fraction = (offset - whole).to(tl.float32)[:, None] + slope.to(tl.float32) * within.to(tl.float32)[None, :]
    at = (block * BLOCK + margin + whole.to(tl.int32))[:, None] + within[None, :]
    if not CUBIC:
        more = tl.floor(fraction)
        fraction -= more
        at += more.to(tl.int32)
    return at, fraction


@triton.jit
def tap(source, at, inside, width):
    """Source pixels `at`, mirrored beyond the ends, float32."""
    at = tl.abs(at)
    at = tl.where(at >= width, 2 * (width - 1) - at, at)
    at = tl.minimum(tl.maximum(at, 0), width - 1)
    return tl.load(source + at, mask=inside, other=0).to(tl.float32)


@triton.jit
def spline(a, b, c, d, f):
    """The cubic B-spline of four coefficients, at f between the second and the third."""
    return (a + 4 * b + c) / 6 + f * ((c - a) / 2 + f * ((a - 2 * b + c) / 2 + f * (d - a + 3 * (b - c)) / 6))


@triton.jit
def linear(left, right, at, f, width):
    """Between two samples, the first at pixel `at`; NaN outside the source."""
    there = (at >= 0) & ((at < width - 1) | ((at == width - 1) & (f == 0)))
    return tl.where(there, left * (1 - f) + tl.where(f > 0, right * f, 0.0), float("nan"))


@triton.jit
def shifted_sed(sed, at, f, inside, width, CUBIC: tl.constexpr, SAMPLES: tl.constexpr):
    """A spectrum at source pixels `at` and a fraction. sed: coefficients of its spline, or SAMPLES."""
    b = tap(sed, at, inside, width)
    c = tap(sed, at + 1, inside, width)
    if not SAMPLES:
        a = tap(sed, at - 1, inside, width)
        d = tap(sed, at + 2, inside, width)
        if CUBIC:
            return spline(a, b, c, d, f)
        b, c = (a + 4 * b + c) / 6, (b + 4 * c + d) / 6
    return linear(b, c, at, f, width)


@triton.jit
def response_term(
    basis, response, residual, missed, at, f, inside, width,
    FIRST: tl.constexpr, END: tl.constexpr, BERV: tl.constexpr, CUBIC: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Vectors FIRST to END of a basis times coefficients, with what they miss, where BERV puts them.

    missed: whether there is a residual, which must be no more than zero taps otherwise.
    """
    a = tl.zeros(at.shape, tl.float32)
    b = tl.zeros(at.shape, tl.float32)
    c = tl.zeros(at.shape, tl.float32)
    d = tl.zeros(at.shape, tl.float32)
    for k in range(FIRST, END):
        share = tl.load(response + k)
        vector = basis + k * width
        b += share * tap(vector, at, inside, width)
        if BERV:
            c += share * tap(vector, at + 1, inside, width)
            if CUBIC:
                a += share * tap(vector, at - 1, inside, width)
                d += share * tap(vector, at + 2, inside, width)
    if RESIDUAL:
        b += tap(residual, at, inside & missed, width)
        if BERV:
            c += tap(residual, at + 1, inside & missed, width)
            if CUBIC:
                a += tap(residual, at - 1, inside & missed, width)
                d += tap(residual, at + 2, inside & missed, width)
    if BERV:
        if CUBIC:
            return spline(a, b, c, d, f)
        return linear(b, c, at, f, width)
    return b


@triton.jit
def simulate_counts(
    sed, sed_scale, rv_kms, berv_kms, basis, response, residual, residual_row, key, counts, batch, pixels, width,
    margin, half, ORIGIN: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, VECTORS: tl.constexpr,
    CUBIC: tl.constexpr, SAMPLES: tl.constexpr, BERV: tl.constexpr, RESIDUAL: tl.constexpr, NOISE: tl.constexpr,
    PURPOSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, SPECTRA: tl.constexpr,
):  # fmt: skip
    """Counts of BLOCKS blocks of the first half of SPECTRA spectra and of those `half` blocks on: noise comes in pairs.

    sed: (batch, width) int16 or float32 with sed_scale (batch, 2), scale and zero. rv_kms, berv_kms: (batch,) float64.
    basis: (VECTORS, width) float32; those before FIRST are of log R, those before SECOND of log R2 / R, the others of
    log V0. response: (batch, VECTORS). residual: (some, 3, width), whose number residual_row (batch,) int32 tells, -1
    for none. key: (batch,) int64. counts: (batch, pixels) float32.
    """
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    within = tl.arange(0, BLOCK)
    first = (block < half)[:, None]
    for s in range(SPECTRA):
        number = tl.program_id(0) * SPECTRA + s
        spectrum = tl.minimum(number, batch - 1).to(tl.int64)
        rv = tl.load(rv_kms + spectrum)
        berv = tl.load(berv_kms + spectrum)
        dilution = (1 + rv.to(tl.float64) / 299792.458).to(tl.float32)
        scale = tl.load(sed_scale + 2 * spectrum) / dilution
        zero = tl.load(sed_scale + 2 * spectrum + 1) / dilution
        row = tl.load(residual_row + spectrum) if RESIDUAL else 0
        missed = (row >= 0) & RESIDUAL
        of_spectrum = residual + tl.maximum(row, 0).to(tl.int64) * 3 * width if RESIDUAL else residual
        if NOISE:
            counter = block[:, None] * BLOCK + within[None, :]
            even, odd = normal_pair(tl.load(key + spectrum), counter, PURPOSE)
        for part in tl.static_range(2):
            here = block + part * half
            pixel = here[:, None] * BLOCK + within[None, :]
            inside = first & (pixel < pixels) & (number < batch)
            at, f = source_of(rv, here, within, margin, ORIGIN, BLOCK, CUBIC)
            flux = shifted_sed(sed + spectrum * width, at, f, inside, width, CUBIC, SAMPLES) * scale + zero
            at = pixel + margin
            if BERV:
                at, f = source_of(berv, here, within, margin, ORIGIN, BLOCK, CUBIC)
            weights = response + spectrum * VECTORS
            mean = tl.exp(response_term(
                basis, weights, of_spectrum, missed, at, f, inside, width, 0, FIRST, BERV, CUBIC, RESIDUAL
            ))  # fmt: skip
            signal = mean * flux
            if NOISE:
                ratio = tl.exp(response_term(
                    basis, weights, of_spectrum + width, missed, at, f, inside, width, FIRST, SECOND, BERV, CUBIC,
                    RESIDUAL,
                ))  # fmt: skip
                floor = tl.exp(response_term(
                    basis, weights, of_spectrum + 2 * width, missed, at, f, inside, width, SECOND, VECTORS, BERV, CUBIC,
                    RESIDUAL,
                ))  # fmt: skip
                sigma = tl.sqrt(mean * ratio * flux + floor)
                signal += sigma * (even if part == 0 else odd)
            tl.store(counts + spectrum * pixels + pixel, signal, mask=inside)


@triton.jit
def divide_and_fill(counts, medians, valid, left, right, weight, flux, pixels, BLOCK: tl.constexpr):
    """flux = counts / median at valid pixels, and at the others between pixels `left` and `right` (`grid.fill_plan`).

    counts, flux: (batch, pixels) float32, apart from each other. medians: (batch,). valid: (pixels,) int8; left,
    right: (pixels,) int32 and weight: (pixels,) float32, read at invalid pixels alone.
    """
    spectrum = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < pixels
    kept = tl.load(valid + i, mask=inside, other=1) != 0
    unkept = ~kept
    counts += spectrum * pixels
    median = tl.load(medians + spectrum)
    w = tl.load(weight + i, mask=unkept, other=0.0)
    begin = (
        tl.load(counts + tl.where(kept, i, tl.load(left + i, mask=unkept, other=0)), mask=inside, other=0.0) / median
    )
    end = tl.load(counts + tl.load(right + i, mask=unkept, other=0), mask=unkept, other=0.0) / median
    bridged = tl.where(w < 0.5, begin + w * (end - begin), end - (end - begin) * (1 - w))
    tl.store(flux + spectrum * pixels + i, tl.where(kept, begin, bridged), mask=inside)
