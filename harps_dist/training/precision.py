"""Number formats: which a pass runs in, and the scale that keeps float16 gradients from vanishing.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import nn

from harps_dist.config import Precision
from harps_dist.data.observer import Batch
from harps_dist.errors import ConfigError
from harps_dist.models.supervised import Output, SpectrumModel

_FIRST_SCALE = 2.0**16
_GROWS_AFTER = 2000  # finite steps, as torch.amp


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context that a forward pass of this precision runs in."""
    if precision in ("bf16", "fp16"):
        return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
    return nullcontext()


def prepare(model: nn.Module, precision: Precision) -> None:
    """Give the weights their format and allow TF32, or forbid it, for the whole process."""
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    model.to(weight_format(precision))


def weight_format(precision: Precision) -> torch.dtype:
    """The number format of weights and spectra."""
    return torch.float64 if precision == "fp64" else torch.float32


def activation_format(precision: Precision) -> torch.dtype:
    """The number format of activations in kernels of our own; raises ConfigError for fp64, which they do not have."""
    if precision == "fp64":
        raise ConfigError("kernels of our own do not compute in fp64. Choose --kernels torch, or another precision.")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@dataclass
class LossScale:
    """What a loss is multiplied by before its gradient is taken: doubled now and then, halved where that was too much.

    Stays 1 where precision is not fp16.
    """

    value: float = 1.0
    finite_steps: int = 0

    @classmethod
    def first(cls, precision: Precision) -> LossScale:
        return cls(_FIRST_SCALE if precision == "fp16" else 1.0)

    def update(self, finite: bool, precision: Precision) -> None:
        """Take note whether the last step's gradients were finite."""
        if precision != "fp16":
            return
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.finite_steps % _GROWS_AFTER == 0:
            self.value *= 2

    def state(self) -> dict[str, float]:
        return asdict(self)


class ForwardPass(nn.Module):
    """A model in its precision, compiled on request; what strategies wrap.

    say: told once where compilation fails; the model then runs as it is.
    """

    def __init__(self, model: SpectrumModel, precision: Precision, device: torch.device, compile: bool, say=print):
        super().__init__()
        self.model = model
        self._precision, self._device, self._say = precision, device, say
        self._compiled = torch.compile(model, dynamic=False) if compile else None

    def forward(self, batch: Batch) -> Output:
        with autocast(self._precision, self._device):
            if self._compiled is not None:
                try:
                    return self._compiled(batch)
                except Exception as error:
                    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                        raise
                    self._compiled = None
                    self._say(f"torch.compile failed ({str(error).splitlines()[0]}); the model runs uncompiled.")
            return self.model(batch)
