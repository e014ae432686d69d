"""The layers of a decoder, in channels-last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harps_dist.kernels.channels_last import conv_channels_last
from harps_dist.kernels.layers import conv_leaky_layers, convolution_of
from harps_dist.kernels.norm_relu import norm_relu
from harps_dist.kernels.output_convolution import output_convolution
from harps_dist.kernels.resnet_blocks import Block, resnet_blocks
from harps_dist.kernels.tiles import fused_block, tiles_for_block


def decode(layers: nn.Sequential, output: nn.Conv1d, seed: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, channel, pixel) seed to (batch, length) float32 flux, what `output(layers(seed)).squeeze(1)` gives.

    layers: `ConvDecoder.layers` or `ResNetDecoder.layers`; output: that decoder's `output`. Their parameters are used
    where they are and get gradients in their own dtype. dtype: of the activations, also under autocast; sums,
    statistics and the output run in float32. Needs Triton and CUDA (`availability.available`).
    """
    assert output.bias is not None
    with torch.autocast(seed.device.type, enabled=False):
        x = seed.transpose(1, 2).to(dtype).contiguous()
        x = conv_leaky_layers(x, layers) if isinstance(layers[0], nn.ConvTranspose1d) else residual_blocks(x, layers)
        return output_convolution(x, output.weight, output.bias)


def residual_blocks(x: Tensor, layers: nn.Sequential) -> Tensor:
    """layers(x) for (batch, pixel, channel), in the dtype of x. layers: `PreActTransResNetBlock`s.

    Neighbours that `tiles.fused_block` takes run as one chain in Triton, the others in cuDNN.
    """
    chain: list[Block] = []
    parameters: list[Tensor] = []
    pixels = x.shape[1]
    for layer in layers:
        parts = _convolutions(layer)
        block = _fused(layer, pixels, x.dtype)
        pixels *= parts[0].stride[0]
        if block is not None:
            chain.append(block)
            parameters += [p for part in parts for p in part.parameters()]
            continue
        if chain:
            x = resnet_blocks(x, chain, parameters)
            chain, parameters = [], []
        x = _residual(x, parts)
    return resnet_blocks(x, chain, parameters) if chain else x


def _convolutions(layer: nn.Module) -> list[nn.ConvTranspose1d]:
    """First, second, and the skip where it is one."""
    parts = [getattr(layer, name) for name in ("conv1", "conv2", "skip")]
    return [part for part in parts if part is not None]


def _fused(layer: nn.Module, pixels: int, dtype: torch.dtype) -> Block | None:
    """The block as the kernels take it, None where they do not."""
    first, second, *skip = _convolutions(layer)
    kernel, stride = first.kernel_size[0], first.stride[0]
    channels = first.in_channels, first.out_channels, second.out_channels
    if not skip or not fused_block(pixels * stride, channels, dtype):
        return None
    return Block(kernel, stride, *tiles_for_block(channels, kernel, stride, dtype))


def _residual(x: Tensor, parts: list[nn.ConvTranspose1d]) -> Tensor:
    """One block by cuDNN in channels-last."""
    first, second, *skip = parts
    active = norm_relu(x)
    y = _conv(norm_relu(_conv(active, first)), second)
    return y + (_conv(active, skip[0]) if skip else x)


def _conv(x: Tensor, layer: nn.ConvTranspose1d) -> Tensor:
    assert layer.bias is not None
    return conv_channels_last(x, layer.weight, layer.bias, convolution_of(layer))
