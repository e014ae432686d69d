"""Model spectra of a trained model's emulator, as a fit asks for them.

Tested in tests/unit/test_emulated.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from harps_dist.errors import ConfigError
from harps_dist.formats.sed import MODEL_ERRORS
from harps_dist.inference.simulators import open_simulator
from harps_dist.models.physical_model import PhysicalSemiSupervised
from harps_dist.models.supervised import SpectrumModel
from harps_dist.spectra.doppler import spline_samples


class EmulatedModel:
    """Stars as a model with physics draws them at rest from labels alone: `fitting.stellar.StellarModel`.

    id: sha256 of the model's weights. Raises ConfigError for a model without an emulator.
    """

    def __init__(self, model: SpectrumModel, name: str, id: str = "", device: torch.device | str = "cpu"):
        if not isinstance(model, PhysicalSemiSupervised):
            raise ConfigError(
                f"{name} has no emulator of stars at rest. Give a model with physics, such as the recipe ae-phys."
            )
        decoder, self.id, self.errors = model.decoder.to(device), id, MODEL_ERRORS
        self.labels: tuple[str, ...] = tuple(decoder.emulator.labels)
        self.grid, self.ranges, self._emulator = decoder.source_grid, decoder.emulator.ranges, decoder.emulator

    def log_flux(self, labels: Tensor) -> Tensor:
        """Log flux per wavelength in medians of it, (batch, pixel), of labels (batch, len(labels)) within `ranges`."""
        coefficients = self._emulator.coefficients(labels.to(self._emulator.mean))
        return spline_samples(self._emulator.log_flux(coefficients))


def emulated(folder: Path | None, device: torch.device) -> EmulatedModel | None:
    """The stars of a run or an export, None where no folder is given; raises ConfigError as `open_simulator` does."""
    if folder is None:
        return None
    simulator = open_simulator(folder, device=device)
    return EmulatedModel(simulator.model, simulator.name, simulator.id, device)
