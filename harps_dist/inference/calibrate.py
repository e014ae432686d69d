"""What makes a model's uncertainties and anomaly scores honest: measured on the validation split, kept with the export.

Everything is measured with the very code that predicts: `Exported.raw`.

Tested in tests/integration/test_exports.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.config import Recipe
from harps_dist.data.batches import EvaluationBatches, in_batches, load
from harps_dist.data.keyed import permutation
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.data.split import SplitName
from harps_dist.evaluation.calibration import LabelPredictions, conformal_factor
from harps_dist.evaluation.measures import LEVELS, SpectraKind
from harps_dist.evaluation.predicting import origin_of
from harps_dist.inference.anomaly import LatentGaussian, Likeness, Misfit, Reference, leading_axes
from harps_dist.inference.description import AnomalyFacts, LabelFacts
from harps_dist.inference.model import BATCH, Exported
from harps_dist.progress import Progress, silent
from harps_dist.spectra.labels import LABEL, NAMES
from harps_dist.spectra.noise import photon_noise

KINDS: tuple[SpectraKind, ...] = ("real", "simulated")
FALSE_ALARMS = 0.01
LOW_SNR_SHARE = 0.01


def stars_needed(level: float) -> int:
    """The fewest stars that calibrate an interval of this level, see `conformal_factor`."""
    return int(np.ceil(level / (1 - level) - 1e-9))


class SplitPredictions(NamedTuple):
    """What a model says of one kind and split. Arrays of NumPy, but for features and fingerprints (n, d) and misfit.

    truth, labels, sigma: (n, K) physical, truth NaN where missing, sigma without columns where the model has none.
    """

    kind: SpectraKind
    stars: np.ndarray
    snr: np.ndarray
    teff_k: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    sigma: np.ndarray
    features: Tensor
    misfit: Misfit | None
    fingerprints: Tensor | None = None

    def of_label(self, column: int, scale: float) -> LabelPredictions:
        """One label of the spectra; scale: standard deviation where the model has none of its own."""
        sigma = self.sigma[:, column] if self.sigma.shape[1] else np.full(len(self.labels), scale)
        truth, labels = self.truth[:, column], self.labels[:, column]
        return LabelPredictions(truth, labels, sigma, self.stars, self.snr, self.teff_k)


class Trial:
    """An uncalibrated model and the release to try it on. most: spectra of a kind and split, chosen by their key.
    samples: of blankings that it predicts by, 0 for none."""

    def __init__(
        self,
        exported: Exported,
        recipe: Recipe,
        release: Release,
        most: int,
        progress: Progress = silent,
        samples: int = 0,
    ):
        self.samples = samples
        self.exported, self.recipe, self.release, self.most, self.progress = exported, recipe, release, most, progress
        self.observer = Observer(release.decoding, recipe.data.augment, exported.device)

    @property
    def trained_on(self) -> tuple[SpectraKind, ...]:
        """Kinds of spectra that the recipe trains on."""
        mix = self.recipe.data.mix
        return tuple(kind for kind, weight in zip(KINDS, (mix.real, mix.simulated), strict=True) if weight > 0)

    def label_facts(self) -> tuple[LabelFacts, ...]:
        """Facts of the labels before calibration: scale of the outputs, and the range that training saw."""
        augment, model, nan = self.recipe.data.augment, self.exported.model, float("nan")
        drawn = {"rv": augment.rv_kms, "berv": augment.berv_kms} if "simulated" in self.trained_on else {}
        facts = []
        for name, mean, std in zip(model.labels, model.label_mean.tolist(), model.label_std.tolist(), strict=True):
            seen = self.release.index.labels[self._training_rows, NAMES.index(name)]
            limits = [drawn[name], -drawn[name]] if drawn.get(name) else []
            seen = np.concatenate([seen[~np.isnan(seen)], limits])
            low, high = (float(seen.min()), float(seen.max())) if len(seen) else (nan, nan)
            factors = (float("inf"),) * len(LEVELS)
            facts.append(LabelFacts(name, LABEL[name].unit, mean, std, low, high, nan, factors, "", 0, 0))
        return tuple(facts)

    def low_snr(self) -> float:
        """S/N that 99 % of the training spectra exceed; NaN where none is known."""
        known = self.release.index["snr"][self._training_rows].astype(np.float64)
        known = known[~np.isnan(known)]
        return float(np.quantile(known, LOW_SNR_SHARE)) if len(known) else float("nan")

    @property
    def _training_rows(self) -> np.ndarray:
        return np.concatenate([self.release.index.rows(kind, "train") for kind in self.trained_on])

    def rows(self, kind: SpectraKind, split: SplitName) -> np.ndarray:
        """Rows of the index to be tried, `most` of them."""
        rows = self.release.index.rows(kind, split)
        return np.sort(rows[permutation(len(rows), "export", kind, split)[: self.most]])

    @torch.inference_mode()
    def __call__(self, kind: SpectraKind, split: SplitName, reconstruct: bool = True) -> SplitPredictions | None:
        """Try the model on a kind and split; None where the release has no such spectrum."""
        exported, index, release = self.exported, self.release.index, self.release
        rows = self.rows(kind, split)
        if not len(rows):
            return None
        augment, valid = self.recipe.data.augment, release.grid.valid
        batches = EvaluationBatches(release, in_batches(rows, BATCH), augment, self.recipe.training.seed)
        predicted, features, misfits, truth, order, fingerprints = [], [], [], [], [], []
        what = f"{origin_of(kind, release)}, {split} split"
        self.progress(what, 0, len(batches))
        for number, raw in enumerate(load(batches, range(len(batches)), 0, exported.device)):
            batch, noise = self.observer(raw), None
            if reconstruct and exported.reconstructs:
                chunks = np.array([photon_noise(flux) for flux in batch.flux.cpu().numpy()[:, valid]])
                noise = torch.from_numpy(chunks).to(exported.device)
            said = exported.raw(batch.flux, noise)
            if self.samples:
                said = exported.sampled(said, batch.flux, self.samples)
            sigma = np.empty((len(batch.rows), 0)) if said.sigma is None else said.sigma.cpu().numpy()
            predicted.append((said.labels.double().cpu().numpy(), sigma))
            features.append(said.features)
            fingerprints.append(said.fingerprint)
            misfits.append(said.misfit)
            truth.append(batch.labels.cpu().numpy()[:, exported.model.columns])
            order.append(batch.rows.cpu().numpy())
            self.progress(what, number + 1, len(batches))
        rows = np.concatenate(order)
        labels, sigma = (np.concatenate(parts) for parts in zip(*predicted, strict=True))
        measured = [part for part in misfits if part is not None]
        return SplitPredictions(
            kind=kind,
            stars=index["star"][rows].astype(str),
            snr=index["snr"][rows].astype(np.float64),
            teff_k=index["teff"][rows].astype(np.float64),
            truth=np.concatenate(truth),
            labels=labels,
            sigma=sigma,
            features=torch.cat(features),
            misfit=Misfit(*(torch.cat(parts) for parts in zip(*measured, strict=True))) if measured else None,
            fingerprints=torch.cat(fingerprints),
        )


@dataclass(frozen=True)
class HeldOut:
    """The validation split as the model sees it, by kind."""

    release: Release
    tried: tuple[SplitPredictions, ...]

    def of_label(self, column: int) -> SplitPredictions:
        """The kind that calibrates a label: real spectra if enough stars have it, else that with more stars."""

        def stars(part: SplitPredictions) -> int:
            return len(np.unique(part.stars[~np.isnan(part.truth[:, column])]))

        first, most = self.tried[0], max(self.tried, key=stars)
        return first if stars(first) >= stars_needed(max(LEVELS)) else most


def calibrated_labels(facts: tuple[LabelFacts, ...], held: HeldOut) -> tuple[LabelFacts, ...]:
    """The labels' facts with scale and conformal factors."""
    calibrated = []
    for column, fact in enumerate(facts):
        tried = held.of_label(column)
        known = tried.of_label(column, 1.0).known
        scale = float("nan")
        if not tried.sigma.shape[1] and len(known.truth):
            scale = float(np.sqrt(np.mean((known.predicted - known.truth) ** 2)))
            known = tried.of_label(column, scale).known
        factors = [conformal_factor(known.deviations, known.stars, level) for level in LEVELS]
        calibrated.append(
            replace(
                fact,
                scale=scale,
                factors=tuple(factors),
                calibrated_on=origin_of(tried.kind, held.release),
                stars=len(np.unique(known.stars)),
                spectra=len(known.truth),
            )
        )
    return tuple(calibrated)


