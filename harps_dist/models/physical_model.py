"""An autoencoder whose decoder knows what moves (`models.physical`).

Tested in tests/unit/test_physical.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from harps_dist.models.physical import CONTINUUM_UNIT, Factors, PhysicalDecoder
from harps_dist.models.refine import VELOCITIES, Free
from harps_dist.models.supervised import SemiSupervised
from harps_dist.spectra.noise import keyed_uniforms

if TYPE_CHECKING:
    from harps_dist.data.observer import Batch
    from harps_dist.data.reader import Release
    from harps_dist.models.config import PhysicalAutoencoder
    from harps_dist.spectra.grid import Grid

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
    def free(self) -> Free:
        """Nodes that a refinement of velocities frees beside them: the width of the lines and the continuum."""
        factors, known = self.decoder.factors, len(self.labels)
        bent = known + factors.broadening + factors.vmic + factors.responses + factors.sky
        return Free(
            tuple(range(known, known + factors.broadening)),
            tuple(range(bent, bent + factors.continuum)),
            CONTINUUM_UNIT,
        )

    def begin(self, release: Release) -> None:
        """Learn model spectra at rest and responses from a release; raises ConfigError where it has too few."""
        from harps_dist.models.release_physics import fit

        fit(self.decoder, release)

    def decode(self, nodes: Tensor) -> Tensor:
        """(batch, bottleneck) nodes to (batch, pixel) standardised flux."""
        known = len(self.labels)
        return self.decoder(self.physical(nodes[:, :known]), nodes[:, known:])

    def _found(self, nodes: Tensor, batch: Batch) -> Tensor | None:
        if not (self.training and self.search):
            return None
        known, found = len(self.labels), torch.full_like(nodes[:, : len(self.labels)], torch.nan)
        velocities = self.decoder.velocities(batch.flux, self.physical(nodes[:, :known]), nodes[:, known:], batch.key)
        for name, kms in zip(VELOCITIES, velocities, strict=True):
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
