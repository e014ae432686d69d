"""Evaluate a run: predict every sample of a split once, score, draw, and write it all beside the run.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from harps_dist.config import Recipe
from harps_dist.data.batches import EvaluationBatches, RawBatch, in_batches, load
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.data.split import SplitName
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.evaluation.calibration import Calibration, LabelPredictions, calibrate
from harps_dist.evaluation.calibration_report import calibration_figure
from harps_dist.evaluation.downstream import labels_from_latents
from harps_dist.evaluation.figures import intervention_figure, residual_figure, spectrum_figure
from harps_dist.evaluation.interventions import Interventions
from harps_dist.evaluation.metrics import (
    group_scores,
    label_scores,
    paper_comparable,
    reconstruction_mae,
)
from harps_dist.evaluation.printed import PAPER_ROWS
from harps_dist.evaluation.report import Measure, Origin, Report, origin_name
from harps_dist.files import atomic_write
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ownership import claimed, home
from harps_dist.ranks.world import World
from harps_dist.runs.run import Which, find_checkpoint, label_scale, load_run
from harps_dist.sealed import sealed, unsealed
from harps_dist.spectra.labels import INTRINSIC, LABEL, NAMES

Spectra = Literal["real", "simulated", "generative"]  # what a model can be tried on

EVALUATION = "evaluation"
RIDGE_RUN = "ridge regression"  # what the name of a run begins with, in whose place ridge regression was tried


def _has_reports(folder: Path, of_ridge: bool = False) -> bool:
    scores = [json.loads(path.read_text()) for path in folder.glob("*/scores.json")]
    ours = {"run", "step", "release_digest", "split", "origin"}
    return bool(scores) and all(ours <= one.keys() and one["run"].startswith(RIDGE_RUN) == of_ridge for one in scores)


EVALUATED = home("evaluation", "--out", _has_reports)
RIDGE = home("evaluation of ridge regression", "--out", lambda folder: _has_reports(folder, of_ridge=True))
BATCH = 16
STANDARD_DEVIATIONS = {"gaussian": 1.0, "laplace": 2.0**0.5}  # of a likelihood of unit scale
DOWNSTREAM_NOTE = (
    "The labels come from the latent means by ordinary least squares (Eq. 6), fitted on the training split, each "
    "latent with the labels of its own spectrum. The paper's public code joins them by a mismatched row index, so "
    "the printed Table 6 reads like predicting the mean label and may differ much."
)
FIGURE_WINDOW_AA = (6110.0, 6140.0)
FIGURE_INTERVENTIONS_KMS = (-20.0, 5.0, 20.0)


@dataclass
class Predictions:
    """Everything a model said of a set of samples; rows sorted as in the index.

    rows (n,); truth, labels (n, len(NAMES)) in physical units, NaN where missing or not predicted; nodes (n,
    bottleneck) latent means, without columns where the model has none; scores maps a measure's name to (n,) values, one
    a spectrum.
    """

    rows: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    nodes: np.ndarray
    scores: dict[str, np.ndarray]


class Evaluator:
    """A trained model, and the release to try it on."""

    def __init__(
        self, model: SpectrumModel, recipe: Recipe, release: Release, world: World, console: Console | None = None
    ):
        self.console = console or Console(quiet=True)
        self.model, self.recipe, self.release, self.world = (
            model.to(world.device).eval(),
            recipe,
            release,
            world,
        )
        augment = recipe.data.augment
        self.observer = Observer(release.decoding, augment, world.device)
        noise_free = augment.model_copy(update={"noise": False})
        self.interventions = Interventions(self.model, release, Observer(release.decoding, noise_free, world.device))
        self.valid = release.grid.valid

    @property
    def kinds(self) -> tuple[Spectra, ...]:
        """What this model can be tried on: a decoder alone needs every label, which real spectra do not have; on the
        generative set labels are intervened on, which takes an encoder, a decoder and supervised nodes."""
        if not self.model.reads:
            return ("simulated",)
        generative = self.model.draws and bool(self.model.labels)
        return ("real", "simulated", "generative") if generative else ("real", "simulated")

    @property
    def unsupervised(self) -> bool:
        """Whether the model has latent nodes, but none that is a label."""
        return bool(self.model.nodes) and not self.model.labels

    def origin(self, kind: Spectra) -> Origin:
        return origin_of(kind, self.release)

    def origin_name(self, kind: Spectra) -> str:
        """For titles."""
        return origin_name(self.origin(kind), self.release.manifest.not_genuine)

    def predict(self, rows: np.ndarray, what: str = "samples") -> Predictions:
        """Predict the given rows, shared among the ranks, each exactly once; every rank returns all of them.

        Raises Interrupted on all ranks where one was asked to stop.
        Generative ones are predicted subset by subset, since each is intervened on to the values of the others.
        """
        augment, seed, index = self.recipe.data.augment, self.recipe.training.seed, self.release.index
        if (index["varied"][rows] != "").any():
            subsets = index["star"][rows] + index["varied"][rows]
            parts = [rows[subsets == subset] for subset in np.unique(subsets)]
        else:
            parts = in_batches(rows, BATCH)
        batches = EvaluationBatches(self.release, parts[self.world.rank :: self.world.size], augment, seed)
        stream = load(batches, range(len(batches)), 0, self.world.device)
        stream = self.world.in_step(stream, -(-len(parts) // self.world.size))
        bar = track(stream, f"evaluate {what}", len(batches), console=self.console, disable=self.console.quiet)
        pieces = [self._predict_batch(raw) for raw in bar]
        pieces = [piece for of_rank in self.world.gather(pieces) for piece in of_rank]
        found = np.concatenate([piece.rows for piece in pieces])
        order = np.argsort(found)
        return Predictions(
            found[order],
            np.concatenate([piece.truth for piece in pieces])[order],
            np.concatenate([piece.labels for piece in pieces])[order],
            np.concatenate([piece.nodes for piece in pieces])[order],
            {
                name: np.concatenate([piece.scores[name] for piece in pieces])[order]
                for name in (pieces[0].scores if pieces else ())
            },
        )

    def predict_split(self, kind: Spectra, split: SplitName | Literal["all"]) -> Predictions:
        """Predict all samples of a kind and split. Where the model's nodes are unsupervised, labels come from least
        squares on their means, fitted on the training split (Eq. 6)."""
        index, origin = self.release.index, self.origin(kind)
        found = self.predict(index.rows(kind, split), f"{origin}, {split} split")
        if self.unsupervised:
            trained = self.predict(index.rows(kind, "train"), f"{origin}, training split")
            found.labels = labels_from_latents(trained.nodes, trained.truth, found.nodes)
        return found

    @torch.no_grad()
    def _predict_batch(self, raw: RawBatch) -> Predictions:
        batch = self.observer(raw)
        output = self.model(batch)
        labels = np.full(batch.labels.shape, np.nan)
        if output.labels is not None:
            labels[:, self.model.columns] = self.model.physical(output.labels).cpu().numpy()
        scores = {}
        if output.log_scale is not None:
            deviation = torch.exp(output.log_scale) * STANDARD_DEVIATIONS[self.model.uncertainty]
            for name, column in zip(self.model.labels, (deviation * self.model.label_std).T, strict=True):
                scores[f"{name}_sigma"] = column.cpu().numpy()
        if output.reconstruction is not None:
            observed, reconstructed = batch.flux.cpu().numpy(), output.reconstruction.cpu().numpy()
            scores["MAE'"] = reconstruction_mae(observed, reconstructed, self.valid)
            varied = self.release.index["varied"][int(raw.rows[0])]
            if output.nodes is not None and varied in self.model.labels:
                scores |= self.interventions.label_scores(raw, output.nodes, varied)
            elif output.nodes is not None and "rv" in self.model.labels:
                scores |= self.interventions.rv_scores(raw, output.nodes, output.reconstruction)
        nodes = output.nodes if output.nodes is not None else batch.labels[:, :0]
        return Predictions(
            batch.rows.cpu().numpy(), batch.labels.cpu().numpy(), labels, nodes.double().cpu().numpy(), scores
        )

    @torch.no_grad()
    def figures(self, row: int, folder: Path) -> dict[str, Path]:
        """Spectrum with reconstruction and RV intervention of one sample, where the model reconstructs."""
        augment, seed = self.recipe.data.augment, self.recipe.training.seed
        raw = EvaluationBatches(self.release, [np.array([row])], augment, seed)[0].to(self.world.device)
        batch = self.observer(raw)
        output = self.model(batch)
        if output.reconstruction is None:
            return {}
        reconstructed = output.reconstruction[0].cpu().numpy()
        path = folder / "spectrum.png"
        index, wave_aa = self.release.index, self.release.grid.wave_aa
        title = f"{index['object'][row]}, S/N {index['snr'][row]:.0f}, {self.origin_name(index['kind'][row])}"
        hide = np.where(self.valid, 0.0, np.nan)
        observed = batch.flux[0].cpu().numpy()
        spectrum_figure(path, wave_aa, observed + hide, reconstructed + hide, title)
        columns = {"wave_aa": wave_aa, "observed": observed + hide, "reconstructed": reconstructed + hide}
        _write_table(folder / "spectrum.parquet", columns)
        drawn = {"Spectrum and reconstruction": path}
        window = self.release.grid.wave_slice(*FIGURE_WINDOW_AA)
        if output.labels is not None and "rv" in self.model.labels and window.stop - window.start > 100:
            nodes, curves = self.model.encode(batch.flux).mean, {}
            for dv_kms in FIGURE_INTERVENTIONS_KMS:
                shifted = self.interventions.shifted(output.reconstruction, dv_kms)
                due = self.interventions.simulate_at(raw, dv_kms) if len(raw.sed) else shifted
                curves[dv_kms] = self.interventions.decode_at(nodes, dv_kms)[0, window], due[0, window]
            path = folder / "rv_intervention.png"
            intervention_figure(path, wave_aa[window], reconstructed[window], curves, "rv", "km/s")
            drawn["Intervention on the radial velocity"] = path
        return drawn

    @torch.no_grad()
    def generative_figures(self, rows: np.ndarray, folder: Path) -> dict[str, Path]:
        """What interventions on the labels of one core do, beside the simulator: to the least, middle and largest value
        from the one next to the middle."""
        index, grid, drawn = self.release.index, self.release.grid, {}
        augment, seed = self.recipe.data.augment, self.recipe.training.seed
        window = grid.wave_slice(*FIGURE_WINDOW_AA)
        if window.stop - window.start <= 100:
            return {}
        for label in filter(self.model.labels.__contains__, INTRINSIC):
            subset = rows[(index["star"][rows] == index["star"][rows[0]]) & (index["varied"][rows] == label)]
            subset = subset[np.argsort(index[label][subset])]
            if len(subset) < 3:
                continue
            raw = EvaluationBatches(self.release, [subset], augment, seed)[0].to(self.world.device)
            values, truth = index[label][subset], self.interventions.simulate_at(raw, 0.0)
            start = len(subset) // 2 + 1
            nodes, curves = self.model(self.observer(raw)).nodes[start : start + 1], {}
            for number in (0, len(subset) // 2, len(subset) - 1):
                change = float(values[number] - values[start])
                decoded = self.interventions.decode_at(nodes, change, label)
                curves[round(change, 2)] = decoded[0, window], truth[number, window]
            base = self.interventions.decode_at(nodes, 0.0, label)[0, window]
            path = folder / f"{label}_intervention.png"
            intervention_figure(path, grid.wave_aa[window], base, curves, label, LABEL[label].unit)
            drawn[f"Interventions on {label}"] = path
        return drawn


def origin_of(kind: Spectra, release: Release) -> Origin:
    """What reports call this kind: spectra whose files say that they are simulated are never passed off as real."""
    return "observed-like" if kind == "real" and not release.manifest.genuine else kind


def evaluate_run(
    run: Path,
    release: Release,
    split: SplitName | Literal["all"],
    out: Path,
    world: World,
    console: Console,
    which: Which = "newest",
) -> dict[Path, Report]:
    """Evaluate a run's newest or best checkpoint on every kind of spectrum; folder out/SPLIT-KIND to its report, on the
    main rank. Raises OutputError, on all ranks, where `out` is something else or another process evaluates into it."""
    with world.claiming(lambda: claimed(out, EVALUATED)):
        name, recipe, model, step = load_run(run, release.manifest, which)
        evaluator = Evaluator(model, recipe, release, world, console)
        folders = {kind: out / f"{split}-{kind}" for kind in evaluator.kinds}
        reports = {folder: evaluate(evaluator, name, step, kind, split, folder) for kind, folder in folders.items()}
        if world.is_main:
            with atomic_write(out / f"{split}.json") as aside:
                aside.write_text(json.dumps(sealed({"step": step, "release_digest": release.digest})) + "\n")
    return {folder: report for folder, report in reports.items() if report}


def is_evaluated(run: Path, release: Release, split: SplitName | Literal["all"]) -> bool:
    """Whether a run's newest checkpoint has been evaluated on every kind of spectrum of this release.

    A run without a checkpoint that is whole has not: it is trained on first.
    """
    path = run / EVALUATION / f"{split}.json"
    try:
        checkpoint = find_checkpoint(run, "newest")
        found = unsealed(json.loads(path.read_text(encoding="utf-8")), required=False)
    except (ConfigError, ResumeError, OSError, ValueError):
        return False
    return found == {"step": checkpoint.step, "release_digest": release.digest}


def evaluate(
    evaluator: Evaluator, name: str, step: int, kind: Spectra, split: SplitName | Literal["all"], folder: Path
) -> Report | None:
    """Evaluate one kind and split into `folder`; None where the release has no such sample, or on other ranks."""
    release = evaluator.release
    if not len(release.index.rows(kind, split)):
        return None
    found = evaluator.predict_split(kind, split)
    notes = [release.manifest.description] if release.manifest.description else []
    if evaluator.unsupervised:
        notes.append(DOWNSTREAM_NOTE)
    calibrations = _calibrate(evaluator, kind, found)
    if not evaluator.world.is_main:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    stars = release.index["star"][found.rows].astype(str)
    columns = np.flatnonzero(np.isfinite(found.labels).any(axis=0)).tolist()
    known = [NAMES[column] for column in columns]
    truth, labels = found.truth[:, columns], found.labels[:, columns]
    _, sigma = label_scale(release.manifest, evaluator.recipe.data.augment)
    sigma |= dict(zip(evaluator.model.labels, evaluator.model.label_std.tolist(), strict=True))
    write_predictions(folder / "predictions.parquet", release, found)
    figures = {}
    if calibrations:
        figures["Calibration of the uncertainties"] = folder / "calibration.png"
        calibration_figure(figures["Calibration of the uncertainties"], calibrations)
    if known:
        figures["Residuals by label"] = folder / "residuals.png"
        residual_figure(
            figures["Residuals by label"], truth, labels, known, f"{evaluator.origin_name(kind)}, {split} split"
        )
    if kind == "generative":
        figures |= evaluator.generative_figures(found.rows, folder)
    else:
        brightest = found.rows[np.argmax(np.nan_to_num(release.index["snr"][found.rows]))]
        figures |= evaluator.figures(int(brightest), folder)
    row = name.removeprefix("demo-")
    report = Report(
        run=name,
        step=step,
        release_digest=release.digest,
        split=split,
        origin=evaluator.origin(kind),
        not_genuine=release.manifest.not_genuine,
        spectra=len(found.rows),
        stars=len(np.unique(stars)),
        labels=label_scores(truth, labels, known, sigma, stars),
        groups=group_scores(truth, labels, known, sigma, stars) if known else (),
        measures=_measures(found, release.index["varied"][found.rows], stars, float(evaluator.valid.mean())),
        calibrations=calibrations,
        paper_row=row if row in PAPER_ROWS else None,
        figures=figures,
        notes=notes,
    )
    report.write(folder)
    return report


def _calibrate(evaluator: Evaluator, kind: Spectra, found: Predictions) -> list[Calibration]:
    """Calibration of every label that has an uncertainty; the validation split corrects it. Every rank takes part."""
    likelihood, index = evaluator.model.uncertainty, evaluator.release.index
    rows = index.rows(kind, "validation")
    if likelihood == "none" or not len(rows):
        return []
    held_out = evaluator.predict(rows, f"{evaluator.origin(kind)}, validation split")

    def of_label(name: str, predictions: Predictions) -> LabelPredictions:
        column, rows = NAMES.index(name), predictions.rows
        return LabelPredictions(
            truth=predictions.truth[:, column],
            predicted=predictions.labels[:, column],
            sigma=predictions.scores[f"{name}_sigma"],
            stars=index["star"][rows].astype(str),
            snr=index["snr"][rows],
            teff_k=predictions.truth[:, NAMES.index("teff")],
        )

    labels = [name for name in evaluator.model.labels if np.isfinite(of_label(name, found).truth).any()]
    return [calibrate(name, of_label(name, found), of_label(name, held_out), likelihood) for name in labels]


def _measures(found: Predictions, varied: np.ndarray, stars: np.ndarray, valid: float) -> list[Measure]:
    """The mean of every score; of those of the generative set by the label that was varied."""
    measures = []
    for name, values in found.scores.items():
        if name == "MAE'":
            comparable = paper_comparable(values, valid)
            measures.append(Measure.of(name, values, stars))
            measures.append(Measure.of("MAE' (paper-comparable)", comparable, stars, "masked zeros averaged in"))
        elif (varied != "").any():
            of_label = {label: varied == label for label in INTRINSIC}
            measures += [Measure.of(f"{name} {key}", values[rows], stars[rows]) for key, rows in of_label.items()]
        elif not name.endswith("_sigma"):
            measures.append(Measure.of(name, values, stars))
    return measures


Writing = Callable[[Path], AbstractContextManager[Path]]  # such as `atomic_write`


def write_predictions(path: Path, release: Release, found: Predictions, writing: Writing = atomic_write) -> None:
    """One row a sample: key, object, star, split, S/N, true and predicted labels, scores."""
    index = release.index
    columns = {name: index[name][found.rows] for name in ("key", "object", "star", "split", "snr", "varied")}
    columns |= {f"{name}_true": found.truth[:, number] for number, name in enumerate(NAMES)}
    columns |= {name: found.labels[:, number] for number, name in enumerate(NAMES)}
    _write_table(path, columns | found.scores, writing)


def _write_table(path: Path, columns: dict[str, np.ndarray], writing: Writing = atomic_write) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with writing(path) as aside:
        pq.write_table(pa.table(columns), aside)
