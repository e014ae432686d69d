"""From a run to a folder that anyone can use: weights, what they mean, how far to trust them, and a model card.

DIR/
  model.safetensors      the checkpoint's weights, byte for byte
  config.json            architecture, labels, grid, calibration; `description.Description`
  reference.safetensors  the training split in the latent space, and the model's usual misfit
  README.md              model card

Tested in tests/integration/test_exports.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, ExportError
from harps_dist.evaluation.measures import LEVELS
from harps_dist.files import publish_folder
from harps_dist.inference.calibrate import KINDS, HeldOut, Trial, calibrated_anomaly, calibrated_labels
from harps_dist.inference.card import model_card
from harps_dist.inference.description import (
    CARD,
    CONFIG,
    FORMAT,
    REFERENCE,
    WEIGHTS,
    Description,
    GridFacts,
    LabelFacts,
    Uncertainty,
    to_json,
)
from harps_dist.inference.model import Exported, load, read_description
from harps_dist.inference.precision import Precision
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ownership import OutputKind, check, claimed
from harps_dist.progress import Progress, silent
from harps_dist.runs.checkpoint import MODEL, Checkpoint
from harps_dist.runs.run import Run, SavedRun, Which

SPECTRA = 2048  # of a kind and split that calibrate, at most
SAMPLED_SPECTRA = 256  # that calibrate predictions by SAMPLES blankings, at most, as they take SAMPLES times as long
SAMPLES = 16
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
    progress: Progress = silent,
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
        return _export(Run(run), folder, release, which, spectra, progress, device)


def _export(
    run: Run,
    folder: Path,
    release: Release,
    which: Which,
    spectra: int = SPECTRA,
    progress: Progress = silent,
    device: torch.device | str = "cpu",
) -> Path:
    split = release.manifest.split_fractions, release.manifest.split_salt
    saved = run.saved
    if saved.split != split:
        raise ConfigError(
            f"run {run.path} was trained on stars split as {saved.split}, but the release splits them as {split}, "
            f"so that stars it has seen would calibrate it. Give a release that is split as the one it was trained on."
        )
    recipe, checkpoint, model = run.recipe, run.checkpoint(which), run.model(which, release.manifest)
    weights = (checkpoint.path / MODEL).read_bytes()
    description = _describe(saved, model, release, checkpoint, hashlib.sha256(weights).hexdigest())
    trial = Trial(Exported(description, model, device=device), recipe, release, spectra, progress)
    description = replace(description, labels=trial.label_facts(), snr_low=trial.low_snr())
    files, tests = {WEIGHTS: weights}, []
    if model.reads:
        held = HeldOut(release, tuple(part for kind in KINDS if (part := trial(kind, "validation")) is not None))
        if held.tried:
            description = replace(description, labels=calibrated_labels(description.labels, held))
            if description.blanked:
                exported = Exported(description, model, device=device)
                sampling = Trial(exported, recipe, release, min(spectra, SAMPLED_SPECTRA), progress, SAMPLES)
                description = replace(description, labels=_calibrated_samples(sampling, description.labels))
        if measured := calibrated_anomaly(trial, held):
            from safetensors.torch import save

            reference, anomaly = measured
            tensors = {key: value.cpu().contiguous() for key, value in reference.tensors().items()}
            files[REFERENCE], description = save(tensors), replace(description, anomaly=anomaly)
        tests = [(held, part) for kind in KINDS if (part := trial(kind, "test", reconstruct=False)) is not None]
    description = replace(
        description, sha256={key: hashlib.sha256(content).hexdigest() for key, content in files.items()}
    )
    with publish_folder(folder, lambda: check(folder, EXPORTED)) as aside:
        for key, content in files.items():
            (aside / key).write_bytes(content)
        (aside / CONFIG).write_text(to_json(description), encoding="utf-8")
        (aside / CARD).write_text(model_card(description, recipe, release, tests), encoding="utf-8")
        load(aside)  # what cannot be opened is not published
    return folder


def _calibrated_samples(sampling: Trial, labels: tuple[LabelFacts, ...]) -> tuple[LabelFacts, ...]:
    """The labels' facts with the factors of predictions by blanking."""
    tried = (sampling(kind, "validation", reconstruct=False) for kind in KINDS)
    held = HeldOut(sampling.release, tuple(part for part in tried if part is not None))
    sampled = calibrated_labels(labels, held)
    return tuple(replace(fact, sampled_factors=other.factors) for fact, other in zip(labels, sampled, strict=True))


def exported_run(
    run: Run,
    release: Release | None,
    which: Which = "best",
    progress: Progress = silent,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
) -> Exported:
    """The export of a run, RUN/export, made where it is missing or of another checkpoint.

    release: None takes what is there. Raises OutputError where another process is making it.
    """
    folder, checkpoint = run.path / EXPORT, run.checkpoint(which)
    if release is not None:
        with claimed(folder, EXPORTED):
            if not _is_of(folder, checkpoint):
                _export(run, folder, release, which, progress=progress, device=device)
    return load(folder, device, precision)


def is_exported(run: Run, which: Which = "best") -> bool:
    """Whether RUN/export is there, and of this checkpoint."""
    return _is_of(run.path / EXPORT, run.checkpoint(which))


def _is_of(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a folder is an export of these weights that can be opened; what else it holds is checked by `load`."""
    try:
        description = read_description(folder / CONFIG)
    except ExportError:
        return False
    return description.sha256.get(WEIGHTS) == checkpoint.state["sha256"][MODEL]


def _describe(
    saved: SavedRun,
    model: SpectrumModel,
    release: Release,
    checkpoint: Checkpoint,
    weights_sha256: str,
) -> Description:
    """The description before anything is calibrated."""
    grid = release.grid
    uncertainty: Uncertainty = "residuals"
    if not model.reads:
        uncertainty = "none"
    elif model.uncertainty != "none":
        uncertainty = "head"
    elif model.variational:
        uncertainty = "spread"
    return Description(
        format=FORMAT,
        name=saved.name,
        step=checkpoint.step,
        model=saved.recipe.model.model_dump(mode="json"),
        grid=GridFacts(
            name=grid.name,
            start=grid.start,
            length=grid.length,
            wave0_aa=grid.wave0_aa,
            step_aa=grid.step_aa,
            medium="air",
            frame="barycentric",
            instrument=grid.instrument.name,
        ),
        labels=(),
        levels=LEVELS,
        uncertainty=uncertainty,
        likelihood="laplace" if model.uncertainty == "laplace" else "gaussian",
        anomaly=None,
        snr_low=float("nan"),
        recipe_digest=saved.recipe_digest,
        release_digest=saved.release_digest,
        calibrated_on=release.digest,
        provenance={
            "git": saved.git,
            "python": saved.python,
            "versions": saved.versions,
            "start_from": saved.start_from,
            "validation_loss": checkpoint.validation_loss,
            "release": release.manifest.description,
            "genuine": release.manifest.genuine,
            "not_genuine": release.manifest.not_genuine,
            "trained_not_genuine": saved.not_genuine,
        },
        sha256={WEIGHTS: weights_sha256},
        blanked=saved.recipe.data.blanked,
    )
