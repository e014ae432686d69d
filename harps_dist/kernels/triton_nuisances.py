"""Triton kernels of what spectra show that their labels do not tell (`spectra.nuisance`). Imports Triton.

Source spectra, of `width` pixels, come as B-spline coefficients, or as SAMPLES, with sed_scale (batch, 2), scale and
zero. Positions between knots are float64: a fraction of one knot among thousands.

Tested in tests/unit/test_nuisances.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from harps_dist.kernels.triton_spectra import tap


@triton.jit
def sample(sed, sed_scale, at, inside, width, SAMPLES: tl.constexpr):
    """Source pixels `at` of one spectrum, float32."""
    value = tap(sed, at, inside, width)
    if not SAMPLES:
        value = (tap(sed, at - 1, inside, width) + 4 * value + tap(sed, at + 1, inside, width)) / 6
    return value * tl.load(sed_scale) + tl.load(sed_scale + 1)


@triton.jit
def between(knots, position, count, inside):
    """Linear interpolation of `count` knots at positions, float64, from 0 on."""
    whole = tl.floor(position)
    left = tl.minimum(whole.to(tl.int32), count - 1)
    begin = tl.load(knots + left, mask=inside, other=0.0)
    end = tl.load(knots + tl.minimum(left + 1, count - 1), mask=inside, other=0.0)
    return begin + (position - whole).to(tl.float32) * (end - begin)


@triton.jit
def block_maxima(
    sed, sed_scale, maxima, width, blocks, SIZE: tl.constexpr, SIZE_P: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """maxima: (batch, blocks) float32, of each SIZE pixels of coefficients `sed`."""
    spectrum = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, SIZE_P)
    at = row[:, None] * SIZE + lane[None, :]
    inside = (lane < SIZE)[None, :] & (at < width)
    values = sample(sed + spectrum * width, sed_scale + 2 * spectrum, at, inside, width, False)
    values = tl.where(inside, values, float("-inf"))
    tl.store(maxima + spectrum * blocks + row, tl.max(values, 1), mask=row < blocks)


@triton.jit
def disturb_samples(
    sed, sed_scale, upper, error, ripple, flux, width, uppers, errors, ripples, LINES: tl.constexpr,
    RIPPLE: tl.constexpr, SAMPLES: tl.constexpr, UPPER_STEP: tl.constexpr, ERROR_STEP: tl.constexpr,
    RIPPLE_STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """flux: (batch, width) float32 samples with LINES of another depth and a RIPPLE of the continuum.

    upper: (batch, uppers), the continuum of blocks of pixels; error: (batch, errors), ripple: (batch, ripples), knots
    from the first pixel to the last. Steps: knots per pixel.
    """
    spectrum = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    pixel = i.to(tl.float64)
    value = sample(sed + spectrum * width, sed_scale + 2 * spectrum, i, inside, width, SAMPLES)
    if LINES:
        centre = tl.maximum((pixel + 0.5) * UPPER_STEP - 0.5, 0.0)
        continuum = between(upper + spectrum * uppers, centre, uppers, inside)
        share = between(error + spectrum * errors, pixel * ERROR_STEP, errors, inside)
        value *= tl.exp(tl.log(value / tl.where(inside, continuum, 1.0)) * share)
    if RIPPLE:
        value *= 1 + between(ripple + spectrum * ripples, pixel * RIPPLE_STEP, ripples, inside)
    tl.store(flux + spectrum * width + i, value, mask=inside)


@triton.jit
def prefilter(flux, coefficients, width, POLE: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr):
    """`doppler.bspline_coefficients`: the filter's impulse response, POLE to the distance, as far as REACH pixels."""
    spectrum = tl.program_id(1).to(tl.int64)
    flux += spectrum * width
    start = tl.program_id(0) * BLOCK
    i = start + tl.arange(0, BLOCK)
    inside = i < width
    total = tl.load(flux + i, mask=inside, other=0.0)
    if (start >= REACH) & (start + BLOCK + REACH <= width):
        for k in tl.static_range(1, REACH + 1):
            total += (tl.load(flux + i - k) + tl.load(flux + i + k)) * (POLE**k)
    else:
        for k in tl.static_range(1, REACH + 1):
            total += (tap(flux, i - k, inside, width) + tap(flux, i + k, inside, width)) * (POLE**k)
    tl.store(coefficients + spectrum * width + i, total * 1.7320508075688772, mask=inside)
