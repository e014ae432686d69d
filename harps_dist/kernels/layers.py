"""One layer of a network in channels-last, by whichever kernel is fastest for its shape.

Tested in tests/unit/test_encoder.py.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from harps_dist.kernels.channels_last import conv_channels_last
from harps_dist.kernels.conv_leaky import conv_leaky
from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import fused


def convolution_of(layer: nn.Conv1d | nn.ConvTranspose1d) -> Convolution:
    """What a layer of `harps_dist.models` computes. Raises ConfigError for a convolution that keeps no length."""
    return Convolution(layer.kernel_size[0], layer.stride[0], isinstance(layer, nn.ConvTranspose1d))


def conv_leaky_layers(x: Tensor, layers: nn.Sequential) -> Tensor:
    """layers(x) for (batch, pixel, channel), in the dtype of x. layers: convolutions and LeakyReLUs by turns."""
    modules = list(layers)
    for layer, activation in zip(modules[::2], modules[1::2], strict=True):
        assert isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
        assert isinstance(activation, nn.LeakyReLU)
        x = conv_leaky_layer(x, layer, activation.negative_slope)
    return x


def conv_leaky_layer(x: Tensor, layer: nn.Conv1d | nn.ConvTranspose1d, slope: float) -> Tensor:
    """LeakyReLU(layer(x)) for (batch, pixel, channel), in the dtype of x: Triton where `tiles.fused`, else cuDNN.

    layer: a convolution with bias and "same" padding. slope: LeakyReLU's of negative values.
    """
    assert layer.bias is not None
    convolution = convolution_of(layer)
    pixels = max(x.shape[1], convolution.length(x.shape[1]))
    if fused(pixels, layer.in_channels, layer.out_channels, convolution, x.dtype):
        return conv_leaky(x, layer.weight, layer.bias, convolution, slope)
    return F.leaky_relu(conv_channels_last(x, layer.weight, layer.bias, convolution), slope, inplace=True)
