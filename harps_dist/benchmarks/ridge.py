"""What a network has to beat: ridge regression on principal components, from the same data as a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from harps_dist.config import Recipe
from harps_dist.data.batches import EvaluationBatches, TrainingBatches, in_batches
from harps_dist.data.observer import Observer
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.data.split import SplitName
from harps_dist.errors import ConfigError
from harps_dist.evaluation.measures import SpectraKind
from harps_dist.evaluation.metrics import group_scores, label_scores
from harps_dist.evaluation.predicting import origin_of
from harps_dist.evaluation.report import RIDGE, RIDGE_RUN, Report
from harps_dist.evaluation.terminal import console_table
from harps_dist.ownership import claimed
from harps_dist.runs.run import Run, label_scale
from harps_dist.spectra.labels import NAMES

BATCH = 32


@dataclass(frozen=True)
class ComponentRidge:
    """labels = (spectrum - mean) · components · coefficients + intercept.

    mean (L,), components (L, C), coefficients (C, K), intercept (K,); labels in physical units.
    """

    mean: Tensor
    components: Tensor
    coefficients: Tensor
    intercept: Tensor

    @classmethod
    def fit(cls, flux: Tensor, labels: Tensor, components: int = 64, penalty: float = 1e-3) -> ComponentRidge:
        """Fit on flux (n, L) and labels (n, K), NaN where missing, each label on the spectra that have it.

        penalty: on standardised components, relative to the number of spectra. Raises ConfigError for fewer spectra
        of a label than components.
        """
        known = torch.isfinite(labels)
        if (scarce := known.sum(0)).min() <= components:
            raise ConfigError(
                f"ridge regression on {components} components needs more spectra of every label than that, but one "
                f"has {int(scarce.min())}. Draw more spectra, or take fewer components."
            )
        mean = flux.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the algorithm starts at random
            *_, axes = torch.pca_lowrank(flux - mean, q=components, center=False, niter=4)
        scores = ((flux - mean) @ axes).double()
        spread = scores.std(0)
        coefficients, intercept = [], []
        for label, rows in zip(labels.T.double(), known.T, strict=True):
            x, offset = scores[rows] / spread, label[rows].mean()
            shift = x.mean(0)
            gram = (x - shift).T @ (x - shift) + penalty * len(x) * torch.eye(components, dtype=x.dtype)
            slope = torch.linalg.solve(gram, (x - shift).T @ (label[rows] - offset))
            coefficients.append(slope / spread)
            intercept.append(offset - shift @ slope)
        return cls(mean, axes, torch.stack(coefficients, 1), torch.stack(intercept))

    def predict(self, flux: Tensor) -> Tensor:
        """(n, L) standardised flux to (n, K) labels, float64."""
        return ((flux - self.mean) @ self.components).double() @ self.coefficients + self.intercept


def ridge_report(
    name: str,
    recipe: Recipe,
    release: Release,
    kind: SpectraKind,
    split: SplitName | Literal["all"] = "test",
    spectra: int = 8192,
    components: int = 64,
) -> Report:
    """Ridge regression in a run's place: fitted on the first `spectra` that the run was trained on, tried on the
    spectra that the run is evaluated on, noise and velocities included."""
    device, augment, seed = torch.device("cpu"), recipe.data.augment, recipe.training.seed
    observer = Observer(release.decoding, augment, device)
    order = Order(release.index, recipe.data.mix, seed, release.digest)
    training = TrainingBatches(release, order, recipe.data, seed, BATCH)
    valid = torch.from_numpy(np.flatnonzero(release.grid.valid))
    columns = [NAMES.index(label) for label in recipe.model.labels]

    flux, labels = torch.empty(spectra, len(valid)), torch.empty(spectra, len(columns), dtype=torch.float64)
    for step, first in enumerate(range(0, spectra, BATCH)):
        batch = observer(training[step])
        size = min(BATCH, spectra - first)
        flux[first : first + size] = batch.flux[:size, valid]
        labels[first : first + size] = batch.labels[:size, columns]
    ridge = ComponentRidge.fit(flux, labels, components)

    rows = release.index.rows(kind, split)
    batches = EvaluationBatches(release, in_batches(rows, BATCH), augment, seed)
    tried = [observer(batches[number]) for number in range(len(batches))]
    rows = torch.cat([batch.rows for batch in tried]).numpy()
    truth = torch.cat([batch.labels for batch in tried])[:, columns].numpy()
    predicted = torch.cat([ridge.predict(batch.flux[:, valid]) for batch in tried]).numpy()
    stars, (_, sigma) = release.index["star"][rows].astype(str), label_scale(release.manifest, augment)
    return Report(
        run=f"{RIDGE_RUN} on {components} components, data of {name}",
        step=spectra,
        release_digest=release.digest,
        split=split,
        origin=origin_of(kind, release),
        not_genuine=release.manifest.not_genuine,
        spectra=len(rows),
        stars=len(np.unique(stars)),
        labels=label_scores(truth, predicted, recipe.model.labels, sigma, stars),
        groups=group_scores(truth, predicted, recipe.model.labels, sigma, stars),
        notes=[release.manifest.description, f"Fitted on {spectra:,} spectra; the step is their number."],
    )


def ridge_instead_of(
    run: Path,
    release: Release,
    split: SplitName | Literal["all"],
    spectra: int,
    components: int,
    out: Path,
    console: Console,
) -> None:
    """Write and print the reports of ridge regression for every kind of spectrum that a run is evaluated on.

    Raises OutputError where `out` is something else, or another process writes into it.
    """
    opened = Run(run)
    name, recipe = opened.name, opened.recipe
    kinds: tuple[SpectraKind, ...] = ("real", "simulated")
    reports = []
    with claimed(out, RIDGE):
        for kind in kinds:
            tried = kind == "simulated" or recipe.data.mix.real > 0
            if tried and len(release.index.rows(kind, split)):
                report = ridge_report(name, recipe, release, kind, split, spectra, components)
                report.write(out / f"{split}-{kind}")
                reports.append(report)
    if reports:
        console.print(console_table(reports))
    console.print(f"Reports: {out}", soft_wrap=True)
