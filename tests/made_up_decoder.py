"""A decoder with a closed form, for tests of spectra from labels."""

from __future__ import annotations

import numpy as np
import torch

from harps_dist.inference.simulator import Simulator
from harps_dist.models.autoencoder import Latent
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.spectra.grid import Grid

LABELS = ("rv", "teff", "logg", "airmass")
MEAN = {"rv": 5.0, "teff": 5500.0, "logg": 4.3, "airmass": 1.5}
STD = {"rv": 20.0, "teff": 800.0, "logg": 0.4, "airmass": 0.3}
RANGES = {"rv": (-40.0, 40.0), "teff": (4000.0, 7000.0), "logg": (3.5, 5.0), "airmass": (1.0, 2.0)}
SMALL = Grid("small", 231_000, 512)
TINY = Grid("tiny", 231_000, 4096)
WORLD = World.alone()


class Drawn(SpectrumModel):
    """A decoder with a closed form: a line of depth 0.5 at 6097.5 Å on a continuum of 1, and node k adds 0.1 of itself
    to pixel 10 k. It reads those pixels back. Lines do not move with the velocity's node."""

    reads = draws = True

    def __init__(self, grid: Grid = SMALL, unknown: int = 2, variational: bool = True):
        super().__init__(LABELS)
        self.set_label_scale(MEAN, STD)
        self.nodes, self.variational = len(LABELS) + unknown, variational
        line = np.exp(-0.5 * ((grid.wave_aa - 6097.5) / 0.05) ** 2)
        self.base = torch.from_numpy(1 - 0.5 * line).float()
        self.calls: list[int] = []

    def decode(self, nodes):
        self.calls.append(len(nodes))
        flux = self.base.repeat(len(nodes), 1)
        flux[:, 10 : 10 * self.nodes + 1 : 10] += 0.1 * nodes
        return flux

    def encode(self, flux):
        return Latent(10 * (flux - self.base)[:, 10 : 10 * self.nodes + 1 : 10], None)


def simulator(grid: Grid = SMALL, **options) -> Simulator:
    return Simulator(Drawn(grid, **options), grid, "drawn", "0123456789abcdef" * 4, RANGES)


def node_of(flux: np.ndarray, name: str) -> np.ndarray:
    """What the decoder was given for a node."""
    number = [*LABELS, "u1", "u2"].index(name)
    return 10 * (flux[..., 10 * (number + 1)] - 1)
