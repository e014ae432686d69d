"""An autoencoder whose decoder knows what moves (`models.physical`).

Tested in tests/unit/test_physical.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from harps_dist.models.physical import AIRMASS, CONTINUUM_UNIT, MOST_KMS, PWV, Factors, PhysicalDecoder
from harps_dist.models.refine import VELOCITIES, Free
from harps_dist.models.supervised import SemiSupervised
from harps_dist.spectra.noise import keyed_uniforms

if TYPE_CHECKING:
    from harps_dist.data.observer import Batch
    from harps_dist.data.reader import Release
    from harps_dist.models.config import PhysicalAutoencoder
    from harps_dist.spectra.grid import Grid

PHYSICS = ("network.decoder.emulator.", "network.decoder.correction.", "network.decoder.response")
TEACHING = 0x7465616368  # keeps its draws apart from others of the same sample


class PhysicalSemiSupervised(SemiSupervised):
    """Spectrum to labels and unknown factors, and back by a star at rest, Doppler shifts, the sky and a continuum.

    In training a share of the spectra is decoded from their true labels where these are known: the decoder then learns
    from the first step on, and the encoder's other nodes beside it.
    """

    def __init__(self, config: PhysicalAutoencoder, grid: Grid):
        super().__init__(config, grid)
        self.taught, self.search = config.taught, config.search

    def _decoder(self, config: Any, grid: Grid) -> PhysicalDecoder:
        factors = Factors(
            int(config.broadening), int(config.microturbulence), config.response_factors, config.sky_factors,
            config.continuum_terms, config.star_factors,
        )  # fmt: skip
        return PhysicalDecoder(grid, config.labels, factors, config.vectors, config.model_spectra)

    @property
    def decoder(self) -> PhysicalDecoder:
        """The decoder, whose parts can be drawn one by one."""
        return cast(PhysicalDecoder, self.network.decoder)

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Least and largest value of labels beyond which it draws what it draws there."""
        return {"rv": (-MOST_KMS, MOST_KMS), "berv": (-MOST_KMS, MOST_KMS), "airmass": AIRMASS, "pwv": PWV}

    @property
    def model_spectra(self) -> dict[str, tuple[float, float]]:
        """Least and largest value of the labels of model spectra that it draws from."""
        return self.decoder.emulator.ranges

    def sought(self, flux: Tensor, nodes: Tensor) -> Tensor:
        """(batch, 2) rv and berv [km/s] that are looked for on flux (batch, pixel), far from what nodes say."""
        return torch.stack(self._velocities(flux, nodes, nodes.new_zeros(len(nodes), dtype=torch.int64)), dim=1)

    def _velocities(self, flux: Tensor, nodes: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        known = len(self.labels)
        return self.decoder.velocities(flux, self.physical(nodes[:, :known]), nodes[:, known:], key)

    @property
    def free(self) -> Free:
        """Nodes that a refinement frees beside the labels: all of them, the continuum's by themselves."""
        factors, known = self.decoder.factors, len(self.labels)
        bent = known + sum(factors[: Factors._fields.index("continuum")])
        continuum = range(bent, bent + factors.continuum)
        others = (node for node in range(known, known + sum(factors)) if node not in continuum)
        return Free(tuple(others), tuple(continuum), CONTINUUM_UNIT)

    def begin(self, release: Release) -> None:
        """Learn model spectra at rest and responses from a release; raises ConfigError where it has too few."""
        from harps_dist.models.release_physics import fit

        fit(self.decoder, release)

    def _placed(self, weights: dict[str, Tensor], labels: tuple[str, ...]) -> dict[str, Tensor]:
        """Another's stars and sky are taken over as a whole, or not at all.

        They go on where they are of this model's shapes, and hold the model spectra of the release that it has begun
        with; else the release's own stay, and the corrections, which are told in the other's vectors, begin anew.
        """
        own = self.state_dict()
        physics = [name for name in own if name.startswith(PHYSICS)]
        if all(name in weights and weights[name].shape == own[name].shape for name in physics):
            low, high = (f"{PHYSICS[0]}{end}" for end in ("low", "high"))
            if (weights[low] <= own[low]).all() and (weights[high] >= own[high]).all():
                return weights
        return {name: value for name, value in weights.items() if name not in physics}

    def decode(self, nodes: Tensor) -> Tensor:
        """(batch, bottleneck) nodes to (batch, pixel) standardised flux."""
        known = len(self.labels)
        return self.decoder(self.physical(nodes[:, :known]), nodes[:, known:])

    def _found(self, nodes: Tensor, batch: Batch) -> Tensor | None:
        if not (self.training and self.search):
            return None
        found = torch.full_like(nodes[:, : len(self.labels)], torch.nan)
        for name, kms in zip(VELOCITIES, self._velocities(batch.flux, nodes, batch.key), strict=True):
            number = self.labels.index(name)
            found[:, number] = (kms - self.label_mean[number]) / self.label_std[number]
        return found

    def passed(self, inputs: Tensor) -> object:
        """All that a forward pass computes of flux (batch, pixel)."""
        return self.decode(self.encode(inputs).mean)

    def parts(self, nodes: Tensor) -> dict[str, Tensor]:
        """What a spectrum drawn from nodes (batch, bottleneck) is the product of; see `PhysicalDecoder.parts`."""
        known = len(self.labels)
        return self.decoder.parts(self.physical(nodes[:, :known]), nodes[:, known:])

    def _decoded(self, nodes: Tensor, batch: Batch) -> Tensor:
        if not (self.training and self.taught):
            return nodes
        truth = self.normalise(batch.labels)
        teach = torch.isfinite(truth) & (keyed_uniforms(batch.key, 1, TEACHING) < self.taught)
        labels = torch.where(teach, truth, nodes[:, : len(self.labels)])
        return torch.cat([labels, nodes[:, len(self.labels) :]], dim=1)
