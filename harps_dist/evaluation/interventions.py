"""Interventions on the latent nodes of a trained model, against the simulator that they should follow (Sect. 3.6).

Tested in tests/unit/test_metrics.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harps_dist.data.batches import RawBatch
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.errors import GridError
from harps_dist.evaluation.measures import (
    GIS,
    GIS_TRUE,
    RESPONSE,
    RESPONSES,
    RV_SENSITIVITY,
    RVIS,
    RVIS_TRUE,
    SENSITIVITY,
)
from harps_dist.evaluation.metrics import (
    intervention_error,
    response_and_leakage,
    response_to,
    rvis,
    rvis_mask,
    sensitivity,
)
from harps_dist.models.supervised import SpectrumModel
from harps_dist.spectra.doppler import bspline_coefficients, doppler_shift
from harps_dist.spectra.labels import NAMES

INTERVENTIONS_KMS = tuple(np.linspace(-40.0, 40.0, 9))
LEAKAGE_KMS = (-20.0, 20.0)


class Interventions:
    """The decoder of a model that encodes labels too, and the noise-free simulator of its release.

    noise_free: turns raw batches into spectra without noise, else as the model was trained on.
    """

    def __init__(self, model: SpectrumModel, release: Release, noise_free: Observer):
        self.model, self.grid, self.noise_free = model, release.grid, noise_free
        self.valid = release.grid.valid

    def decode_at(self, nodes: Tensor, change: float | np.ndarray, label: str = "rv") -> np.ndarray:
        """(batch, pixel) spectra decoded after adding a change, one for all or (batch,), to a label's node (Eq. 15)."""
        nodes, node = nodes.clone(), self.model.labels.index(label)
        nodes[:, node] += torch.as_tensor(change / float(self.model.label_std[node])).to(nodes)
        return self.model.decode(nodes).cpu().numpy()

    def simulate_at(self, raw: RawBatch, dv_kms: float, velocity: str = "rv") -> np.ndarray:
        """(batch, pixel) noise-free simulated spectra with a velocity added to the star's, or to BERV."""
        if velocity == "berv":
            raw = raw._replace(berv_kms=raw.berv_kms + dv_kms)
        else:
            raw = raw._replace(rv_kms=raw.rv_kms + dv_kms)
        return self.noise_free(raw).flux.cpu().numpy()

    def shifted(self, flux: Tensor, dv_kms: float) -> np.ndarray:
        """(batch, pixel) flux shifted by a radial velocity; NaN where its source lies outside the grid."""
        velocity = torch.full((len(flux),), dv_kms, device=flux.device)
        return doppler_shift(bspline_coefficients(flux), velocity, self.grid, self.grid).cpu().numpy()

    def rv_scores(self, raw: RawBatch, nodes: Tensor, reconstruction: Tensor) -> dict[str, np.ndarray]:
        """RVIS (Eq. 16) of every spectrum; for simulated ones also against the simulator, sensitivity and leakage.

        nodes: (batch, bottleneck), decoded to reconstruction (batch, pixel). Nothing on a grid without Eq. 16's range.
        """
        try:
            mask = rvis_mask(self.grid.wave_aa, self.valid)
        except GridError:
            return {}
        mask &= np.isfinite(self.shifted(reconstruction[:1], 40.0) + self.shifted(reconstruction[:1], -40.0)).all(0)
        decoded = np.stack([self.decode_at(nodes, dv) for dv in INTERVENTIONS_KMS], axis=1)
        shifted = np.stack([self.shifted(reconstruction, dv) for dv in INTERVENTIONS_KMS], axis=1)
        scores = {RVIS.name: rvis(decoded, shifted, mask)}
        if len(raw.sed) == len(nodes):
            truth = np.stack([self.simulate_at(raw, dv) for dv in INTERVENTIONS_KMS], axis=1)
            scores[RVIS_TRUE.name] = intervention_error(decoded, truth, mask).mean(axis=-1)
            base = reconstruction.cpu().numpy()
            scores[RV_SENSITIVITY.name] = sensitivity(decoded, base, truth, self.simulate_at(raw, 0.0), mask)
            if "berv" in self.model.labels and self.noise_free.augment.berv_kms:
                scores |= self.leakage(raw, nodes, reconstruction)
        return scores

    def leakage(self, raw: RawBatch, nodes: Tensor, reconstruction: Tensor) -> dict[str, np.ndarray]:
        """Whether do(rv) moves stellar lines alone and do(berv) telluric ones, over all valid pixels."""
        base, unmoved = reconstruction.cpu().numpy(), self.simulate_at(raw, 0.0)
        velocities, due, answered = ("rv", "berv"), {}, {}
        for name in velocities:
            due[name] = np.stack([self.simulate_at(raw, dv, name) - unmoved for dv in LEAKAGE_KMS], axis=1)
            answered[name] = np.stack([self.decode_at(nodes, dv, name) - base for dv in LEAKAGE_KMS], axis=1)
        scores: dict[str, np.ndarray] = {}
        for own, other in (velocities, velocities[::-1]):
            response, leakage = response_and_leakage(answered[own], due[own], due[other], self.valid)
            answers, leaks = RESPONSES[own]
            scores |= {answers.name: response, leaks.name: leakage}
        return scores

    def label_scores(self, raw: RawBatch, nodes: Tensor, label: str) -> dict[str, np.ndarray]:
        """GIS (Eq. 17) of every spectrum of a generative subset, in which one label varies and all else is fixed.

        nodes: (batch, bottleneck) of the subset's spectra. Each is intervened on to every other's value of the label;
        what is then decoded is compared with what the model makes of that other spectrum (GIS), and with the noise-free
        simulator (GIS-true, sensitivity, response).
        """
        values = raw.labels[:, NAMES.index(label)].cpu().numpy()
        unconstrained, truth = self.decode_at(nodes, 0.0, label), self.simulate_at(raw, 0.0)
        scores: dict[str, list[float]] = {one.name: [] for one in (GIS, GIS_TRUE, SENSITIVITY, RESPONSE)}
        for number in range(len(values)):
            others = np.arange(len(values)) != number
            change = values[others] - values[number]
            decoded = self.decode_at(nodes[number].expand(len(change), -1), change, label)[None]
            base, true_base = unconstrained[number][None], truth[number][None]
            due, answered = truth[others][None] - true_base, decoded - base
            for name, score in {
                GIS.name: intervention_error(decoded, unconstrained[others][None], self.valid).mean(axis=-1),
                GIS_TRUE.name: intervention_error(decoded, truth[others][None], self.valid).mean(axis=-1),
                SENSITIVITY.name: sensitivity(decoded, base, truth[others][None], true_base, self.valid),
                RESPONSE.name: response_to(answered, due, self.valid),
            }.items():
                scores[name].append(float(score[0]))
        return {name: np.array(score) for name, score in scores.items()}
