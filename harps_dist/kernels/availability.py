"""Whether the kernels of this room can run here."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


@cache
def available() -> bool:
    """True where Triton is installed and the current CUDA device has tensor cores for bfloat16 (sm_80 or newer).

    Nothing in `harps_dist.kernels` imports Triton before the first kernel is launched, so asking is always safe.
    """
    if find_spec("triton") is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 0)
