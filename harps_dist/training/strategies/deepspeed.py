"""DeepSpeed as a strategy: optimiser, gradients and weights shared out among the ranks, checkpoints whole as ever.

Its own checkpoints depend on stage and number of ranks; here whole tensors are gathered and put back instead.

Tested in tests/distributed/test_strategies.py.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from harps_dist.config import Engine, Training
from harps_dist.errors import ConfigError
from harps_dist.intake import read_text
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.runs.checkpoint import Moments, Snapshot
from harps_dist.spectra.quantities import number
from harps_dist.text import printable
from harps_dist.training.precision import ForwardPass, LossScale
from harps_dist.training.strategies.base import (
    adam,
    clip,
    copied,
    plain_moments,
    restore_plain,
    trained_parameters,
)

_NEVER = 1 << 30  # steps between DeepSpeed's own lines
_MOMENTS = ("exp_avg", "exp_avg_sq")


def deepspeed_config(model: SpectrumModel, training: Training, engine: Engine, world: World) -> dict[str, Any]:
    """The configuration for DeepSpeed: ours, with the user's JSON merged over it, objects key by key.

    Precision, accumulation and the loss scale are the training loop's own, the same for every strategy. Raises
    ConfigError where the file is missing or not JSON.
    """
    whole = sum(parameter.numel() for parameter in model.parameters())
    whole += whole % 2  # DeepSpeed wants even sizes
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": max(1, training.batch_size // world.size),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.clip_norm or 0.0,
        "steps_per_print": _NEVER,
        "zero_optimization": {
            "stage": engine.zero,
            "overlap_comm": world.device.type == "cuda",
            "reduce_bucket_size": whole,  # DeepSpeed allocates so many; its default is 5e8
            "allgather_bucket_size": whole,
        },
    }
    if engine.deepspeed_config is None:
        return config
    return _merged(config, _read_settings(Path(engine.deepspeed_config)))


def _read_settings(path: Path) -> dict[str, Any]:
    where = printable(path)
    try:
        settings = json.loads(read_text(path, "DeepSpeed's configuration"), parse_constant=_no_number)
    except FileNotFoundError:
        raise ConfigError(f"{where} is missing. Give a JSON file to --deepspeed-config, or leave it out.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}. DeepSpeed's documentation lists its settings.") from None
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise ConfigError(f"{where} holds a {kind}, expected an object of settings, as DeepSpeed's documentation has.")
    _require_possible(settings, where)
    return settings


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _require_possible(settings: Any, where: str) -> None:
    """Refuse numbers that no float can hold."""
    if isinstance(settings, dict | list):
        for value in settings.values() if isinstance(settings, dict) else settings:
            _require_possible(value, where)
    elif math.isinf(number(settings)):
        raise ConfigError(f"{where} has a number that is too large, {str(settings)[:20]}…. Give a smaller one.")


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(ours[key], value) if isinstance(value, dict) and isinstance(ours.get(key), dict) else value
        for key, value in theirs.items()
    }
    return ours | both


class DeepSpeed:
    """The optimiser, gradients and weights are shared out among the ranks, as far as `Engine.zero` says."""

    def __init__(
        self, model: SpectrumModel, training: Training, engine: Engine, world: World, say: Callable[[str], None]
    ):
        if training.known_precision == "fp64":
            raise ConfigError("DeepSpeed keeps weights in float32. Use --strategy ddp for --training.precision fp64.")
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        os.environ.setdefault("DS_ACCELERATOR", world.device.type)
        os.environ.setdefault("LOCAL_RANK", "0")  # where no launcher set it
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, for a minute
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self._model, self._world = model, world
        config = deepspeed_config(model, training, engine, world)
        self._zero = config["zero_optimization"]["stage"]
        self._copy = copy.deepcopy(model) if self._zero == 3 else None
        self._clip_norm = config["gradient_clipping"] or None
        if not self._zero:  # whole gradients are clipped here, where they are checked
            config["gradient_clipping"] = 0.0
        wrapped = ForwardPass(model, training.known_precision, world.device, engine.compile is True, say)
        theirs = "optimizer" in config
        self._engine, *_ = deepspeed.initialize(
            model=wrapped,
            model_parameters=[p for _, p in trained_parameters(model)] if theirs else None,
            optimizer=None if theirs else adam(model, training),
            config=config,
            dist_init_required=False,
        )
        self.forward = self._engine

    def accumulating(self, last: bool) -> AbstractContextManager:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor, loss_scale: LossScale) -> None:
        if not self._zero:
            loss = loss * loss_scale.value
        elif loss_scale.changes:
            self._engine.optimizer.override_loss_scale(float(loss_scale.value))
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self, learning_rate: Tensor, loss_scale: LossScale) -> Tensor:
        optimizer = self._engine.optimizer
        for group in optimizer.param_groups:
            group["lr"] = float(learning_rate)
        if self._zero:  # clips, and finds out itself whether gradients are finite
            self._engine.step()
            return torch.tensor(not optimizer.overflow, device=self._world.device)
        finite = clip(self._model, self._clip_norm, loss_scale)
        if finite:
            self._engine.step()
        self._engine.zero_grad()
        return finite

    def snapshot(self) -> Snapshot | None:
        weights, moments = self._weights(), self._moments()
        return Snapshot(weights, moments) if self._world.is_main else None

    def _weights(self) -> dict[str, Tensor]:
        import deepspeed

        shared_out = list(self._model.parameters()) if self._zero == 3 else []
        with deepspeed.zero.GatheredParameters(shared_out, enabled=bool(shared_out)):
            return copied(self._model.state_dict())

    def _moments(self) -> Moments:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._zero:
            return plain_moments(self._model, self._engine.optimizer)
        step = next((state["step"] for state in self._inner.state.values() if "step" in state), None)
        if step is None:  # before the first step
            return {}
        return {
            name: {"step": step.detach().cpu().clone()}
            | copied({key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS})
            for name, parameter in trained_parameters(self._model)
        }

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimiser of this rank's share."""
        return self._engine.optimizer.optimizer

    def restore(self, moments: Moments) -> None:
        if not moments:
            return
        if not self._zero:
            restore_plain(self._model, self._engine.optimizer, moments)
            return
        optimizer, step = self._engine.optimizer, next(iter(moments.values()))["step"]
        held = "fp32_partitioned_groups_flat" if self._zero == 3 else "single_partition_of_fp32_groups"
        for share in getattr(optimizer, held):  # as the first step would make them
            empty = {key: torch.zeros_like(share, requires_grad=False) for key in _MOMENTS}
            self._inner.state[share] = {"step": step.clone(), **empty}
        if self._zero < 3:
            optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in trained_parameters(self._model):
            for key in _MOMENTS:
                self._set_moment(parameter, key, moments[name][key].to(self._world.device, torch.float32))

    def _set_moment(self, parameter: torch.nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._zero < 3:
            safe_set_full_optimizer_state(parameter, value, key)
            return
        size = -(-value.numel() // self._world.size)
        padded = F.pad(value.flatten(), (0, size * self._world.size - value.numel()))
        safe_set_local_optimizer_state(parameter, padded.narrow(0, size * self._world.rank, size), key)

    def evaluated(self) -> SpectrumModel:
        if self._copy is None:
            return self._model
        self._copy.load_state_dict(self._weights())
        return self._copy
