"""Decoders from labels or bottleneck to a spectrum: the CNN of Table B.2 and the ResNet of Table B.3.

Tested in tests/unit/test_models.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from harps_dist.errors import ConfigError
from harps_dist.kernels.decoder import decode
from harps_dist.models.layers import (
    FULL_STAGES,
    LEAKY_SLOPE,
    VARIANCE_LEAKY,
    VARIANCE_RELU,
    ConvTranspose1d,
    Float32Conv1d,
    Float32Linear,
    Init,
    InstanceNorm1d,
    check_init,
    scale_fan_in_,
    scaled_channels,
    standardise_filters_,
    stride_two_stages,
)

Block = Literal["public", "appendix_b"]

CONV_CHANNELS = (512, 512, 256, 128, 128, 128, 64, 64, 64, 32, 32, 32, 16, 16, 16)  # and 1 at the end
RESNET_CHANNELS = (512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 32, 32, 16, 16, 16)

# "on_scale" starts every pixel near the level of a median-standardised spectrum, spread like its lines
START_LEVEL = 1.0
START_STD = 0.12


class _Decoder(nn.Module):
    """Linear layer to (channels, innermost pixels), convolutions in `layers`, last convolution in float32.

    kernel_format: see `SpectrumModel.use_kernels`.
    """

    layers: nn.Sequential
    kernel_format: torch.dtype | None = None

    def __init__(self, length: int, inputs: int, seed_channels: int, last_channels: int, init: Init) -> None:
        super().__init__()
        check_init(init)
        self.length = length
        self.inputs = inputs
        self.stages = stride_two_stages(length)
        self.seed_channels = seed_channels
        self.seed = Float32Linear(inputs, seed_channels * (length >> self.stages))
        self.output = Float32Conv1d(last_channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) normalised labels or bottleneck -> (batch, length) float32 standardised flux."""
        seed = self.seed(inputs).unflatten(1, (self.seed_channels, -1))
        if self.kernel_format is not None:
            return decode(self.layers, self.output, seed, self.kernel_format)
        return self.output(self.layers(seed)).squeeze(1)


class ConvDecoder(_Decoder):
    """15 transposed convolutions with LeakyReLU(0.1), the last 14 of stride 2 on the full grid, and one
    convolution (paper, Table B.2, after Sedaghat et al. 2021).

    length: pixels of a spectrum; on shorter grids the first layers keep the length (`stride_two_stages`).
    inputs: labels or bottleneck nodes.
    width: multiplies every channel number, rounded to a multiple of 4, at least 4.
    init: "paper" is PyTorch's default; "on_scale" starts the output near 1 with a spread of about 0.1 for
    standard-normal inputs.

    Raises ConfigError for a length that cannot be halved often enough or an unknown init.
    """

    def __init__(self, length: int, inputs: int, width: float = 1.0, init: Init = "paper") -> None:
        channels = [*(scaled_channels(c, width) for c in CONV_CHANNELS), 1]
        super().__init__(length, inputs, channels[0], channels[-1], init)
        strides = [1] * (FULL_STAGES + 1 - self.stages) + [2] * self.stages
        layers: list[nn.Module] = []
        for (c_in, c_out), stride in zip(pairwise(channels), strides, strict=True):
            conv = ConvTranspose1d(c_in, c_out, kernel_size=4 if stride == 2 else 3, stride=stride)
            if init == "on_scale":
                standardise_filters_(conv, VARIANCE_LEAKY if layers else 1.0)  # the seed passes no activation
            layers += [conv, nn.LeakyReLU(LEAKY_SLOPE, inplace=True)]
        self.layers = nn.Sequential(*layers)
        if init == "on_scale":
            scale_fan_in_(self.seed, 1.0)
            # the level comes in before the last LeakyReLU, which would keep a tenth of a pixel below 0
            standardise_filters_(conv, VARIANCE_LEAKY, START_STD)
            nn.init.constant_(conv.bias, START_LEVEL)
            nn.init.dirac_(self.output.weight)
            nn.init.zeros_(self.output.bias)


class PreActTransResNetBlock(nn.Module):
    """Two transposed convolutions, each behind InstanceNorm and ReLU, and a skip (paper, Fig. B.2).

    c_mid: channels between the two; stride: how much longer the output is (1 or 2). The skip is the identity
    where shapes allow, else a transposed convolution of kernel 1 on the same normalised, activated input.
    """

    def __init__(self, c_in: int, c_mid: int, c_out: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.norm = InstanceNorm1d()
        self.conv1 = ConvTranspose1d(c_in, c_mid, kernel_size, stride)
        self.conv2 = ConvTranspose1d(c_mid, c_out, kernel_size)
        self.skip = None if stride == 1 and c_in == c_out else ConvTranspose1d(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, length) -> (batch, c_out, stride · length)."""
        active = torch.relu_(self.norm(x))
        main = self.conv2(torch.relu_(self.norm(self.conv1(active))))
        return main + (x if self.skip is None else self.skip(active))


class ResNetDecoder(_Decoder):
    """Pre-activation residual blocks and one convolution (paper, Table B.3).

    length, inputs, width: as for ConvDecoder.
    block: "public" is the block of the paper's public code, which has the printed number of parameters
    (11.6 M): kernel 5, c_in -> c_out -> c_out, and a first block of 512 channels at stride 1. "appendix_b" is
    the block as Appendix B prints it: kernel 3, c_in -> c_in -> c_out, stride 2 in every block; 14 doublings
    from 20 pixels leave room for 14 such blocks, so the table's first row is the seed (6.6 M).
    init: "paper" is Kaiming-normal, fan-out (output standard deviation about 7, for targets near 1);
    "on_scale" starts the output near 1 with a spread of about 0.1 for standard-normal inputs.

    Raises ConfigError for a length that cannot be halved often enough, an unknown block or init.
    """

    def __init__(
        self, length: int, inputs: int, width: float = 1.0, block: Block = "public", init: Init = "paper"
    ) -> None:
        if block not in ("public", "appendix_b"):
            raise ConfigError(f"unknown ResNet block {block!r}; choose public or appendix_b.")
        channels = [scaled_channels(c, width) for c in RESNET_CHANNELS]
        super().__init__(length, inputs, channels[0], channels[-1], init)
        public = block == "public"
        if public:
            channels.insert(0, channels[0])
        kept = len(channels) - 1 - self.stages
        strides = [1] * kept + [2] * self.stages
        self.layers = nn.Sequential(
            *(
                PreActTransResNetBlock(c_in, c_out if public else c_in, c_out, 5 if public else 3, stride)
                for (c_in, c_out), stride in zip(pairwise(channels), strides, strict=True)
            )
        )
        if init == "on_scale":
            for transposed in self._transposed():
                standardise_filters_(transposed, VARIANCE_RELU)
            scale_fan_in_(self.seed, 1.0)
            standardise_filters_(self.output, 2.0, START_STD)  # main road and skip have unit variance each
            nn.init.constant_(self.output.bias, START_LEVEL)
        else:
            for conv in (*self._transposed(), self.output):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def _transposed(self) -> list[ConvTranspose1d]:
        return [module for module in self.layers.modules() if isinstance(module, ConvTranspose1d)]
