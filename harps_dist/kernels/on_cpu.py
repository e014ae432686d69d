"""The convolutions of an encoder on a CPU, in channels-last memory, where oneDNN reorders nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harps_dist.kernels.channels_last import conv_channels_last
from harps_dist.kernels.taps import Convolution

LEAST_PIXELS = 5120  # of a layer's input; above, activations of several spectra fill no cache
GROUP = 2  # pixels in a row, of a layer that reads one channel: oneDNN is slow with one


def encode_on_cpu(layers: nn.Sequential, flux: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, length) flux to (batch, features), what `layers(flux.unsqueeze(1)).flatten(1)` gives, at least float32.

    layers: `ConvEncoder.layers`, convolutions and LeakyReLUs by turns. flux: centred and scaled. dtype: of the
    activations, also under autocast; sums run in float32. Layers of many pixels take one spectrum after the other.
    """
    modules = list(layers)
    pairs = list(zip(modules[::2], modules[1::2], strict=True))
    with torch.autocast(flux.device.type, enabled=False):
        x = flux.to(dtype).unsqueeze(2)
        large = _large(x.shape[1], pairs)
        x = torch.cat([_through(pairs[:large], one) for one in x.split(1)])
        x = _through(pairs[large:], x).transpose(1, 2).flatten(1)
        return x.to(torch.promote_types(dtype, torch.float32))


def _large(pixels: int, pairs: list[tuple[nn.Module, nn.Module]]) -> int:
    """How many of the first layers have large inputs."""
    for number, (layer, _) in enumerate(pairs):
        if pixels < LEAST_PIXELS:
            return number
        pixels = _convolution(layer).length(pixels)
    return len(pairs)


def _through(pairs: list[tuple[nn.Module, nn.Module]], x: Tensor) -> Tensor:
    """Layers and activations, (batch, pixel, channel) to (batch, pixel, channel)."""
    for layer, activation in pairs:
        assert isinstance(layer, nn.Conv1d)
        assert isinstance(activation, nn.LeakyReLU)
        assert layer.bias is not None
        y = conv_channels_last(x, layer.weight, layer.bias, _convolution(layer))
        x = F.leaky_relu(y, activation.negative_slope, inplace=True)
    return x


def _convolution(layer: nn.Module) -> Convolution:
    assert isinstance(layer, nn.Conv1d)
    return Convolution(layer.kernel_size[0], layer.stride[0], group=GROUP if layer.in_channels == 1 else 1)
