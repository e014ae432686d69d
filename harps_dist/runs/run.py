"""A run on disk: its resolved recipe and where it came from, its checkpoints, its log."""

from __future__ import annotations

import json
import platform
import subprocess
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import yaml

from harps_dist.config import Recipe, recipe_digest
from harps_dist.data.augment import Augment
from harps_dist.data.manifest import Index, Manifest, SampleKind
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.files import atomic_write
from harps_dist.models.build import build_model
from harps_dist.ownership import OutputKind
from harps_dist.runs.checkpoint import MODEL, STATE, Checkpoint, best_checkpoint, newest_checkpoint
from harps_dist.runs.identity import ID_LENGTH, TrainedModel
from harps_dist.runs.lines import with_kept_lines
from harps_dist.sealed import digest_of, sealed, unsealed
from harps_dist.spectra.grid_spec import GridSpec
from harps_dist.spectra.labels import NAMES

if TYPE_CHECKING:
    from harps_dist.data.reader import Release
    from harps_dist.models.supervised import SpectrumModel

RECIPE, CHECKPOINTS, LEDGER = "recipe.yaml", "checkpoints", "ledger.jsonl"
FORMAT, FORMATS = 2, (1, 2)  # of recipe.yaml; the first carries neither its number nor a digest of the whole
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


