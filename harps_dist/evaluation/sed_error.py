"""How well true labels draw a star at rest: the emulator of a model with physics against a release's model spectra.

Tested in tests/unit/test_physical.py.
"""

from __future__ import annotations

import numpy as np
import torch

from harps_dist.data.batches import RawBatch
from harps_dist.data.observer import Batch
from harps_dist.models.release_physics import fitting
from harps_dist.models.supervised import PhysicalSemiSupervised
from harps_dist.spectra.doppler import spline_samples
from harps_dist.spectra.grid import Grid


@torch.no_grad()
def sed_error(model: PhysicalSemiSupervised, raw: RawBatch, batch: Batch, source: Grid) -> np.ndarray:
    """(batch,) root mean square over pixels, in medians of the flux, of simulated spectra that a batch holds alone.

    raw: what the batch was made of; source: the grid of its model spectra.
    """
    decoder = model.decoder
    truth = spline_samples(raw.sed.double() * raw.sed_scale[:, :1] + raw.sed_scale[:, 1:]).cpu().numpy()
    drawn = spline_samples(decoder.sed(model.own(batch.labels).to(decoder.terms))).exp().cpu().numpy()
    truth = fitting(truth, source, decoder.source_grid)
    truth, drawn = (flux / np.median(flux, axis=1, keepdims=True) for flux in (truth, drawn))
    return np.sqrt(((drawn - truth) ** 2).mean(axis=1))
