"""Convolutions as stride-1 convolutions over rows of pixels, and the matrices of their taps.

In channels-last memory a few neighbouring pixels with C channels each are one row of numbers. A convolution of stride s
that reads rows of g · s pixels and writes rows of g is y[q] = Σ_o x[q + o] M[o] over rows q, with one small matrix M[o]
for each row offset o. A transposed convolution is the transpose of that. Taps that the kernel does not have are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harps_dist.errors import ConfigError


class Rows(NamedTuple):
    """A convolution over rows.

    taps: number of row offsets. first: the lowest of them. row_in, row_out: numbers in a row of input and of output.
    """

    taps: int
    first: int
    row_in: int
    row_out: int


@dataclass(frozen=True)
class Convolution:
    """Kernel size and stride of nn.Conv1d or, where `transposed`, of nn.ConvTranspose1d, with "same" padding.

    The padding is (kernel - 1) // 2: a convolution of stride s makes ceil(length / s) pixels, a transposed one
    s · length. group: pixels in a row on the side that has fewer; the other side's rows have stride · group.

    Raises ConfigError for a convolution of even kernel, which keeps no length.
    """

    kernel: int
    stride: int = 1
    transposed: bool = False
    group: int = 1

    def __post_init__(self) -> None:
        if not self.transposed and self.kernel % 2 == 0:
            raise ConfigError(f"a convolution of kernel {self.kernel} keeps no length; use an odd kernel.")

    @property
    def pixels_in(self) -> int:
        """Pixels in a row of input."""
        return self.group * (1 if self.transposed else self.stride)

    @property
    def pixels_out(self) -> int:
        """Pixels in a row of output."""
        return self.group * (self.stride if self.transposed else 1)

    def length(self, pixels: int) -> int:
        """Pixels of output from `pixels` of input."""
        return pixels * self.stride if self.transposed else -(-pixels // self.stride)

    def rows(self, c_in: int, c_out: int) -> Rows:
        """Offsets and widths of rows for `c_in` channels of input and `c_out` of output."""
        first, taps, _ = self._window
        if self.transposed:
            first = 1 - first - taps
        return Rows(taps, first, self.pixels_in * c_in, self.pixels_out * c_out)

    @property
    def _window(self) -> tuple[int, int, int]:
        """Lowest row offset, offsets, zeros before the first tap: of the convolution or the one transposed to it."""
        pixels, padding = self.group * self.stride, (self.kernel - 1) // 2
        first = -padding // pixels
        last = ((self.group - 1) * self.stride + self.kernel - 1 - padding) // pixels
        return first, last - first + 1, -padding - first * pixels

    def matrices(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """(taps, row_in, row_out) in `dtype` from a weight as PyTorch stores it.

        weight: (c_out, c_in, kernel), or (c_in, c_out, kernel) where transposed.
        """
        _, taps, before = self._window
        span = taps * self.group * self.stride
        weight = F.pad(weight.to(dtype), (before, span + self.stride - before - self.kernel))
        # copies of span + stride numbers read as rows of span are each shifted by the stride against the last
        shifted = weight.unsqueeze(2).expand(-1, -1, self.group, -1).flatten(2)[:, :, : self.group * span]
        shifted = shifted.unflatten(2, (self.group, taps, -1))  # (filter, channel, copy, tap, pixel)
        if self.transposed:
            return shifted.flip(3).permute(3, 2, 0, 4, 1).flatten(3).flatten(1, 2).contiguous()
        return shifted.permute(3, 4, 1, 2, 0).flatten(3).flatten(1, 2).contiguous()

    def weight(self, matrices: Tensor) -> Tensor:
        """The adjoint of `matrices`: the gradient of the weight from that of its (taps, row_in, row_out) matrices."""
        _, taps, before = self._window
        span = taps * self.group * self.stride
        split = matrices.unflatten(2, (self.pixels_out, -1)).unflatten(1, (self.pixels_in, -1))
        # to (filter, channel, copy, tap, pixel) from (tap, copy, filter, pixel, channel) where transposed, else from
        # (tap, pixel, channel, copy, filter)
        shifted = split.permute(2, 4, 1, 0, 3).flip(3) if self.transposed else split.permute(4, 2, 3, 0, 1)
        copies = F.pad(shifted.flatten(2), (0, self.group * self.stride)).unflatten(2, (self.group, span + self.stride))
        return copies.sum(2)[:, :, before : before + self.kernel].contiguous()