def initial_model(recipe: Recipe, manifest: Manifest) -> SpectrumModel:
    """A freshly initialised model for the recipe on the release's grid, on the CPU; seeded by the recipe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        model = build_model(recipe.model, manifest.grid.grid())
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
    kinds: tuple[tuple[SampleKind, float], ...] = (("real", mix.real), ("simulated", mix.simulated))
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
    versions; and a digest of all of it."""
    manifest = release.manifest
    content = {
        "format": FORMAT,
        "name": name,
        "start_from": str(start_from) if start_from else None,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest,
        "release_digest": manifest.digest,
        "not_genuine": manifest.not_genuine,
        "split": [list(manifest.split_fractions), manifest.split_salt],
        "grid": manifest.grid.model_dump(),
        "label_ranges": {key: list(limits) for key, limits in label_ranges(release.index, recipe).items()},
        "git": git_revision(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }
    run.mkdir(parents=True, exist_ok=True)
    with atomic_write(run / RECIPE) as file:
        file.write_text(yaml.safe_dump(sealed(content), sort_keys=False), encoding="utf-8")


class SavedRun(NamedTuple):
    """What a run's folder says of it.

    written: the recipe as it stands there, which `recipe` may extend by what is newer, and recipe_digest its digest.
    label_ranges: see there; empty for runs of versions that did not note them. start_from, git, python, versions: where
    the run came from; not_genuine: what says that its spectra are not; None where they were not noted.
    """

    name: str
    recipe: Recipe
    written: dict[str, Any]
    recipe_digest: str
    grid: GridSpec
    release_digest: str
    split: tuple[tuple[float, float, float], str]  # fractions and salt of the stars' split
    label_ranges: dict[str, tuple[float, float]]
    start_from: str | None
    not_genuine: str | None
    git: str | None
    python: str | None
    versions: dict[str, str | None] | None


def read_run(run: Path) -> SavedRun:
    """What a run's recipe.yaml says, checked against the digests that stand in it.

    Raises ConfigError where the folder is not a run, or the file was edited, damaged or written by another version.
    """
    path = run / RECIPE
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{run} is not a run: it has no {RECIPE}. Give the folder that train.py wrote.") from None
    try:
        content = yaml.safe_load(raw.decode("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected names and values, got {type(content).__name__}")
        form = content.get("format", 1)
        if form not in FORMATS:
            raise ValueError(f"it has format {form!r}, this code knows {FORMAT}")
        content = unsealed(content, required=form > 1)
        digest = recipe_digest(content["recipe"])
        if (stated := content.get("recipe_digest", digest)) != digest:
            raise ValueError(f"it states recipe_digest {str(stated)[:12]}, but its recipe has {digest[:12]}")
        first, second, third = content["split"][0]
        return SavedRun(
            name=content["name"],
            recipe=with_kept_lines(Recipe.model_validate(content["recipe"]), run),
            written=content["recipe"],
            recipe_digest=digest,
            grid=GridSpec.model_validate(content["grid"]),
            release_digest=content["release_digest"],
            split=((first, second, third), content["split"][1]),
            label_ranges={key: (low, high) for key, (low, high) in content.get("label_ranges", {}).items()},
            **{key: content.get(key) for key in ("start_from", "not_genuine", "git", "python", "versions")},
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)  # pydantic's are ValueErrors
        raise ConfigError(
            f"{path} is not what this version writes: {what}. It was edited or damaged, or an older version wrote it: "
            f"restore it from a copy, or train the run again."
        ) from None


class Run:
    """A training's folder, looked at once: what was read or checked of it is kept.

    run = Run(Path("runs/cnn-mix"))
    run.recipe, run.checkpoint("best").step, run.model("best"), run.identity("best").id

    path: the folder. A training that goes on there is not followed: open the run again.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._checkpoints: dict[Which, Checkpoint] = {}

    @cached_property
    def saved(self) -> SavedRun:
        """Recipe and provenance; raises ConfigError as `read_run`."""
        return read_run(self.path)

    @property
    def name(self) -> str:
        """What the run was called when it was trained."""
        return self.saved.name

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe that it was trained by."""
        return self.saved.recipe

    def checkpoint(self, which: Which = "newest") -> Checkpoint:
        """The newest checkpoint, or that with the least validation loss, every byte of it checked.

        Raises ResumeError where there is none, where it is damaged (an older one is never taken in its place), or where
        it was written under another recipe or for another release than the run's.
        """
        if which not in self._checkpoints:
            self._checkpoints[which] = self._checked(which)
        return self._checkpoints[which]

    def _checked(self, which: Which) -> Checkpoint:
        choose = {"newest": newest_checkpoint, "best": best_checkpoint}[which]
        checkpoint, passed_over = choose(self.path / CHECKPOINTS)
        if passed_over:
            raise ResumeError(
                f"the {which} checkpoint of {self.path} is damaged: {' '.join(passed_over)} Restore it from a copy, or "
                f"remove its folder, and what is left is taken."
            )
        if checkpoint is None:
            what = "written" if which == "newest" else "validated"
            raise ResumeError(
                f"run {self.path} has no checkpoint that is its {which}: none was {what} yet. Train it first."
            )
        for what, stands in (("recipe", self.saved.recipe_digest), ("release", self.saved.release_digest)):
            written = str(checkpoint.state.get(f"{what}_digest"))
            if written != stands:
                raise ResumeError(
                    f"checkpoint {checkpoint.path} was written for {what} {written[:12]}, but {self.path / RECIPE} has "
                    f"{stands[:12]}: they are not of the same run. Restore the one that was replaced."
                )
        return checkpoint

    def model(self, which: Which = "newest", on: Manifest | None = None) -> SpectrumModel:
        """The trained model of a checkpoint, on the CPU, in evaluation mode.

        on: a release that it is to be used on; without, none is needed, for grid and label scale are saved with the
        run. Raises ConfigError for a release on another grid; otherwise as `checkpoint`.
        """
        grid = self.saved.grid
        if on is not None and grid != on.grid:
            raise ConfigError(
                f"run {self.path} was trained on grid {grid.name}, but the release is on grid {on.grid.name}. Give a "
                f"release on the same grid: ingest with --grid {grid.name}."
            )
        checkpoint = self.checkpoint(which)
        with torch.random.fork_rng(devices=[]):
            model = build_model(self.recipe.model, grid.grid())
        checkpoint.load_model(model)
        return model.eval()

    def identity(self, which: Which = "newest") -> TrainedModel:
        """What a checkpoint is: which weights under which recipe; raises as `checkpoint`."""
        saved, checkpoint = self.saved, self.checkpoint(which)
        weights = checkpoint.state["sha256"][MODEL]
        return TrainedModel(
            name=saved.name,
            id=digest_of([weights, saved.written])[:ID_LENGTH],
            run=str(self.path),
            checkpoint=which,
            step=checkpoint.step,
            weights_sha256=weights,
            recipe_digest=saved.recipe_digest,
            release_digest=saved.release_digest,
            git=saved.git,
        )


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
