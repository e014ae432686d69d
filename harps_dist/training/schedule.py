"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import math

from harps_dist.config import Training

_EXPONENT = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # of the batch size


def learning_rate(step: int, steps: int, config: Training) -> float:
    """Linear warm-up over `warmup_steps`, then constant, or a half cosine down to 1 % at the last step."""
    full = config.learning_rate * (config.batch_size / config.lr_batch_size) ** _EXPONENT[config.lr_scaling]
    if step < config.warmup_steps:
        return full * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return full
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return full * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
