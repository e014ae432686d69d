"""Checkpoints: one format without pickle or topology, written whole or not at all.

checkpoints/step-00000500/
  model.safetensors       weights and label scale
  optimizer.safetensors   one tensor per parameter and moment, by the parameter's name
  state.json              step, digests, versions, sha256 of the two files
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harps_dist.errors import ResumeError
from harps_dist.files import atomic_write, publish_folder

if TYPE_CHECKING:
    from harps_dist.models.supervised import SpectrumModel

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: dict

    @property
    def step(self) -> int:
        return self.state["step"]

    def load_model(self, model: nn.Module) -> None:
        model.load_state_dict(load_file(self.path / MODEL))

    def lend(self, model: SpectrumModel) -> list[str]:
        """Lend the weights that fit to a model of another kind; returns their names there."""
        return model.adopt(load_file(self.path / MODEL), tuple(self.state["labels"]))

    def load_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore the optimizer's moments, found by parameter name."""
        tensors = load_file(self.path / OPTIMIZER)
        state: dict[int, dict] = {}
        for number, (name, parameter) in enumerate(_trained(model)):
            found = {key.rpartition("/")[2]: value for key, value in tensors.items() if key.rpartition("/")[0] == name}
            if found:
                state[number] = {
                    key: value if value.ndim == 0 else value.to(parameter.device) for key, value in found.items()
                }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, keep: int
) -> Checkpoint:
    """Write a checkpoint for state["step"] aside, flush it and give it its name; then drop all but `keep`."""
    path = folder / f"step-{state['step']:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with publish_folder(path) as aside:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, aside / MODEL)
        moments = {
            f"{name}/{key}": torch.as_tensor(value).contiguous()
            for name, parameter in _trained(model)
            for key, value in optimizer.state[parameter].items()
        }
        save_file(moments, aside / OPTIMIZER)
        state = {
            **state,
            "format": FORMAT,
            "sha256": {name: _sha256(aside / name) for name in (MODEL, OPTIMIZER)},
        }
        with atomic_write(aside / STATE) as file:
            file.write_text(json.dumps(state, indent=1, sort_keys=True))
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return Checkpoint(path, state)


def read_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint and check every byte; raises ResumeError saying what is wrong with it."""
    try:
        state = json.loads((path / STATE).read_text())
        if state["format"] > FORMAT:
            raise ResumeError(f"checkpoint {path} has format {state['format']}, this code knows {FORMAT}; update it.")
        for name, expected in state["sha256"].items():
            if (found := _sha256(path / name)) != expected:
                raise ResumeError(
                    f"{path / name} is damaged: sha256 {found[:12]}, {STATE} says {expected[:12]}. "
                    f"Resume from an older checkpoint, or remove this one."
                )
    except (OSError, ValueError, KeyError) as error:
        raise ResumeError(f"checkpoint {path} is not whole: {error!r}. Remove it.") from None
    return Checkpoint(path, state)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, None where there is none, and why newer ones were passed over."""
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return read_checkpoint(path), passed_over
        except ResumeError as error:
            passed_over.append(str(error))
    return None, passed_over


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
