"""Triton kernels that find medians by counting. Imports Triton.

Floats have an integer image in the same order. Its digits, 8 bits each and the highest first, are counted one after the
other, each among the pixels that share the digits before. Four passes of reading find the very value, whatever order
the counts are added in: they are whole numbers.

histograms: (batch, DIGITS + 1, BINS) int32, zero at first: how often each digit occurs, and the number of NaN.

Tested in tests/unit/test_median.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered(values):
    """uint32 in the order of float32 values, NaN of either sign last."""
    bits = values.to(tl.uint32, bitcast=True)
    image = tl.where((bits >> 31) == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(values != values, tl.full(image.shape, 0xFFFFFFFF, tl.uint32), image)


@triton.jit
def leading(histograms, kept, DIGITS: tl.constexpr, ALL: tl.constexpr, BINS: tl.constexpr):
    """The first DIGITS of ALL digits of the lower median of `kept` pixels of one spectrum; of a NaN where there is one.

    histograms: those of the spectrum.
    """
    nans = tl.load(histograms + ALL * BINS)
    rank = tl.where(nans > 0, kept - 1, (kept - 1) // 2)
    bins = tl.arange(0, BINS)
    image = tl.zeros((), tl.uint32)
    for digit in tl.static_range(DIGITS):
        counts = tl.load(histograms + digit * BINS + bins)
        below = tl.cumsum(counts, 0) <= rank
        image = image * BINS + tl.sum(below.to(tl.uint32), 0)
        rank -= tl.sum(tl.where(below, counts, 0), 0)
    return image


@triton.jit
def count_digit(
    flux, valid, histograms, pixels, kept, DIGIT: tl.constexpr, DIGITS: tl.constexpr, BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add one tile of BLOCK pixels of a spectrum to the counts of a digit. valid: (pixel,) int8, `kept` of them 1."""
    spectrum = tl.program_id(1).to(tl.int64)
    histograms += spectrum * (DIGITS + 1) * BINS
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tl.load(valid + i, mask=i < pixels, other=0) != 0
    values = tl.load(flux + spectrum * pixels + i, mask=inside, other=0.0)
    image = ordered(values)
    WIDTH: tl.constexpr = 32 // DIGITS
    if DIGIT == 0:
        nans = tl.sum((inside & (values != values)).to(tl.int32), 0)
        tl.atomic_add(histograms + DIGITS * BINS, nans, mask=nans > 0, sem="relaxed")
    else:
        inside = inside & ((image >> (32 - DIGIT * WIDTH)) == leading(histograms, kept, DIGIT, DIGITS, BINS))
    digit = (image >> (32 - (DIGIT + 1) * WIDTH)) & (BINS - 1)
    bins = tl.arange(0, BINS)
    counts = tl.histogram(digit.to(tl.int32), BINS, mask=inside)
    tl.atomic_add(histograms + DIGIT * BINS + bins, counts, mask=counts > 0, sem="relaxed")


@triton.jit
def write_medians(histograms, medians, kept, DIGITS: tl.constexpr, BINS: tl.constexpr):
    """The median of one spectrum, from the counts of all digits. medians: (batch,) float32."""
    spectrum = tl.program_id(0).to(tl.int64)
    image = leading(histograms + spectrum * (DIGITS + 1) * BINS, kept, DIGITS, DIGITS, BINS)
    bits = tl.where((image >> 31) == 1, image & 0x7FFFFFFF, image ^ 0xFFFFFFFF)
    tl.store(medians + spectrum, bits.to(tl.float32, bitcast=True))
