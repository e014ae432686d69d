"""A new model against an old one: both predict the same spectra of one release, and every error is compared by star."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console

from harps_dist.benchmarks.inference_speed import speed_ratio
from harps_dist.columns import read_columns
from harps_dist.data.augment import Augment
from harps_dist.data.manifest import Index
from harps_dist.data.reader import Release
from harps_dist.data.split import SplitName
from harps_dist.errors import ConfigError
from harps_dist.evaluation.calibration import LabelPredictions, conformal_factor, half_width, inside
from harps_dist.evaluation.evaluate import write_predictions
from harps_dist.evaluation.measures import LEVELS, coverage_name, label_measure
from harps_dist.evaluation.predicting import Evaluator, Predictions
from harps_dist.evaluation.scoring import DOWNSTREAM_NOTE
from harps_dist.frozen import Frozen
from harps_dist.ownership import check, claimed
from harps_dist.promotion.arrivals import arrived_rows, surprises
from harps_dist.promotion.comparison import COMPARED, KINDS, Comparison, Entry, SpectraKind, Surprise, read_comparison
from harps_dist.promotion.comparison_report import write_report
from harps_dist.promotion.entries import Columns, Errors, Spectra, entries_of, errors_of
from harps_dist.ranks.world import World
from harps_dist.runs.identity import ID_LENGTH, ReleaseIdentity, TrainedModel
from harps_dist.runs.run import Run, Which, git_revision
from harps_dist.sealed import find_sealed, sealed_write
from harps_dist.spectra.labels import NAMES

PREDICTIONS = "predictions"
Split = SplitName | Literal["all"]


def compare_runs(
    new: Path,
    old: Path | None,
    release: Release,
    split: Split,
    out: Path,
    world: World,
    console: Console,
    which: tuple[Which, Which] = ("newest", "newest"),
) -> Comparison:
    """Compare two runs' newest or best checkpoints on every kind of spectrum that either can be tried on, and write
    comparison.json, comparison.md and figures into `out`; without an old run there is nothing to compare with, and the
    new model's own figures are written.

    What was predicted stays in out/predictions and is not predicted again; nor is a comparison made again. For spectra
    that are simulated on the way, both models get the new one's augmentation and seed. Raises Interrupted on all ranks
    where one was asked to stop, ConfigError for a grid that a model was not trained on, OutputError where `out` is
    something else or another process compares into it.
    """
    world.of_main(lambda: check(out, COMPARED))
    runs = [run for run in (new, old) if run]
    identities = [Run(run).identity(chosen) for run, chosen in zip(runs, which, strict=False)]
    recipe = Run(new).recipe
    conditions = Conditions(augment=recipe.data.augment, seed=recipe.training.seed)
    done = world.gather(_finished(out, identities, release, split, conditions))[0]
    if done:
        return done
    for run in runs:
        _check_split(run, release, split)
    with world.claiming(lambda: claimed(out, COMPARED)):
        return _compare(runs, identities, conditions, release, split, out, world, console)


def _compare(
    runs: list[Path],
    identities: list[TrainedModel],
    conditions: Conditions,
    release: Release,
    split: Split,
    out: Path,
    world: World,
    console: Console,
) -> Comparison:
    tried = [
        ComparedModel(
            _evaluator(run, identity, conditions, release, world, console),
            identity,
            conditions,
            split,
            out / PREDICTIONS,
        )
        for run, identity in zip(runs, identities, strict=True)
    ]
    entries: list[Entry] = []
    for kind in KINDS:
        tables = [model.tables(kind) for model in tried]
        known = next((table.tried for table in tables if table), None)
        if known and world.is_main:
            spectra = _spectra(release, kind, split, known)
            errors = [model.errors(kind, spectra, table) for model, table in zip(tried, tables, strict=True)]
            entries += entries_of(kind, spectra, errors[0], errors[1] if len(runs) > 1 else None)
    surprising = tried[1].surprises() if len(runs) > 1 else []
    world.check()
    made = None
    if world.is_main:
        models = [model.evaluator.model for model in tried]
        made = Comparison(
            new=identities[0],
            old=identities[1] if len(runs) > 1 else None,
            release=ReleaseIdentity.of(release.manifest),
            split=split,
            conditions=conditions.model_dump(mode="json"),
            entries=tuple(entries),
            surprises=tuple(surprising),
            speed=speed_ratio(models[0], models[1] if len(runs) > 1 else None, release.grid, world.device),
            notes=tuple(_notes(tried, release)),
            git=git_revision(),
        )
        write_report(made, out)
        made.write(out)
    return world.gather(made)[0]


class Conditions(Frozen):
    """What is drawn for spectra that are simulated on the way."""

    augment: Augment
    seed: int


class Tables(NamedTuple):
    """Predictions, one row a spectrum in the order of the index: of the spectra that models are compared on, and of the
    validation split, where uncertainties are predicted that it corrects."""

    tried: Columns
    held_out: Columns | None


class ComparedModel:
    """One of the models, and what it says of each kind of spectra."""

    def __init__(
        self, evaluator: Evaluator, identity: TrainedModel, conditions: Conditions, split: Split, folder: Path
    ):
        self.evaluator, self.identity, self.conditions = evaluator, identity, conditions
        self.split, self.folder = split, folder

    def tables(self, kind: SpectraKind) -> Tables | None:
        """What the model says of a kind; None where it cannot be tried on that, or the release has no such spectra. All
        ranks take part."""
        rows = self.evaluator.release.index.rows
        if kind not in self.evaluator.kinds or not len(rows(kind, self.split)):
            return None
        corrected = self.evaluator.model.uncertainty != "none" and len(rows(kind, "validation")) > 0
        return Tables(self._table(kind, self.split), self._table(kind, "validation") if corrected else None)

    def _table(self, kind: SpectraKind, split: Split) -> Columns:
        """Predictions that are on disk, or are made now."""
        return self._kept(f"{split}-{kind}", lambda: self.evaluator.predict_split(kind, split))

    def _kept(self, what: str, predict: Callable[[], Predictions]) -> Columns:
        evaluator, release = self.evaluator, self.evaluator.release
        content = json.dumps([release.digest, self.conditions.model_dump(mode="json")], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:ID_LENGTH]
        path = self.folder / f"{self.identity.id}-{digest}-{what}.parquet"
        kept = evaluator.world.of_main(lambda: find_sealed(path))
        if kept is None:
            predictions = predict()
            if evaluator.world.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_predictions(path, release, predictions, sealed_write)
            kept = evaluator.world.of_main(lambda: find_sealed(path))
        return (read_columns(kept) if kept else None) or {}

    def surprises(self) -> list[Surprise]:
        """How this model, the old one, fares on what has arrived since it was trained. All ranks take part."""
        evaluator, release = self.evaluator, self.evaluator.release
        rows = arrived_rows(release.index, release.manifest, self.identity.release_digest)
        if "real" not in evaluator.kinds or not evaluator.model.labels or not len(rows):
            return []
        tested = self._table("real", "test")
        arrived = self._kept("arrived-real", lambda: evaluator.predict(rows, "what has arrived"))
        before = ~np.isin(tested["key"].astype(str), release.index["key"][rows].astype(str))
        frozen = {name: column[before] for name, column in tested.items()}
        return surprises(evaluator.model.labels, frozen, arrived)

    def errors(self, kind: SpectraKind, spectra: Spectra, tables: Tables | None) -> dict[str, Errors]:
        """All measures that the model has on a kind of spectra."""
        if tables is None:
            return {}
        inside = self._inside(kind, tables) if tables.held_out else {}
        return errors_of(spectra, self._labels(tables.tried), tables.tried, inside)

    def _labels(self, table: Columns) -> tuple[str, ...]:
        """What the model predicts: its supervised nodes, or what could be fitted on unsupervised ones."""
        if not self.evaluator.model.reads:
            return ()
        fitted = tuple(name for name in NAMES if np.isfinite(table[name]).any())
        return fitted if self.evaluator.unsupervised else self.evaluator.model.labels

    def _inside(self, kind: SpectraKind, tables: Tables) -> dict[str, np.ndarray]:
        """Whether each truth lies within the predicted interval, by coverage and label; the corrected ones too, where
        the validation split has enough stars for them."""
        likelihood, inside_interval = self.evaluator.model.uncertainty, {}
        assert likelihood != "none"
        for name in self.evaluator.model.labels:
            tried, held_out = (_of_label(name, table) for table in tables if table)
            known = held_out.known
            for level in LEVELS:
                raw = label_measure(coverage_name(level), name)
                inside_interval[raw] = inside(tried, half_width(level, likelihood))
                factor = conformal_factor(known.deviations, known.stars, level)
                if np.isfinite(factor):
                    corrected = label_measure(coverage_name(level, conformal=True), name)
                    inside_interval[corrected] = inside(tried, factor)
        return inside_interval


def _of_label(name: str, table: Columns) -> LabelPredictions:
    columns = (f"{name}_true", name, f"{name}_sigma", "star", "snr", "teff_true")
    truth, predicted, sigma, stars, snr, teff_k = (table[column] for column in columns)
    return LabelPredictions(truth, predicted, sigma, stars.astype(str), snr, teff_k)


def _finished(
    out: Path, identities: list[TrainedModel], release: Release, split: Split, conditions: Conditions
) -> Comparison | None:
    """The comparison in `out`, where it is the one that is asked for; None where it is another or there is none."""
    try:
        finished = read_comparison(out)
    except ConfigError:
        return None
    asked = ([model.id for model in identities], release.digest, split, conditions.model_dump(mode="json"))
    models = [model.id for model in (finished.new, finished.old) if model]
    made_of = (models, finished.release.digest, finished.split, finished.conditions)
    return finished if made_of == asked else None


def _check_split(run: Path, release: Release, split: Split) -> None:
    """Raises ConfigError where the run may have been trained on stars of this split."""
    trained, now = Run(run).saved.split, (release.manifest.split_fractions, release.manifest.split_salt)
    if split != "all" and trained != now:
        raise ConfigError(
            f"run {run} was trained with stars split as {trained}, but {release.location} splits them as {now}, so "
            f"that it may have been trained on stars of the {split} split. Give a release that grew from the run's own."
        )


def _evaluator(
    run: Path, identity: TrainedModel, conditions: Conditions, release: Release, world: World, console: Console
) -> Evaluator:
    """A model to be tried under the conditions, whatever it was trained under."""
    opened = Run(run)
    model, recipe = opened.model(identity.checkpoint, release.manifest), opened.recipe
    if opened.checkpoint(identity.checkpoint).step != identity.step:
        raise ConfigError(f"run {run} went on while it was compared. Give the same command again.")
    recipe = recipe.changed(data={"augment": conditions.augment}, training={"seed": conditions.seed})
    return Evaluator(model, recipe, release, world, console)


def _spectra(release: Release, kind: SpectraKind, split: Split, table: Columns) -> Spectra:
    index, rows = release.index, release.index.rows(kind, split)
    return Spectra(
        stars=index["star"][rows].astype(str),
        new_star=new_stars(index, release.manifest.generation)[rows],
        snr=index["snr"][rows],
        mjd=index["mjd"][rows],
        varied=index["varied"][rows].astype(str),
        truth={name: table[f"{name}_true"] for name in NAMES},
        changes_mjd=release.grid.instrument.changes_mjd,
    )


def new_stars(index: Index, newest: int) -> np.ndarray:
    """(row,) whether the star of each row was first seen in the newest generation of releases, none in a release that
    did not grow. A new visit to an old star is none."""
    _, star = np.unique(index["star"].astype(str), return_inverse=True)
    first = np.full(star.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, star, index["generation"].astype(np.int64))
    return (first[star] == newest) & (newest > 0)


def _notes(tried: list[ComparedModel], release: Release) -> Iterator[str]:
    """What a reader should know."""
    manifest, recipes = release.manifest, [Run(Path(model.identity.run)).recipe for model in tried]
    if manifest.description:
        yield manifest.description
    if any(recipe.data.augment != recipes[0].data.augment for recipe in recipes):
        yield "The models were trained under different augmentations; both were tried under the new one's."
    if len(tried) > 1 and tried[1].identity.release_digest not in (manifest.digest, manifest.parent):
        yield (
            f"The old model was trained on release {tried[1].identity.release_digest[:12]}, which is neither this one "
            f"nor its parent: frozen stars are those of the parent, whether the old model's release held them or not."
        )
    if any(model.evaluator.unsupervised for model in tried):
        yield DOWNSTREAM_NOTE
