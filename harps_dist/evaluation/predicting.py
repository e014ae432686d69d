"""What a trained model says of a release's spectra: labels, scores, and the curves that figures show.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from harps_dist.config import Recipe
from harps_dist.data.batches import EvaluationBatches, RawBatch, in_batches, load
from harps_dist.data.observer import Batch, Observer
from harps_dist.data.reader import Release
from harps_dist.data.split import SplitName
from harps_dist.errors import ConfigError
from harps_dist.evaluation.downstream import labels_from_latents
from harps_dist.evaluation.interventions import Interventions
from harps_dist.evaluation.measures import MAE, MAE_TRUE, SED_ERROR, SpectraKind
from harps_dist.evaluation.metrics import reconstruction_mae
from harps_dist.evaluation.report import Origin, origin_name
from harps_dist.evaluation.sed_error import sed_error
from harps_dist.models.blanking import check_samples, read_blanked
from harps_dist.models.physical_model import PhysicalSemiSupervised
from harps_dist.models.refine import Refinement, check_refines, refine, refined_labels
from harps_dist.models.supervised import Output, SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.spectra.labels import INTRINSIC
from harps_dist.spectra.noise import photon_sigma

Columns = dict[str, np.ndarray]
BATCH = 16
STANDARD_DEVIATIONS = {"gaussian": 1.0, "laplace": 2.0**0.5}  # of a likelihood of unit scale
WINDOW_AA = (6110.0, 6140.0)  # of interventions that are drawn
VELOCITIES_KMS = (-20.0, 5.0, 20.0)


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
    """A trained model, and the release to try it on.

    refine: which labels that it reads are refined on what it draws (`models.refine`). samples: of blankings that labels
    are the median of (`models.blanking`), 0 for none. Raises ConfigError for a model that cannot.
    """

    def __init__(
        self,
        model: SpectrumModel,
        recipe: Recipe,
        release: Release,
        world: World,
        console: Console | None = None,
        refine: Refinement = "nothing",
        samples: int = 0,
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
        if refine != "nothing":
            check_refines(model, "this run")
        if samples and not (model.reads and model.labels):
            raise ConfigError("--samples is for models that read labels, which this one does not. Leave it out.")
        check_samples("this run", recipe.data.blanked, samples, refine)
        self.valid, self.refine, self.samples = release.grid.valid, refine, samples
        self._valid_pixels = torch.from_numpy(np.flatnonzero(self.valid)).to(world.device)

    @property
    def kinds(self) -> tuple[SpectraKind, ...]:
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

    def origin(self, kind: SpectraKind) -> Origin:
        return origin_of(kind, self.release)

    def origin_name(self, kind: SpectraKind) -> str:
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
        all_rows = np.concatenate([piece.rows for piece in pieces])
        order = np.argsort(all_rows)
        return Predictions(
            all_rows[order],
            np.concatenate([piece.truth for piece in pieces])[order],
            np.concatenate([piece.labels for piece in pieces])[order],
            np.concatenate([piece.nodes for piece in pieces])[order],
            {
                name: np.concatenate([piece.scores[name] for piece in pieces])[order]
                for name in (pieces[0].scores if pieces else ())
            },
        )

    def predict_split(self, kind: SpectraKind, split: SplitName | Literal["all"]) -> Predictions:
        """Predict all samples of a kind and split. Where the model's nodes are unsupervised, labels come from least
        squares on their means, fitted on the training split (Eq. 6)."""
        index, origin = self.release.index, self.origin(kind)
        predictions = self.predict(index.rows(kind, split), f"{origin}, {split} split")
        if self.unsupervised:
            trained = self.predict(index.rows(kind, "train"), f"{origin}, training split")
            predictions.labels = labels_from_latents(trained.nodes, trained.truth, predictions.nodes)
        return predictions

    def predict_held_out(self, kind: SpectraKind) -> Predictions | None:
        """Predict the validation split of a kind, which corrects uncertainties; None where there are none of either."""
        rows = self.release.index.rows(kind, "validation")
        if self.model.uncertainty == "none" or not len(rows):
            return None
        return self.predict(rows, f"{self.origin(kind)}, validation split")

    @torch.no_grad()
    def _predict_batch(self, raw: RawBatch) -> Predictions:
        batch = self.observer(raw)
        output = self._output(batch)
        labels = np.full(batch.labels.shape, np.nan)
        if output.labels is not None:
            labels[:, self.model.columns] = self.model.physical(output.labels).cpu().numpy()
        scores, spread = {}, torch.zeros(())
        if self.samples:
            blanked = read_blanked(self.model, batch.flux, self.recipe.data.blanked, self.samples)
            labels[:, self.model.columns], spread = blanked.labels.cpu().numpy(), blanked.variance.sqrt()
        if output.log_scale is not None:
            deviation = torch.exp(output.log_scale) * STANDARD_DEVIATIONS[self.model.uncertainty]
            deviation = torch.hypot(deviation * self.model.label_std, spread.to(self.model.label_std))
            for name, column in zip(self.model.labels, deviation.T, strict=True):
                scores[f"{name}_sigma"] = column.cpu().numpy()
        if output.reconstruction is not None:
            observed, reconstructed = batch.flux.cpu().numpy(), output.reconstruction.cpu().numpy()
            scores[MAE.name] = reconstruction_mae(observed, reconstructed, self.valid)
            if len(raw.sed) == len(observed):
                truth = self.interventions.simulate_at(raw, 0.0)
                scores[MAE_TRUE.name] = reconstruction_mae(truth, reconstructed, self.valid)
                if isinstance(self.model, PhysicalSemiSupervised):
                    scores[SED_ERROR.name] = sed_error(self.model, raw, batch, self.release.source_grid)
            varied = self.release.index["varied"][int(raw.rows[0])]
            if output.nodes is not None and varied in self.model.labels:
                scores |= self.interventions.label_scores(raw, output.nodes, varied)
            elif output.nodes is not None and "rv" in self.model.labels:
                scores |= self.interventions.rv_scores(raw, output.nodes, output.reconstruction)
        nodes = output.nodes if output.nodes is not None else batch.labels[:, :0]
        return Predictions(
            batch.rows.cpu().numpy(), batch.labels.cpu().numpy(), labels, nodes.double().cpu().numpy(), scores
        )

    def _nodes(self, raw: RawBatch) -> Tensor:
        nodes = self._output(self.observer(raw)).nodes
        assert nodes is not None, "interventions are on a model with nodes"
        return nodes

    def _output(self, batch: Batch) -> Output:
        """What the model says of a batch, its labels refined where that is asked for."""
        output = self.model(batch)
        if self.refine == "nothing" or output.nodes is None:
            return output
        flux = batch.flux.cpu().numpy()[:, self.valid]
        sigma = torch.from_numpy(np.stack([photon_sigma(one) for one in flux])).to(batch.flux)
        nodes = refine(self.model, batch.flux, output.nodes, sigma, self._valid_pixels).nodes
        taken = [self.model.labels.index(name) for name in refined_labels(self.refine, self.model.labels)]
        labels = output.nodes[:, : len(self.model.labels)].clone()
        labels[:, taken] = nodes[:, taken]
        return output._replace(nodes=nodes, labels=labels, reconstruction=self.model.decode(nodes))

    def curves(self, kind: SpectraKind, rows: np.ndarray) -> dict[str, Columns]:
        """What figures show of the predicted rows (n,) of a kind, by the name of the table that holds it.

        "spectrum": the spectrum of the highest S/N beside its reconstruction, NaN where invalid. "LABEL_intervention":
        spectra decoded after interventions on a label, beside those due. "parts": what the reconstruction is made of.
        See `drawing.draw`. Only what the model can.
        """
        if kind == "generative":
            return self._label_interventions(rows)
        brightest = int(rows[np.argmax(np.nan_to_num(self.release.index["snr"][rows]))])
        return self._spectrum(brightest)

    @torch.no_grad()
    def _spectrum(self, row: int) -> dict[str, Columns]:
        raw = self._raw(np.array([row]))
        batch = self.observer(raw)
        output = self._output(batch)
        if output.reconstruction is None:
            return {}
        wave_aa, hide = self.release.grid.wave_aa, np.where(self.valid, 0.0, np.nan)
        reconstructed, observed = output.reconstruction[0].cpu().numpy(), batch.flux[0].cpu().numpy()
        curves = {"spectrum": {"wave_aa": wave_aa, "observed": observed + hide, "reconstructed": reconstructed + hide}}
        if output.nodes is not None and isinstance(self.model, PhysicalSemiSupervised):
            parts = {name: part[0].cpu().numpy() for name, part in self.model.parts(output.nodes).items()}
            curves["parts"] = {"wave_aa": wave_aa, "reconstructed": reconstructed + hide, **parts}
        window = self._window
        if output.nodes is not None and "rv" in self.model.labels and window is not None:
            nodes, changes = output.nodes, {}
            for dv_kms in VELOCITIES_KMS:
                shifted = self.interventions.shifted(output.reconstruction, dv_kms)
                due = self.interventions.simulate_at(raw, dv_kms) if len(raw.sed) else shifted
                changes[dv_kms] = self.interventions.decode_at(nodes, dv_kms)[0, window], due[0, window]
            curves["rv_intervention"] = _stacked(wave_aa[window], reconstructed[window], changes)
        return curves

    @torch.no_grad()
    def _label_interventions(self, rows: np.ndarray) -> dict[str, Columns]:
        """What interventions on the labels of one core do, beside the simulator: to the least, middle and largest value
        from the one next to the middle."""
        index, window, curves = self.release.index, self._window, {}
        if window is None:
            return {}
        for label in filter(self.model.labels.__contains__, INTRINSIC):
            subset = rows[(index["star"][rows] == index["star"][rows[0]]) & (index["varied"][rows] == label)]
            subset = subset[np.argsort(index[label][subset])]
            if len(subset) < 3:
                continue
            raw = self._raw(subset)
            values, truth = index[label][subset], self.interventions.simulate_at(raw, 0.0)
            first = len(subset) // 2 + 1
            nodes, changes = self._nodes(raw)[first : first + 1], {}
            for number in (0, len(subset) // 2, len(subset) - 1):
                change = float(values[number] - values[first])
                decoded = self.interventions.decode_at(nodes, change, label)
                changes[round(change, 2)] = decoded[0, window], truth[number, window]
            base = self.interventions.decode_at(nodes, 0.0, label)[0, window]
            curves[f"{label}_intervention"] = _stacked(self.release.grid.wave_aa[window], base, changes)
        return curves

    def _raw(self, rows: np.ndarray) -> RawBatch:
        augment, seed = self.recipe.data.augment, self.recipe.training.seed
        return EvaluationBatches(self.release, [rows], augment, seed)[0].to(self.world.device)

    @property
    def _window(self) -> slice | None:
        """Pixels in which interventions are drawn; None where the grid has hardly any."""
        window = self.release.grid.wave_slice(*WINDOW_AA)
        return window if window.stop - window.start > 100 else None


def _stacked(
    wave_aa: np.ndarray, base: np.ndarray, changes: dict[float, tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Curves (pixel,) by change, (decoded, due) each, as one table with a row a pixel and change."""
    decoded, due = (np.concatenate([curve[place] for curve in changes.values()]) for place in (0, 1))
    return {
        "change": np.repeat(list(changes), len(wave_aa)),
        "wave_aa": np.tile(wave_aa, len(changes)),
        "base": np.tile(base, len(changes)),
        "decoded": decoded,
        "due": due,
    }


def origin_of(kind: SpectraKind, release: Release) -> Origin:
    """What reports call this kind: spectra whose files say that they are simulated are never passed off as real."""
    return "observed-like" if kind == "real" and not release.manifest.genuine else kind
