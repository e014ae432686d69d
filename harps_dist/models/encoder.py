"""Convolutional encoder of the paper (Table B.1, after Sedaghat et al. 2021), alone and with a label head.

Tested in tests/unit/test_models.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harps_dist.errors import ConfigError
from harps_dist.kernels.encoder import encode
from harps_dist.kernels.on_cpu import encode_on_cpu
from harps_dist.models.layers import (
    FULL_STAGES,
    LEAKY_SLOPE,
    MEAN_SQUARE_LEAKY,
    Float32Linear,
    Init,
    at_least_float32,
    check_init,
    scale_fan_in_,
    scaled_channels,
    stride_two_stages,
)

CHANNELS = (16, 16, 16, 32, 32, 32, 64, 64, 64, 128, 128, 128, 256, 512, 512)
KERNELS = (7, 5, 5) + (3,) * 12


class ConvEncoder(nn.Module):
    """15 convolutions with LeakyReLU(0.1), the first 14 of stride 2 on the full grid (paper, Table B.1).

    length: pixels of a spectrum; shorter grids take fewer stride-2 layers (`stride_two_stages`).
    width: multiplies every channel number, rounded to a multiple of 4, at least 4.
    input_centre, input_scale: the network sees (flux - input_centre) * input_scale; constants, not trained.
    init: "paper" is PyTorch's default; "on_scale" is Kaiming-normal, fan-in, for this LeakyReLU.

    Attributes: `length`, `channels` of the last layer, `features`, the size of the output (10,240 at 327,680 px and
    width 1), `kernel_format`, see `SpectrumModel.use_kernels`, and `cpu_format`, the number format of activations
    where a CPU computes by `kernels.on_cpu`, None: by PyTorch's layers.
    Raises ConfigError for a length that cannot be halved often enough or an unknown init.
    """

    def __init__(
        self,
        length: int,
        width: float = 1.0,
        input_centre: float = 0.0,
        input_scale: float = 1.0,
        init: Init = "paper",
    ) -> None:
        super().__init__()
        check_init(init)
        stages = stride_two_stages(length)
        self.length = length
        self.kernel_format: torch.dtype | None = None
        self.cpu_format: torch.dtype | None = None
        self.input_centre = input_centre
        self.input_scale = input_scale
        channels = [1, *(scaled_channels(c, width) for c in CHANNELS)]
        strides = [2] * stages + [1] * (FULL_STAGES + 1 - stages)
        layers: list[nn.Module] = []
        for (c_in, c_out), kernel, stride in zip(pairwise(channels), KERNELS, strides, strict=True):
            conv = nn.Conv1d(c_in, c_out, kernel, stride, padding=(kernel - 1) // 2)
            if init == "on_scale":
                scale_fan_in_(conv, MEAN_SQUARE_LEAKY)
            layers += [conv, nn.LeakyReLU(LEAKY_SLOPE, inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.channels = channels[-1]
        self.features = self.channels * (length >> stages)

    def pooled(self, features: Tensor) -> Tensor:
        """(batch, features) -> (batch, channels): the output averaged along the spectrum, in float32 at least."""
        return at_least_float32(features).unflatten(1, (self.channels, -1)).mean(dim=2)

    def contributions(self, features: Tensor, weights: Tensor, stretches: int) -> Tensor:
        """What each stretch of a spectrum adds to linear combinations of its features, in float32 at least.

        features: (batch, features); weights: (K, features). Returns (batch, K · stretches), or fewer stretches where
        the output is shorter; means over the places of a stretch.
        """
        by_channel = (at_least_float32(part).unflatten(1, (self.channels, -1)) for part in (features, weights))
        added = torch.einsum("bcp,kcp->bkp", *by_channel)
        return F.adaptive_avg_pool1d(added, min(stretches, added.shape[2])).flatten(1)

    def forward(self, flux: Tensor) -> Tensor:
        """(batch, length) standardised flux -> (batch, features).

        Raises ConfigError for spectra of another length.
        """
        if flux.shape[-1] != self.length:
            raise ConfigError(
                f"the encoder was built for spectra of {self.length} pixels and was given {flux.shape[-1]}. "
                f"Read the data on the model's grid, or build the model for theirs."
            )
        # centred before autocast rounds it: line depths, not the continuum, should use the few bits there are
        x = (flux - self.input_centre) * self.input_scale
        if self.kernel_format is not None:
            return encode(self.layers, x, self.kernel_format)
        if self.cpu_format is not None:
            return encode_on_cpu(self.layers, x, self.cpu_format)
        return self.layers(x.unsqueeze(1)).flatten(1)


class LabelEncoder(nn.Module):
    """ConvEncoder and one linear layer to normalised labels (paper, Sect. 2.5.1).

    outputs: number of labels. init "on_scale" also starts the head at zero, the mean of normalised labels.
    Other arguments and errors: ConvEncoder.
    """

    def __init__(
        self,
        length: int,
        outputs: int,
        width: float = 1.0,
        input_centre: float = 0.0,
        input_scale: float = 1.0,
        init: Init = "paper",
    ) -> None:
        super().__init__()
        self.encoder = ConvEncoder(length, width, input_centre, input_scale, init)
        self.head = Float32Linear(self.encoder.features, outputs)
        if init == "on_scale":
            with torch.no_grad():
                self.head.weight.zero_()
                self.head.bias.zero_()

    def forward(self, flux: Tensor) -> Tensor:
        """(batch, length) standardised flux -> (batch, outputs) float32 normalised labels."""
        return self.head(self.encoder(flux))
