"""PyTorch's convolutions in channels-last memory: cuDNN's for layers of many channels and few pixels, oneDNN's.

Tested in tests/unit/test_encoder.py.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from harps_dist.kernels.taps import Convolution


def conv_channels_last(x: Tensor, weight: Tensor, bias: Tensor, convolution: Convolution) -> Tensor:
    """convolution(x) + bias, (batch, pixel, channel) to (batch, pixel, channel), in the dtype of x.

    weight, bias: as PyTorch stores them. A transposed convolution, or one that groups pixels, is one convolution over
    rows (`taps`), read as pixels afterwards without a copy.
    """
    bias = bias.to(x.dtype)
    if not convolution.transposed and convolution.group == 1:
        return _conv2d(x, weight.to(x.dtype), bias, convolution.stride, convolution.kernel // 2)
    rows = convolution.rows(x.shape[2], bias.numel())
    kernel = convolution.matrices(weight, x.dtype).permute(2, 1, 0)  # (row_out, row_in, tap)
    reach = max(-rows.first, rows.first + rows.taps - 1)
    kernel = F.pad(kernel, (reach + rows.first, reach + 1 - rows.first - rows.taps))
    x = x.reshape(x.shape[0], -1, rows.row_in)
    y = _conv2d(x, kernel, bias.repeat(convolution.pixels_out), 1, reach)
    return y.reshape(x.shape[0], -1, bias.numel())


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """A 2-D convolution over (batch, channel, 1, pixel) in channels-last, which is how x lies: no copy."""
    y = F.conv2d(x.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2), bias, (1, stride), (0, padding))
    return y.squeeze(2).transpose(1, 2)
