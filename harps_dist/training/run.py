"""A run on disk: its resolved recipe and where it came from, its checkpoints, its log."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import yaml

from harps_dist.config import Recipe
from harps_dist.data.augment import Augment
from harps_dist.data.manifest import GridSpec, Index, Kind, Manifest
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.files import atomic_write
from harps_dist.ownership import OutputKind
from harps_dist.spectra.labels import NAMES
from harps_dist.training.checkpoint import STATE, Checkpoint, best_checkpoint, newest_checkpoint

if TYPE_CHECKING:
    from harps_dist.data.reader import Release
    from harps_dist.models.supervised import SpectrumModel

RECIPE, CHECKPOINTS, LEDGER = "recipe.yaml", "checkpoints", "ledger.jsonl"
Which = Literal["newest", "best"]
_PACKAGES = ("torch", "numpy", "zarr", "astropy", "pydantic", "safetensors", "pyarrow", "deepspeed", "harps_dist")


def _is_run(folder: Path) -> bool:
    """A resolved recipe of ours, or checkpoints beside a damaged one."""
    try:
        return {"recipe", "release_digest"} <= yaml.safe_load((folder / RECIPE).read_text()).keys()
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        states = [json.loads(path.read_text()) for path in folder.glob(f"{CHECKPOINTS}/step-*/{STATE}")]
        return bool(states) and all({"step", "format", "sha256"} <= state.keys() for state in states)


RUN = OutputKind("run", "--out", _is_run, "home")


def build_model(recipe: Recipe, manifest: Manifest) -> SpectrumModel:
    """A freshly initialised model for the recipe on the release's grid, on the CPU; seeded by the recipe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        model: SpectrumModel = recipe.model.build(manifest.grid.grid())
    mean, std = label_scale(manifest, recipe.data.augment)
    model.set_label_scale(mean, std)
    return model


def label_scale(manifest: Manifest, augment: Augment) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation of every label: the training split's, else of what is drawn (uniform).

    As Eq. 1; the paper's public code takes median and unscaled MAD, over test rows too.
    """
    drawn = {"rv": augment.rv_kms / 3**0.5, "berv": (augment.berv_kms or 1.0) / 3**0.5}
    mean, std = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 1.0) | drawn
    for name, statistics in manifest.label_statistics.items():
        if statistics.std > 0:
            mean[name], std[name] = statistics.mean, statistics.std
    return mean, std


def label_ranges(index: Index, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Least and largest value of every label of the model in the training split, or of what is drawn for it."""
    mix, augment = recipe.data.mix, recipe.data.augment
    kinds: tuple[tuple[Kind, float], ...] = (("real", mix.real), ("simulated", mix.simulated))
    rows = np.concatenate([index.rows(kind, "train") for kind, weight in kinds if weight > 0])
    drawn = {"rv": augment.rv_kms, "berv": augment.berv_kms} if mix.simulated > 0 else {}
    ranges = {}
    for name in recipe.model.labels:
        limits = [drawn[name], -drawn[name]] if drawn.get(name) else []
        seen = np.append(index.labels[rows, NAMES.index(name)], limits)
        if np.isfinite(seen).any():
            ranges[name] = float(np.nanmin(seen)), float(np.nanmax(seen))
    return ranges


def save_recipe(run: Path, recipe: Recipe, release: Release, name: str, start_from: Path | None = None) -> None:
    """Write the resolved recipe with its digest, the release's digest, what range of labels it holds, git revision and
    versions."""
    manifest = release.manifest
    content = {
        "name": name,
        "start_from": str(start_from) if start_from else None,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest,
        "release_digest": manifest.digest,
        "split": [list(manifest.split_fractions), manifest.split_salt],
        "grid": manifest.grid.model_dump(),
        "label_ranges": {key: list(limits) for key, limits in label_ranges(release.index, recipe).items()},
        "git": git_revision(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }
    run.mkdir(parents=True, exist_ok=True)
    with atomic_write(run / RECIPE) as file:
        file.write_text(yaml.safe_dump(content, sort_keys=False))


class SavedRun(NamedTuple):
    """What a run's folder says of it. label_ranges: see there; empty for runs of versions that did not note them."""

    name: str
    recipe: Recipe
    grid: GridSpec
    release_digest: str
    split: tuple[tuple[float, float, float], str]  # fractions and salt of the stars' split
    label_ranges: dict[str, tuple[float, float]]


def read_run(run: Path) -> SavedRun:
    """Name, resolved recipe and grid of a run; raises ConfigError where the folder is not a run."""
    try:
        text = (run / RECIPE).read_text()
    except FileNotFoundError:
        raise ConfigError(f"{run} is not a run: it has no {RECIPE}. Give the folder that train.py wrote.") from None
    try:
        content = yaml.safe_load(text)
        first, second, third = content["split"][0]
        return SavedRun(
            content["name"],
            Recipe.model_validate(content["recipe"]),
            GridSpec.model_validate(content["grid"]),
            content["release_digest"],
            ((first, second, third), content["split"][1]),
            {key: (low, high) for key, (low, high) in content.get("label_ranges", {}).items()},
        )
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:  # pydantic's are ValueErrors
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"{run / RECIPE} is not what this version writes: {what}. An older version's run cannot be read; train it "
            f"again, or restore the file if it was edited."
        ) from None


def find_checkpoint(run: Path, which: Which) -> tuple[Checkpoint | None, list[str]]:
    """A run's newest whole checkpoint, or that with the least validation loss, and why others were passed over."""
    return {"newest": newest_checkpoint, "best": best_checkpoint}[which](run / CHECKPOINTS)


def load_run(run: Path, manifest: Manifest, which: Which = "newest") -> tuple[str, Recipe, SpectrumModel, int]:
    """Name, recipe, trained model (CPU, evaluation mode) and step of a run's newest or best whole checkpoint."""
    saved = read_run(run)
    if saved.grid != manifest.grid:
        raise ConfigError(
            f"run {run} was trained on grid {saved.grid.name}, but the release is on grid {manifest.grid.name}. "
            f"Give a release on the same grid: ingest with --grid {saved.grid.name}."
        )
    model, checkpoint = trained_model(run, which)
    return saved.name, saved.recipe, model, checkpoint.step


def trained_model(run: Path, which: Which = "newest") -> tuple[SpectrumModel, Checkpoint]:
    """The trained model (CPU, evaluation mode) of a run's newest or best whole checkpoint; its release is not needed,
    for grid and label scale are saved with it. Raises ResumeError where there is none."""
    saved = read_run(run)
    checkpoint, passed_over = find_checkpoint(run, which)
    if checkpoint is None:
        reasons = " ".join(passed_over) or f"none was {'written' if which == 'newest' else 'validated'} yet."
        raise ResumeError(f"run {run} has no whole checkpoint: {reasons} Train it first.")
    with torch.random.fork_rng(devices=[]):
        model: SpectrumModel = saved.recipe.model.build(saved.grid.grid())
    checkpoint.load_model(model)
    return model.eval(), checkpoint


def git_revision() -> str | None:
    """Commit of this code, marked where it was changed since; None outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
