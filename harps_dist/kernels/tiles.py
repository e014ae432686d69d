"""Tile sizes of the kernels, and which layers they take, in one place.

`MEASURED` was timed on an H100 at 32 spectra of 327,680 pixels in bfloat16; the rest follows from what the compiler
says of registers and shared memory.

Tested in tests/unit/test_conv_leaky.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harps_dist.kernels.taps import Convolution

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_PIXELS = 5120  # of the longer side; below, cuDNN in channels-last is as fast
MOST_SUMS = 8192  # of the gradient of a layer's taps: a program keeps them in registers
MOST_BLOCK_CHANNELS = 32


@dataclass(frozen=True)
class Tile:
    """rows: rows of pixels in a tile. warps, stages: Triton's num_warps and num_stages."""

    rows: int
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Tiles:
    """How one layer is cut up.

    group: pixels in a row (`Convolution.group`). chunk: numbers of a window that one matrix product takes.
    programs: how many partial sums the gradients of the weights have. It is a constant, not the number of processors
    of the card, so that a sum has the same bits on every card.
    """

    group: int = 1
    forward: Tile = Tile(128)
    chunk: int = 64
    backward: Tile = Tile(128)
    programs: int = 528


FLOAT32 = Tiles(forward=Tile(32, stages=1), chunk=32, backward=Tile(32, stages=1))  # no tensor cores, unrolled
MEASURED: dict[tuple[int, int, int, int, bool], Tiles] = {  # c_in, c_out, kernel, stride, transposed
    (1, 16, 7, 2, False): Tiles(group=4, forward=Tile(64), chunk=32, backward=Tile(64, stages=1)),
    (16, 16, 5, 2, False): Tiles(forward=Tile(128), chunk=32, backward=Tile(64)),
    (16, 32, 3, 2, False): Tiles(forward=Tile(64), backward=Tile(64)),
}
OUTPUT = Tiles(forward=Tile(256), backward=Tile(256, stages=1), programs=1056)
MEASURED_BLOCKS: dict[tuple[tuple[int, ...], int, int], tuple[Tiles, Tiles]] = {}  # channels, kernel, stride


def tiles_for(c_in: int, c_out: int, convolution: Convolution, dtype: torch.dtype) -> Tiles:
    """The tiles of a layer: what was measured for it in 16 bits, else a default."""
    if dtype == torch.float32:
        return FLOAT32
    key = c_in, c_out, convolution.kernel, convolution.stride, convolution.transposed
    rows = 128 if max(convolution.pixels_in * c_in, convolution.pixels_out * c_out) <= 32 else 64
    return MEASURED.get(key, Tiles(forward=Tile(rows), backward=Tile(rows, stages=1)))


def fused(pixels: int, c_in: int, c_out: int, convolution: Convolution, dtype: torch.dtype) -> bool:
    """Whether a layer of `pixels` (on its longer side) runs in Triton rather than in cuDNN: many pixels, few taps."""
    taps, _, row_in, row_out = convolution.rows(c_in, c_out)
    most = MOST_SUMS // 2 if dtype == torch.float32 else MOST_SUMS
    return dtype in DTYPES and pixels >= LEAST_PIXELS and padded(taps * row_in) * padded(row_out) <= most


def padded(width: int) -> int:
    """The least power of two that holds `width` and that a matrix product on tensor cores takes."""
    return max(16, 1 << (width - 1).bit_length())


def tiles_for_block(channels: tuple[int, ...], kernel: int, stride: int, dtype: torch.dtype) -> tuple[Tiles, Tiles]:
    """The tiles of a residual block's two convolutions: what was measured for it in 16 bits, else a default."""
    if dtype == torch.float32:
        return FLOAT32, FLOAT32
    backward = Tile(64, 8, stages=1) if max(channels) > 16 else Tile(64)
    default = Tiles(forward=Tile(64, stages=1), backward=backward)  # by registers and shared memory, not yet timed
    return MEASURED_BLOCKS.get((channels, kernel, stride), (default, default))


def fused_block(pixels: int, channels: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a residual block runs in Triton rather than in cuDNN: many pixels of output and few channels."""
    c_in, *others = channels
    most = MOST_BLOCK_CHANNELS // (2 if dtype == torch.float32 else 1)
    return dtype in DTYPES and pixels >= LEAST_PIXELS and max(others) <= most and c_in <= 2 * most
