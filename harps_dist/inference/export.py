"""From a run to a folder that anyone can use: weights, what they mean, how far to trust them, and a model card.

DIR/
  model.safetensors      the checkpoint's weights, byte for byte
  config.json            architecture, labels, grid, calibration; `description.Description`
  reference.safetensors  the training split in the latent space, and the model's usual misfit
  README.md              model card
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from harps_dist.config import Recipe
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.evaluation.calibration import LEVELS
from harps_dist.files import publish_folder
from harps_dist.inference.calibrate import KINDS, Held, Progress, Trial, calibrated_anomaly, calibrated_labels
from harps_dist.inference.card import model_card
from harps_dist.inference.description import FORMAT, Description, GridFacts, Uncertainty, to_json
from harps_dist.inference.model import CARD, CONFIG, REFERENCE, WEIGHTS, Exported, load
from harps_dist.models.supervised import SemiSupervised, SpectrumModel, SpectrumSimulator
from harps_dist.ownership import OutputKind, check, claimed
from harps_dist.spectra.grid import STEP_AA
from harps_dist.training.checkpoint import MODEL, Checkpoint
from harps_dist.training.run import RECIPE, Which, find_checkpoint, load_run, read_run

SPECTRA = 2048  # of a kind and split that calibrate, at most
EXPORT = "export"  # folder in a run
_NAMES = re.compile("|".join(map(re.escape, (WEIGHTS, CONFIG, REFERENCE, CARD))))


def _is_export(folder: Path) -> bool:
    ours = {"format", "step", "model", "labels", "recipe_digest", "calibrated_on", "sha256"}
    return ours <= json.loads((folder / CONFIG).read_text(encoding="utf-8")).keys()


EXPORTED = OutputKind("export", "folder", _is_export, "folder", _NAMES)


def export_run(
    run: Path,
    folder: Path,
    release: Release,
    which: Which = "best",
    spectra: int = SPECTRA,
    progress: Progress = lambda what, done, total: None,
    device: torch.device | str = "cpu",
) -> Path:
    """Export a run's best or newest checkpoint; returns the folder, which appears when it is whole.

    release: what calibrates it, and gives the card its scores; usually the one it was trained on. spectra: of a kind
    and split that are tried, at most. Raises ConfigError for a release on another grid or with another split,
    ResumeError where the run has no such checkpoint, OutputError where the folder is something else than an export, or
    another process is making it.
    """
    check(folder, EXPORTED)
    with claimed(folder, EXPORTED):
        return _export(run, folder, release, which, spectra, progress, device)


def _export(
    run: Path,
    folder: Path,
    release: Release,
    which: Which,
    spectra: int = SPECTRA,
    progress: Progress = lambda what, done, total: None,
    device: torch.device | str = "cpu",
) -> Path:
    split = release.manifest.split_fractions, release.manifest.split_salt
    if read_run(run).split != split:
        raise ConfigError(
            f"run {run} was trained on stars split as {read_run(run).split}, but the release splits them as {split}, "
            f"so that stars it has seen would calibrate it. Give a release that is split as the one it was trained on."
        )
    checkpoint = _checkpoint(run, which)
    name, recipe, model, _ = load_run(run, release.manifest, which)
    checkpoint.load_model(model)  # a training that goes on may have written another meanwhile
    saved = yaml.safe_load((run / RECIPE).read_text())
    weights = (checkpoint.path / MODEL).read_bytes()
    found = _describe(name, recipe, model, release, saved, checkpoint, hashlib.sha256(weights).hexdigest())
    trial = Trial(Exported(found, model, device=device), recipe, release, spectra, progress)
    found = replace(found, labels=trial.label_facts(), snr_low=trial.low_snr())
    files, tests = {WEIGHTS: weights}, []
    if not isinstance(model, SpectrumSimulator):
        held = Held(release, tuple(part for kind in KINDS if (part := trial(kind, "validation")) is not None))
        if held.tried:
            found = replace(found, labels=calibrated_labels(found.labels, held))
        if measured := calibrated_anomaly(trial, held):
            from safetensors.torch import save

            reference, anomaly = measured
            tensors = {key: value.cpu().contiguous() for key, value in reference.tensors().items()}
            files[REFERENCE], found = save(tensors), replace(found, anomaly=anomaly)
        tests = [(held, part) for kind in KINDS if (part := trial(kind, "test", reconstruct=False)) is not None]
    found = replace(found, sha256={key: hashlib.sha256(content).hexdigest() for key, content in files.items()})
    with publish_folder(folder, lambda: check(folder, EXPORTED)) as aside:
        for key, content in files.items():
            (aside / key).write_bytes(content)
        (aside / CONFIG).write_text(to_json(found), encoding="utf-8")
        (aside / CARD).write_text(model_card(found, recipe, release, tests), encoding="utf-8")
        load(aside)  # what cannot be opened is not published
    return folder


def exported_run(
    run: Path,
    release: Release | None,
    which: Which = "best",
    progress: Progress = lambda what, done, total: None,
    device: torch.device | str = "cpu",
) -> Exported:
    """The export of a run, RUN/export, made where it is missing or of another checkpoint.

    release: None takes what is there. Raises OutputError where another process is making it.
    """
    folder, checkpoint = run / EXPORT, _checkpoint(run, which)
    if release is not None:
        with claimed(folder, EXPORTED):
            if not _is_of(folder, checkpoint):
                _export(run, folder, release, which, progress=progress, device=device)
    return load(folder, device)


def is_exported(run: Path, which: Which = "best") -> bool:
    """Whether RUN/export is there, and of this checkpoint."""
    return _is_of(run / EXPORT, _checkpoint(run, which))


def _is_of(folder: Path, checkpoint: Checkpoint) -> bool:
    try:
        found = json.loads((folder / CONFIG).read_text())
        return found["format"] == FORMAT and found["sha256"][WEIGHTS] == checkpoint.state["sha256"][MODEL]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checkpoint(run: Path, which: Which) -> Checkpoint:
    checkpoint, passed_over = find_checkpoint(run, which)
    if checkpoint is None:
        reasons = " ".join(passed_over) or f"it has no {which} checkpoint."
        raise ResumeError(f"run {run} cannot be exported: {reasons} Train it first, or take --checkpoint newest.")
    return checkpoint


def _describe(
    name: str,
    recipe: Recipe,
    model: SpectrumModel,
    release: Release,
    saved: dict[str, Any],
    checkpoint: Checkpoint,
    weights_sha256: str,
) -> Description:
    """The description before anything is calibrated."""
    grid = release.grid
    uncertainty: Uncertainty = "residuals"
    if isinstance(model, SpectrumSimulator):
        uncertainty = "none"
    elif model.uncertainty != "none":
        uncertainty = "head"
    elif isinstance(model, SemiSupervised) and model.variational:
        uncertainty = "spread"
    return Description(
        format=FORMAT,
        name=name,
        step=checkpoint.step,
        model=recipe.model.model_dump(mode="json"),
        grid=GridFacts(grid.name, grid.start, grid.length, grid.wave0_aa, STEP_AA, "air", "barycentric"),
        labels=(),
        levels=LEVELS,
        uncertainty=uncertainty,
        likelihood="laplace" if model.uncertainty == "laplace" else "gaussian",
        anomaly=None,
        snr_low=float("nan"),
        recipe_digest=recipe.digest,
        release_digest=saved["release_digest"],
        calibrated_on=release.digest,
        provenance={
            "git": saved.get("git"),
            "python": saved.get("python"),
            "versions": saved.get("versions"),
            "start_from": saved.get("start_from"),
            "validation_loss": checkpoint.validation_loss,
            "release": release.manifest.description,
            "genuine": release.manifest.genuine,
        },
        sha256={WEIGHTS: weights_sha256},
    )
