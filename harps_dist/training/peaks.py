"""What a device can do at best, measured: the roof under which a training step's figures are read.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from harps_dist.config import Precision
from harps_dist.training.precision import autocast

_TRIES = 5


class Peaks(NamedTuple):
    """flops: of a large matrix product, 1/s, in this precision. bytes: read and written by a large copy, 1/s."""

    flops: float
    bytes: float


@cache
def measured_peaks(device: torch.device, precision: Precision) -> Peaks:
    """Measure for a fraction of a second; the best of a few tries."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.float64 if precision == "fp64" else torch.float32
    left, right = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    with torch.no_grad(), autocast(precision, device):
        if precision in ("bf16", "fp16"):  # measure the product, not the cast
            half = torch.bfloat16 if precision == "bf16" else torch.float16
            left, right = left.to(half), right.to(half)
        product_s = shortest(lambda: left @ right, device, _TRIES)
    return Peaks(2 * size**3 / product_s, _bandwidth(device))


@cache
def _bandwidth(device: torch.device) -> float:
    source = torch.zeros(2**28 if device.type == "cuda" else 2**23, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / shortest(lambda: target.copy_(source), device, _TRIES)


def shortest(run: Callable[[], object], device: torch.device, tries: int) -> float:
    """Seconds of the fastest of some runs, after one that warms up."""
    seconds = []
    for _ in range(tries + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