def calibrated_anomaly(trial: Trial, held: HeldOut) -> tuple[Reference, AnomalyFacts] | None:
    """The Gaussian of the training split's features and the score's calibration; None for fewer than two spectra.

    Features, not the bottleneck's nodes: nodes keep what labels and spectra need, and what is strange is lost on them.
    What counts is the fingerprint where there is one: a genuine spectrum may have the features of a simulated one as
    their means, but not the same shares of its stretches in the labels, nor lines of the same depths and widths.
    Real validation spectra calibrate where there are enough stars of them, else all kinds that were trained on.
    """
    trained = [trial(kind, "train", reconstruct=False) for kind in trial.trained_on]
    features = torch.cat([part.features for part in trained if part is not None] or [torch.empty(0, 1)])
    parts = [part for part in held.tried if part.kind in trial.trained_on]
    if len(features) < 2 or not parts:
        return None
    if len(np.unique(parts[0].stars)) >= stars_needed(1 - FALSE_ALARMS):
        parts = parts[:1]
    gaussian = LatentGaussian.fit(features)
    distance = torch.cat([gaussian.distance(part.features) for part in parts]).cpu().numpy()
    stars = np.concatenate([part.stars for part in parts])
    distance_scale, excess_scale = float(np.quantile(distance, 1 - FALSE_ALARMS)), float("nan")
    score, systematic = distance / distance_scale, torch.empty(0, dtype=torch.float64)
    likeness, likeness_scale = None, 0.0
    known = [part.fingerprints for part in trained if part is not None and part.fingerprints is not None]
    tried = [part.fingerprints for part in parts if part.fingerprints is not None]
    if known and len(tried) == len(parts):
        likeness = Likeness.fit(torch.cat(known))
        distance = likeness.distance(torch.cat(tried)).cpu().numpy()
        likeness_scale = float(np.quantile(distance, 1 - FALSE_ALARMS))
        score = distance / likeness_scale
    misfits = [part.misfit for part in parts if part.misfit is not None]
    if misfits:
        whole = Misfit(*(torch.cat(of_all) for of_all in zip(*misfits, strict=True)))
        systematic = whole.systematic().double()
        worst = whole.excess(systematic).amax(dim=1).cpu().numpy()
        excess_scale = float(np.quantile(worst, 1 - FALSE_ALARMS))
        score = np.maximum(score, worst / excess_scale)
    facts = AnomalyFacts(
        components=leading_axes(*features.shape),
        trained_on=len(features),
        distance_scale=distance_scale,
        orders=trial.exported.orders.numbers if misfits else (),
        excess_scale=excess_scale,
        threshold=conformal_factor(score, stars, 1 - FALSE_ALARMS),
        false_alarms=FALSE_ALARMS,
        calibrated_on=" and ".join(origin_of(part.kind, trial.release) for part in parts),
        stars=len(np.unique(stars)),
        spectra=len(stars),
        numbers=0 if likeness is None else len(likeness.deviation),
        likeness_scale=likeness_scale,
    )
    return Reference(gaussian, systematic, likeness), facts
