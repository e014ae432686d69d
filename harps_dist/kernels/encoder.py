"""The convolutions of an encoder, in channels-last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harps_dist.kernels.layers import conv_leaky_layers


def encode(layers: nn.Sequential, flux: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, length) flux to (batch, features), what `layers(flux.unsqueeze(1)).flatten(1)` gives, in `dtype`.

    layers: `ConvEncoder.layers`, convolutions and LeakyReLUs by turns; their parameters are used where they are and get
    gradients in their own dtype. flux: centred and scaled, any dtype. dtype: of the activations, also under autocast;
    sums run in float32. Needs Triton and CUDA (`availability.available`) where a layer is large enough for it.
    """
    with torch.autocast(flux.device.type, enabled=False):
        x = conv_leaky_layers(flux.to(dtype).unsqueeze(2), layers)
        return x.transpose(1, 2).flatten(1)
