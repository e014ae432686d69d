"""A trained model in use: labels with uncertainties from spectra, spectra from labels. Needs torch and numpy alone.

model = harps_dist.load("export")
table = model.predict(spectrum)

Tested in tests/integration/test_exports.py.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.errors import ConfigError, ExportError
from harps_dist.formats.sed import MODEL_ERRORS
from harps_dist.inference.anomaly import STRETCHES, Misfit, Orders, Reference, misfit, power
from harps_dist.inference.build import build
from harps_dist.inference.description import CONFIG, REFERENCE, WEIGHTS, Description, from_json
from harps_dist.inference.precision import Precision, compute_by, computing
from harps_dist.inference.predicted import Predicted
from harps_dist.inference.simulator import Part, Simulator
from harps_dist.inference.spectra import Medium, on_grid
from harps_dist.inference.table import columns_of, fields_of, metadata_of, to_table
from harps_dist.inference.weights import read_safetensors
from harps_dist.models.blanking import check_samples, read_blanked
from harps_dist.models.refine import Refinement, check_refines, refine, refined_labels
from harps_dist.models.supervised import SpectrumModel
from harps_dist.spectra.noise import NOISE_CHUNK, NOISE_FLOOR, photon_noise

if TYPE_CHECKING:
    from astropy.table import QTable
    from specutils import Spectrum

BATCH = 16
LARGEST_NODE = 50.0  # standard deviations of a label; labels in their units are larger
UNIT_DEVIATION = {"gaussian": 1.0, "laplace": 2.0**0.5}  # standard deviation of a likelihood of unit scale
LATENT_COMPONENTS = 16  # of pooled features that are given as a latent vector, where there is no bottleneck


class Raw(NamedTuple):
    """What the network says of a batch, on its device.

    labels, sigma: (batch, K) physical, sigma None where it predicts none. nodes: (batch, bottleneck), without columns
    where there is none. features: (batch, channels) of the encoder, averaged along the spectrum. misfit: in every
    order, None where nothing is reconstructed. fingerprint: (batch, number) what stretches of the spectrum add to the
    labels, and the power of structures of all widths. refined: numbers of the labels whose sigma is of `models.refine`;
    fitted: in every order, the misfit after it. sampled: whether labels and sigma are those of several blankings.
    """

    labels: Tensor
    sigma: Tensor | None
    nodes: Tensor
    features: Tensor
    misfit: Misfit | None
    fingerprint: Tensor
    refined: tuple[int, ...] = ()
    fitted: Misfit | None = None
    sampled: bool = False


class Exported:
    """A model and what is known about it.

    model: the network, in evaluation mode. labels: names in the order of its outputs. nodes: of the bottleneck, the
    labels first; 0 where there is none. id: sha256 of the weights. digest: sha256 of config.json, which changes with
    the calibration too. computing: what `precision` came to; see `precision.computing`.
    """

    def __init__(
        self,
        description: Description,
        model: SpectrumModel,
        reference: Reference | None = None,
        digest: str = "",
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ):
        self.device = torch.device(device)
        self.computing = computing(precision, self.device)
        self.description, self.digest = description, digest
        self.model = model.to(self.device).eval().requires_grad_(False)
        compute_by(self.model, self.computing)
        self.reference = reference.to(self.device) if reference else None
        self.grid = description.grid.grid()
        self.labels, self.nodes = model.labels, model.nodes
        self.orders = Orders.of(self.grid)
        self._valid = torch.from_numpy(np.flatnonzero(self.grid.valid)).to(self.device)

    @property
    def id(self) -> str:
        return self.description.id

    @property
    def reconstructs(self) -> bool:
        """Whether it gives a spectrum for a spectrum."""
        return self.model.reads and self.model.draws

    @property
    def metadata(self) -> dict[str, str]:
        """What holds for every table of its predictions."""
        return metadata_of(self.description, self.digest) | {"precision": self.computing.precision}

    def check_reads(self) -> None:
        """Raises ConfigError for a model that reads no spectra."""
        if not self.model.reads:
            raise ConfigError(
                f"{self.description.name} is a decoder: it draws spectra and reads none. Take an encoder or an "
                f"autoencoder."
            )

    def check_samples(self, samples: int, refine: Refinement = "nothing") -> None:
        """Raises ConfigError where it cannot predict by so many blankings, see `models.blanking.check_samples`."""
        check_samples(self.description.name, self.description.blanked, samples, refine)

    def normalise(self, labels: np.ndarray) -> np.ndarray:
        """(n, K) labels in their units, in the order of `labels`, to normalised ones."""
        return (np.asarray(labels, np.float64) - self._numpy(self.model.label_mean)) / self._numpy(self.model.label_std)

    def physical(self, normalised: np.ndarray) -> np.ndarray:
        """(n, K) normalised labels to labels in their units; undoes `normalise`."""
        return np.asarray(normalised, np.float64) * self._numpy(self.model.label_std) + self._numpy(
            self.model.label_mean
        )

    @torch.inference_mode()
    def decode(self, nodes: np.ndarray, batch_size: int = BATCH) -> np.ndarray:
        """(n, input) normalised labels, or bottleneck nodes, to (n, pixel) float32 standardised flux.

        Raises ConfigError for a model without a decoder, or another number of nodes.
        """
        inputs = self.model.inputs
        nodes = np.atleast_2d(nodes)
        if not self.model.draws:
            raise ConfigError(f"{self.description.name} has no decoder: it only reads labels. Take an autoencoder.")
        if len(nodes) and np.abs(nodes[:, : len(self.labels)]).max(initial=0) > LARGEST_NODE:
            raise ConfigError(
                f"{self.description.name} decodes normalised labels, none of them beyond {LARGEST_NODE:g}, and was "
                f"given {np.abs(nodes).max():g}. Normalise them (`normalise`), or take simulate(teff=…)."
            )
        if nodes.shape[1] != inputs:
            raise ConfigError(f"{self.description.name} decodes {inputs} nodes a spectrum and was given {nodes.shape}.")
        parts = torch.from_numpy(np.asarray(nodes, np.float32)).split(batch_size)
        return np.concatenate([self.model.decode(part.to(self.device)).cpu().numpy() for part in parts])

    @torch.inference_mode()
    def raw(self, flux: Tensor, noise: Tensor | None = None) -> Raw:
        """What the network says of (batch, pixel) standardised flux on its device; without noise no misfit is measured.

        noise: (batch, chunk) variance per flux of every chunk of valid pixels, `photon_noise`.
        Raises ConfigError for a model that reads no spectra.
        """
        self.check_reads()
        encoded = self.model.encoder(flux)
        labels, log_scale, nodes, features = self.model.reading(encoded)
        parts = self.model.encoder.contributions(encoded, self.model.readout, STRETCHES)
        fingerprint = torch.cat([parts, power(flux[:, self._valid])], dim=1)
        compared = None
        if self.reconstructs and noise is not None:
            drawn = self.model.decode(nodes)
            compared = misfit(flux[:, self._valid], drawn[:, self._valid], noise, self.orders)
        sigma = None
        if log_scale is not None:
            sigma = log_scale.double().exp() * UNIT_DEVIATION[self.description.likelihood] * self.model.label_std
        return Raw(self.model.physical(labels), sigma, nodes, features, compared, fingerprint)

    @torch.inference_mode()
    def sampled(self, raw: Raw, flux: Tensor, samples: int) -> Raw:
        """What the network said, with labels that are the median over blankings of flux (batch, pixel), see
        `models.blanking`. Their standard deviation over blankings joins sigma in quadrature. Raises ConfigError for a
        model that saw none, or fewer than two samples.
        """
        self.check_samples(samples)
        blanked = read_blanked(self.model, flux, self.description.blanked, samples)
        scale = torch.tensor([fact.scale for fact in self.description.labels], device=flux.device)
        said = scale if raw.sigma is None else raw.sigma
        sigma = (said.double() ** 2 + blanked.variance).sqrt()
        return raw._replace(labels=blanked.labels, sigma=sigma, sampled=True)

    @torch.inference_mode()
    def refined(self, raw: Raw, flux: Tensor, noise: Tensor, what: Refinement) -> Raw:
        """What the network said, with labels refined on what it draws; arguments as of `raw`.

        Errors are those of noise and misfit, of a star's labels also what model spectra are off by (MODEL_ERRORS).

        Raises ConfigError for a model that does not read and draw both velocities.
        """
        check_refines(self.model, self.description.name)
        chunks = noise.repeat_interleave(NOISE_CHUNK, dim=1)[:, : len(self._valid)]
        sigma = (chunks * (flux[:, self._valid].abs() + NOISE_FLOOR)).sqrt().to(flux)
        nodes, covariance, _ = refine(self.model, flux, raw.nodes, sigma, self._valid)
        names = refined_labels(what, self.labels)
        columns = [self.labels.index(name) for name in names]
        off_by = torch.tensor([MODEL_ERRORS.get(name, 0.0) for name in names]).to(covariance)
        labels = raw.labels.clone()
        labels[:, columns] = self.model.physical(nodes[:, : len(self.labels)])[:, columns].to(labels)
        scale = [fact.scale for fact in self.description.labels]
        said = raw.sigma if raw.sigma is not None else torch.tensor([scale], device=flux.device).repeat(len(flux), 1)
        said = said.double().clone()
        said[:, columns] = torch.hypot(covariance.diagonal(dim1=1, dim2=2).sqrt()[:, columns], off_by)
        drawn = self.model.decode(nodes)
        compared = misfit(flux[:, self._valid], drawn[:, self._valid], noise, self.orders) if raw.misfit else None
        return raw._replace(labels=labels, sigma=said, nodes=nodes, refined=tuple(columns), fitted=compared)

    def predict_flux(
        self,
        flux: np.ndarray,
        noise: np.ndarray | None = None,
        batch_size: int = BATCH,
        chi2: bool = True,
        refine: Refinement = "nothing",
        samples: int = 0,
    ) -> Predicted:
        """Predict (n, pixel) float32 spectra on the model's grid, standardised (`spectra.standardise`).

        noise: (n, chunk), where it is known; else it is measured on the spectra. chi2: whether they are reconstructed
        and compared, where the model can. refine: which labels are refined on what the model draws; their
        intervals are then those of photon noise, misfit and model spectra, and no calibration changes them. samples: of
        blankings that labels are the median of (`sampled`), 0 for none. Raises ConfigError for another grid, or a model
        that reads no spectra, cannot refine or never saw blanked pieces.
        """
        self.check_samples(samples, refine)
        flux = np.atleast_2d(flux)
        if flux.ndim != 2 or flux.shape[1] != self.grid.length:
            raise ConfigError(
                f"{self.description.name} reads spectra of {self.grid.length} pixels (grid {self.grid.name}) and was "
                f"given {flux.shape}. Give wavelengths too, so that they can be brought onto its grid."
            )
        if noise is None:
            noise = np.array([photon_noise(one[self.grid.valid]) for one in flux])
        parts = []
        for first in range(0, len(flux), batch_size):
            part = slice(first, first + batch_size)
            on_device = torch.from_numpy(np.ascontiguousarray(flux[part], np.float32)).to(self.device)
            chunks = torch.from_numpy(noise[part]).to(self.device)
            raw = self.raw(on_device, chunks if chi2 else None)
            if refine != "nothing":
                raw = self.refined(raw, on_device, chunks, refine)
            parts.append(self._finished(self.sampled(raw, on_device, samples) if samples else raw, chunks))
        if parts:
            return Predicted.stacked(parts)
        one = self.predict_flux(np.ones((1, self.grid.length), np.float32), batch_size=1, chi2=chi2)
        return Predicted(*(column[:0] for column in one))

    def _finished(self, raw: Raw, noise: Tensor) -> Predicted:
        facts, count = self.description.labels, len(raw.features)
        labels = self._numpy(raw.labels)
        sigma = self._numpy(raw.sigma) if raw.sigma is not None else np.tile([fact.scale for fact in facts], (count, 1))
        stated = [fact.sampled_factors if raw.sampled else fact.factors for fact in facts]
        factors = np.array(stated).reshape(len(facts), len(self.description.levels))
        factors[list(raw.refined)] = [NormalDist().inv_cdf((1 + level) / 2) for level in self.description.levels]
        unknown = torch.full((count,), torch.nan, dtype=torch.float64, device=self.device)
        distance, nodes, score, excess = unknown, raw.nodes.double(), unknown, unknown[:, None][:, :0]
        shown = raw.fitted or raw.misfit
        chi2 = excess if shown is None else shown.chi2.double()
        if self.reference is not None:
            gaussian = self.reference.gaussian
            distance = gaussian.distance(raw.features)
            if not self.nodes:
                nodes = gaussian.components(raw.features)[:, :LATENT_COMPONENTS]
            if raw.misfit is not None:  # before a refinement, as that of what it is compared with
                excess = raw.misfit.excess(self.reference.systematic).double()
        anomaly = self.description.anomaly
        if anomaly is not None:
            score = distance / anomaly.distance_scale
            if self.reference is not None and self.reference.likeness is not None:
                score = self.reference.likeness.distance(raw.fingerprint) / anomaly.likeness_scale
            if excess.shape[1]:
                score = torch.maximum(score, excess.amax(dim=1) / anomaly.excess_scale)
            score = score / anomaly.threshold
        return Predicted(
            labels=labels,
            sigma=sigma,
            half_width=sigma[:, :, None] * factors,
            nodes=self._numpy(nodes),
            distance=self._numpy(distance),
            chi2=self._numpy(chi2),
            excess=self._numpy(excess),
            anomaly=self._numpy(score),
            snr=self._numpy((noise * (1 + NOISE_FLOOR)).median(dim=1).values ** -0.5),
        )

    @staticmethod
    def _numpy(tensor: Tensor) -> np.ndarray:
        return tensor.double().cpu().numpy()

    def predict(
        self,
        spectrum: Any,
        flux: np.ndarray | None = None,
        medium: Medium | None = None,
        latents: bool = False,
        batch_size: int = BATCH,
        refine: Refinement = "nothing",
        samples: int = 0,
    ) -> QTable:
        """Labels with uncertainties, flags and scores of one spectrum or several, one row each.

        spectrum: a specutils Spectrum; the path of a Phase 3 or s1d file; or barycentric wavelengths (sample,) [Å] with
        `flux` (sample,) or (n, sample) in any unit, NaN where missing, also as a pair; or, alone, flux (pixel,) or
        (n, pixel) on the model's grid.
        medium: of the wavelengths, air if not given. A spectrum that says it is in vacuum is refused until the medium
        is given; then it is brought to air. latents: with the latent vectors. refine, samples: as of `predict_flux`.
        Raises ConfigError for shapes or wavelengths that do not fit, SpectrumError for spectra that cannot be
        standardised.
        """
        flux, coverage, broken = on_grid(spectrum, flux, medium, self.grid)
        found = self.predict_flux(flux, batch_size=batch_size, refine=refine, samples=samples)
        columns = columns_of(self.description, found, coverage, flux, latents, broken)
        return to_table(columns, fields_of(self.description), self.metadata)

    def simulate(self, snr: Any = None, seed: Any = 0, **labels: Any) -> Spectrum:
        """A specutils Spectrum of labels in their units, such as simulate(teff=5800, rv=20); (n, pixel) for n values.

        Labels not given are the training mean. snr: of the noise to be added, none without. seed: of its draws.
        Raises ConfigError for a model that draws no spectra, labels that it does not have, or values beyond its range.
        """
        return self.simulator.simulate(labels, snr=snr, seed=seed).as_spectrum()

    @property
    def simulator(self) -> Simulator:
        """What draws spectra by this model; raises ConfigError where it draws none."""
        return self.simulator_of("spectrum")

    def simulator_of(self, part: Part) -> Simulator:
        """What draws spectra or a part of them by this model; raises ConfigError as `Simulator`."""
        ranges = {fact.name: (fact.low, fact.high) for fact in self.description.labels}
        return Simulator(self.model, self.grid, self.description.name, self.id, ranges, part)

    def __repr__(self) -> str:
        does = [word for word, can in (("reads", self.model.reads), ("draws from", self.model.draws)) if can]
        pixels = f"{self.grid.length:,} pixels, {self.grid.wave_aa[0]:.0f}-{self.grid.wave_aa[-1]:.0f} Å"
        return f"<{self.description.name}: {' and '.join(does)} {', '.join(self.labels)}; {pixels}>"


def load(folder: str | Path, device: torch.device | str = "cpu", precision: Precision = "auto") -> Exported:
    """Open a folder that `launch/export.py` wrote, every byte checked; nothing in it is executed.

    precision: of the encoder, fp32, bf16, or auto; see `precision.computing`.
    Raises ExportError where it is missing, damaged, tampered with, or made for another version; ConfigError for a
    precision that the device does not have.
    """
    folder = Path(folder)
    content = _content(folder / CONFIG)
    description = read_description(folder / CONFIG, content)
    weights = _checked_tensors(folder, WEIGHTS, description)
    model = build(description, weights, folder)
    reference = None
    if description.anomaly is not None:
        tensors = _checked_tensors(folder, REFERENCE, description)
        facts, size = description.anomaly, model.encoder.channels
        reference = Reference.of(tensors, size, len(facts.orders), facts.numbers, str(folder / REFERENCE))
    exported = Exported(description, model, reference, hashlib.sha256(content).hexdigest(), device, precision)
    if (
        description.anomaly is not None
        and exported.reconstructs
        and exported.orders.numbers != description.anomaly.orders
    ):
        raise ExportError(f"{folder / CONFIG} counts other echelle orders than this code. Export the run again.")
    return exported


def read_description(path: Path, content: bytes | None = None) -> Description:
    """What an export's config.json says; raises ExportError where it is missing, damaged or of another version."""
    try:
        text = (_content(path) if content is None else content).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is damaged: {error}. Export the run again.") from None
    return from_json(text, str(path))


def _checked_tensors(folder: Path, name: str, description: Description) -> dict[str, Tensor]:
    content, expected = _content(folder / name), description.sha256.get(name)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ExportError(
            f"{folder / name} is damaged or was tampered with: sha256 {found[:12]}, {CONFIG} says "
            f"{str(expected)[:12]}. Nothing of it is used: copy it anew, or export the run again."
        )
    return read_safetensors(content, str(folder / name))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read ({error.strerror}). Give a folder that launch/export.py wrote."
        ) from None
