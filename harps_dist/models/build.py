"""From what a recipe says of a model to the model, untrained.

Tested in tests/unit/test_losses.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harps_dist.models.supervised import (
    LabelPredictor,
    PhysicalSemiSupervised,
    SemiSupervised,
    SpectrumModel,
    SpectrumSimulator,
)

if TYPE_CHECKING:
    from harps_dist.models.config import Model
    from harps_dist.spectra.grid import Grid

KINDS: dict[str, Callable[[Any, Grid], SpectrumModel]] = {
    "encoder": LabelPredictor,
    "decoder": SpectrumSimulator,
    "autoencoder": SemiSupervised,
    "physical-autoencoder": PhysicalSemiSupervised,
}


def build_model(config: Model, grid: Grid) -> SpectrumModel:
    """A freshly initialised model on the CPU; its label scale is 0 and 1."""
    return KINDS[config.kind](config, grid)
