"""Number formats: which a pass runs in, and the scale that keeps float16 gradients from vanishing.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from harps_dist.config import Precision
from harps_dist.data.observer import Batch
from harps_dist.errors import ConfigError
from harps_dist.models.supervised import Output, SpectrumModel

_FIRST_SCALE = 2.0**16
_MOST_WORKSPACE_MIB = 1024
_GROWS_AFTER = 2000  # finite steps, as torch.amp


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context that a forward pass of this precision runs in."""
    if precision in ("bf16", "fp16"):
        return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
    return nullcontext()


def prepare(model: nn.Module, precision: Precision) -> None:
    """Give the weights their format and set up cuDNN for the whole process.

    It tries which of its algorithms is fastest, but none that wants much memory besides; TF32 it has where asked for.
    """
    os.environ.setdefault("CUDNN_CONV_WSCAP_DBG", str(_MOST_WORKSPACE_MIB))
    torch.backends.cudnn.benchmark = True
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


class LossScale:
    """What a loss is multiplied by before its gradient is taken: doubled now and then, halved where that was too much.

    Stays 1 where precision is not fp16. value () float32, finite_steps () int64: on the device, which changes them by
    itself.
    """

    def __init__(self, precision: Precision, device: torch.device):
        self.changes = precision == "fp16"
        self.value = torch.full((), _FIRST_SCALE if self.changes else 1.0, device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, finite: Tensor) -> None:
        """Take note whether the last step's gradients were finite, () bool."""
        if not self.changes:
            return
        self.finite_steps.add_(1).mul_(finite)
        grows = finite & (self.finite_steps % _GROWS_AFTER == 0)
        after = torch.where(finite, self.value * (1.0 + grows), (self.value / 2).clamp(min=1.0))
        self.value.copy_(after)

    def state(self) -> dict[str, float]:
        return {"value": float(self.value), "finite_steps": int(self.finite_steps)}

    def restore(self, state: dict) -> None:
        """Go on where `state` was taken."""
        self.value.fill_(state["value"])
        self.finite_steps.fill_(state["finite_steps"])


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
