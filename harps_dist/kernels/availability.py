"""Whether the kernels of this room can run here."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

from harps_dist.errors import ConfigError

Kernels = Literal["torch", "triton"]


def triton_installed() -> bool:
    """Whether there is a Triton, which torch.compile too wants for a GPU."""
    return find_spec("triton") is not None


@cache
def available() -> bool:
    """True where Triton is installed and the current CUDA device has tensor cores for bfloat16 (sm_80 or newer).

    Nothing in `harps_dist.kernels` imports Triton before the first kernel is launched, so asking is always safe.
    """
    if not triton_installed() or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def check_kernels(kernels: Kernels) -> None:
    """Raises ConfigError for kernels "triton" where they cannot run."""
    if kernels == "triton" and not available():
        raise ConfigError(
            "kernels triton need the package triton and a CUDA device of compute capability 8.0 or newer, and one of "
            "the two is missing here. Choose kernels torch."
        )
