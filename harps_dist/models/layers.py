"""What encoders and decoders share: grid halvings, layers that stay in float32, and initialisation.

Tested in tests/unit/test_models.py.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harps_dist.errors import ConfigError

Init = Literal["paper", "on_scale"]
INITS: tuple[Init, ...] = ("paper", "on_scale")

FULL_STAGES = 14  # 327,680 px = 20 · 2^14
MIN_STAGES = 8
MIN_INNER_PIXELS = 16  # InstanceNorm over one pixel is undefined, over two leaves signs: a decoder of jumps

LEAKY_SLOPE = 0.1
MEAN_SQUARE_LEAKY = (1 + LEAKY_SLOPE**2) / 2  # of LeakyReLU(x), x standard normal; its variance:
VARIANCE_LEAKY = MEAN_SQUARE_LEAKY - (1 - LEAKY_SLOPE) ** 2 / (2 * math.pi)
VARIANCE_RELU = 0.5 - 1 / (2 * math.pi)


def stride_two_stages(length: int) -> int:
    """How many of the 14 stages change the length by two on a grid of `length` pixels; the others keep it.

    All 14 at the full 327,680 px; on shorter grids as many as leave at least 16 whole pixels innermost
    (11 at 32,768 px, 8 at 4,096 px). The stages that lose their stride are the innermost ones: the last of
    an encoder, the first of a decoder.

    Raises ConfigError where fewer than 8 are possible.
    """
    stages = 0
    while stages < FULL_STAGES and length % 2 ** (stages + 1) == 0:
        if length // 2 ** (stages + 1) < MIN_INNER_PIXELS:
            break
        stages += 1
    if stages < MIN_STAGES:
        raise ConfigError(
            f"a grid of {length} pixels can be halved only {stages} times into at least {MIN_INNER_PIXELS} "
            f"whole pixels, and the networks need {MIN_STAGES} or more halvings. Choose a grid whose length "
            f"is a multiple of {2**MIN_STAGES} and at least {MIN_INNER_PIXELS * 2**MIN_STAGES}, such as "
            f"4096, 32768 or 327680."
        )
    return stages


def scaled_channels(channels: int, width: float) -> int:
    """`channels` times the width multiplier, rounded to a multiple of 4 and never below 4."""
    return max(4, 4 * round(channels * width / 4))


def check_init(init: str) -> None:
    """Raises ConfigError for an initialisation that is not known."""
    if init not in INITS:
        raise ConfigError(f"unknown init {init!r}; choose one of {', '.join(INITS)}.")


def scale_fan_in_(layer: nn.Conv1d | nn.Linear, mean_square_in: float) -> None:
    """Kaiming-normal weights, fan-in: inputs of the given mean square give outputs of variance 1. Bias 0."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=(fan_in * mean_square_in) ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def standardise_filters_(layer: nn.Conv1d | nn.ConvTranspose1d, variance_in: float, std_out: float = 1.0) -> None:
    """Draw filters of mean exactly 0 and of the norm that turns `variance_in` into `std_out`²; bias 0.

    A filter is the set of taps that reach one output pixel: of a transposed convolution's taps every
    stride-th, a set for each phase (`nn.init` counts them all, and takes output for input channels). Mean 0
    keeps the positive mean of (Leaky)ReLU outputs from growing into a constant that drowns the inputs, and an
    exact norm makes narrow layers as safe as wide ones (scaled weight standardisation, Brock et al. 2021).
    """
    transposed = isinstance(layer, nn.ConvTranspose1d)
    in_and_tap = (0, 2) if transposed else (1, 2)
    stride = layer.stride[0] if transposed else 1
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    for phase in range(min(stride, layer.kernel_size[0])):
        taps = layer.weight[:, :, phase::stride]
        taps -= taps.mean(in_and_tap, keepdim=True)
        taps *= std_out / (variance_in**0.5 * taps.norm(dim=in_and_tap, keepdim=True))


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Float32Linear(nn.Linear):
    """nn.Linear that computes and answers in float32 (or float64), also under autocast."""

    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(*map(at_least_float32, (x, self.weight, self.bias)))


class Float32Conv1d(nn.Conv1d):
    """nn.Conv1d, kernel 3 and same length, that computes and answers in float32 (or float64)."""

    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, weight, bias = map(at_least_float32, (x, self.weight, self.bias))
            return F.conv1d(x, weight, bias, padding=1)


class InstanceNorm1d(nn.Module):
    """InstanceNorm without affine: each channel of each spectrum to mean 0 and variance 1 over its pixels.

    Computed in float32 whatever comes in, and returned in the dtype of the input: with bfloat16 input torch's
    own rounds the statistics too.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.instance_norm(at_least_float32(x)).to(x.dtype)


class ConvTranspose1d(nn.ConvTranspose1d):
    """nn.ConvTranspose1d whose output is exactly `stride` times as long as its input, by a faster road.

    Output pixels of one phase (position modulo stride) are an ordinary convolution of the input, so all
    phases come from one convolution at low resolution with stride · out_channels outputs, then interleaved.
    Parameters, their names and the result are those of nn.ConvTranspose1d with padding (kernel_size - 1) // 2
    and the output padding that makes the length fit, for which cuDNN picks slow kernels.
    """

    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        padding = (kernel_size - 1) // 2
        output_padding = stride + 2 * padding - kernel_size
        if output_padding < 0:
            raise ConfigError(
                f"a transposed convolution with kernel {kernel_size} and stride {stride} cannot give "
                f"{stride} output pixels per input pixel. Use an odd kernel or a stride of 2."
            )
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the stride alone gives the output's size
        """(batch, in_channels, length) -> (batch, out_channels, stride · length)."""
        (stride,) = self.stride
        kernel = self._phase_kernel()
        phases = F.conv1d(x, kernel, self.bias.repeat(stride), padding=kernel.shape[-1] // 2)
        return phases.unflatten(1, (stride, self.out_channels)).permute(0, 2, 3, 1).flatten(2)

    def _phase_kernel(self) -> Tensor:
        """(stride · out_channels, in_channels, taps) kernel, one phase after the other.

        y[stride·i + r] = sum over k of w[k] x[i + (r + padding - k) / stride] where that is whole: the tap of
        phase r at offset o is w[r + padding - stride·o], zero where that index lies outside the kernel.
        """
        (size,), (stride,) = self.kernel_size, self.stride
        padding = (size - 1) // 2
        reach = max(-(-padding // stride), -(-(size - padding - stride) // stride))  # the largest |o|
        weights = self.weight.transpose(0, 1).unbind(2)
        zero = torch.zeros_like(weights[0])
        phases = []
        for r in range(stride):
            indices = [r + padding - stride * o for o in range(-reach, reach + 1)]
            phases.append(torch.stack([weights[k] if 0 <= k < size else zero for k in indices], dim=2))
        return torch.cat(phases)
