"""How a model computes where it is used: number format of its encoder's convolutions, and which code runs them.

Heads, pooled features, decoders, norms and the scaling of labels stay in float32 or better. What calibrates an export
is float32; bfloat16 moves labels by some hundredths of their uncertainty, so it is taken only where it is asked for.

Tested in tests/unit/test_inference_precision.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from harps_dist.errors import ConfigError
from harps_dist.kernels.availability import available
from harps_dist.models.supervised import SpectrumModel

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Computing:
    """precision: of an encoder's activations; sums run in float32. convolutions: those of PyTorch's layers ("torch"),
    PyTorch's in channels-last memory (`kernels.on_cpu`), or Triton's (`kernels.encoder`)."""

    precision: Literal["fp32", "bf16"]
    convolutions: Literal["torch", "channels-last", "triton"]

    def __str__(self) -> str:
        return f"{self.precision}, {self.convolutions}"


EAGER = Computing("fp32", "torch")


def computing(precision: Precision, device: torch.device) -> Computing:
    """What a precision means on a device. auto: fp32, so that labels do not depend on where they were predicted.

    On a CPU with bf16 instructions the two take about as long in channels-last, since memory is what they wait for.
    Raises ConfigError for bf16 on a GPU that cannot run the kernels.
    """
    if device.type == "cpu":
        return Computing("bf16" if precision == "bf16" else "fp32", "channels-last")
    if precision == "bf16" and not available():
        raise ConfigError(
            "precision bf16 on a GPU needs the package triton and compute capability 8.0 or newer, and one of the two "
            "is missing here. Choose precision auto or fp32."
        )
    return Computing("bf16", "triton") if precision == "bf16" else EAGER


def compute_by(model: SpectrumModel, how: Computing) -> None:
    """Let a model's encoder compute so from now on; weights and their names stay. A decoder alone is left as it is."""
    if not model.reads:
        return
    number_format = torch.bfloat16 if how.precision == "bf16" else torch.float32
    model.encoder.kernel_format = number_format if how.convolutions == "triton" else None
    model.encoder.cpu_format = number_format if how.convolutions == "channels-last" else None
