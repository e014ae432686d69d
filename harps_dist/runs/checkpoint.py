"""Checkpoints: one format without pickle or topology, written whole or not at all.

checkpoints/step-00000500/
  model.safetensors       weights and label scale
  optimizer.safetensors   one tensor per parameter and moment, by the parameter's name
  state.json              step, order, recipe and its digest, release, losses, sha256 of the two files, its own digest
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harps_dist.errors import ResumeError
from harps_dist.files import atomic_write, publish_folder
from harps_dist.sealed import sealed, sha256_of, unsealed

if TYPE_CHECKING:
    from harps_dist.models.supervised import SpectrumModel

FORMAT = 2
FORMATS = (1, 2)  # what can be read; the first carries no digest
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: dict

    @property
    def step(self) -> int:
        return self.state["step"]

    @property
    def validation_loss(self) -> float | None:
        """Weighted sum of the loss parts over the validation split, None where it was not validated then."""
        return self.state.get("validation_loss")

    def load_model(self, model: nn.Module) -> None:
        model.load_state_dict(load_file(self.path / MODEL))

    def lend(self, model: SpectrumModel) -> list[str]:
        """Lend the weights that fit to a model of another kind; returns their names there."""
        return model.adopt(load_file(self.path / MODEL), tuple(self.state["labels"]))

    def lend_label_scale(self, model: SpectrumModel) -> None:
        """Give a model the label scale that this one was trained under, for the labels that both have."""
        labels, own = self.state["labels"], zip(model.label_mean.tolist(), model.label_std.tolist(), strict=True)
        scale = dict(zip(model.labels, own, strict=True))
        lent = zip(labels, zip(self.state["label_mean"], self.state["label_std"], strict=True), strict=True)
        scale |= {name: pair for name, pair in lent if name in scale}
        model.set_label_scale({name: m for name, (m, _) in scale.items()}, {name: s for name, (_, s) in scale.items()})

    def moments(self) -> Moments:
        """What the optimiser remembers of every parameter, by the parameter's name."""
        found: Moments = {}
        for name, value in load_file(self.path / OPTIMIZER).items():
            parameter, _, key = name.rpartition("/")
            found.setdefault(parameter, {})[key] = value
        return found


def save_checkpoint(folder: Path, snapshot: Snapshot, state: dict, keep: int) -> Checkpoint:
    """Write a checkpoint for state["step"] aside, flush it and give it its name.

    Then drop all but the newest `keep` and the one with the least validation loss.
    """
    path = folder / _name(state["step"])
    folder.mkdir(parents=True, exist_ok=True)
    with publish_folder(path) as aside:
        save_file(snapshot.weights, aside / MODEL)
        moments = {f"{name}/{key}": value for name, found in snapshot.moments.items() for key, value in found.items()}
        save_file(moments, aside / OPTIMIZER)
        state = {
            **state,
            "format": FORMAT,
            "sha256": {name: sha256_of(aside / name) for name in (MODEL, OPTIMIZER)},
        }
        with atomic_write(aside / STATE) as file:
            file.write_text(json.dumps(sealed(state), indent=1, sort_keys=True))
    kept = {found.path for found in _by_validation_loss(folder)[0][:1]}
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old not in kept:
            shutil.rmtree(old)
    return Checkpoint(path, state)


class CheckpointWriter:
    """Writes checkpoints of one run on a thread of its own, one after the other."""

    def __init__(self, folder: Path, keep: int):
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Checkpoint] | None = None

    def write(self, snapshot: Snapshot, state: dict) -> None:
        """Begin to write; raises what went wrong with the one before, for which it waits."""
        self.wait()
        self._pending = self._thread.submit(save_checkpoint, self._folder, snapshot, state, self._keep)

    def wait(self) -> None:
        """Until all is on disk; raises what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        self.wait()
        self._thread.shutdown()


def read_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint and check every byte; raises ResumeError saying what is wrong with it."""
    state = _read_state(path)
    for name in (MODEL, OPTIMIZER):
        try:
            found, expected = sha256_of(path / name), state["sha256"][name]
        except OSError as error:
            raise ResumeError(f"checkpoint {path} is not whole: {error!r}.") from None
        if found != expected:
            raise ResumeError(f"{path / name} is damaged: sha256 {found[:12]}, {STATE} says {expected[:12]}.")
    return Checkpoint(path, state)


def _read_state(path: Path) -> dict[str, Any]:
    """What state.json says, checked against its digest and the folder's name; raises ResumeError."""
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        form = content["format"]
        if type(form) is int and form > max(FORMATS):
            raise ResumeError(f"checkpoint {path} has format {form}, this code knows {FORMAT}; update it.")
        if form not in FORMATS:
            raise ValueError(f"format {form!r}")
        state = unsealed(content, required=form > 1)
        if path.name != _name(state["step"]):
            raise ValueError(f"it is of step {state['step']}")
        if not all(isinstance(state["sha256"][name], str) for name in (MODEL, OPTIMIZER)):
            raise ValueError("it does not say what its files hold")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{path / STATE} is damaged or not whole: {error!r}.") from None
    return state


def _name(step: int) -> str:
    return f"step-{step:08d}"


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, None where there is none, and why newer ones were passed over."""
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return read_checkpoint(path), passed_over
        except ResumeError as error:
            if path.exists():  # else a training that goes on has removed it
                passed_over.append(str(error))
    return None, passed_over


def best_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The whole checkpoint with the least validation loss, None where there is none, and why others were passed over.

    One whose state.json is damaged may have been the best, so it is among these.
    """
    validated, passed_over = _by_validation_loss(folder)
    for found in validated:
        try:
            return read_checkpoint(found.path), passed_over
        except ResumeError as error:
            if found.path.exists():
                passed_over.append(str(error))
    return None, passed_over


def _by_validation_loss(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints that were validated, the best first, an older one before a newer one; and why others cannot be read.

    The bytes of their tensors are not checked.
    """
    found, damaged = [], []
    for path in sorted(folder.glob("step-*")):
        try:
            checkpoint = Checkpoint(path, _read_state(path))
        except ResumeError as error:
            damaged += [str(error)] if path.exists() else []
            continue
        if checkpoint.validation_loss is not None:
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint.validation_loss or 0.0), damaged


def remove_unfinished(folder: Path) -> None:
    """Remove what writers left that were killed; to be called when no other process writes there."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


Moments = dict[str, dict[str, Tensor]]  # by parameter: exp_avg, exp_avg_sq and step of Adam


class Snapshot(NamedTuple):
    """Whole weights and moments on the CPU, that nothing changes any more."""

    weights: dict[str, Tensor]
    moments: Moments
