"""Fits by the emulator of a trained model."""

import pytest
import torch

from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.fitting.emulated import EmulatedModel
from harps_dist.models.build import build_model
from harps_dist.models.config import Encoder
from harps_dist.recipes import find_recipe
from harps_dist.runs.run import initial_model


def test_a_fit_asks_for_what_the_decoder_draws_at_rest(tiny_release):
    release = Release(tiny_release)
    model = initial_model(find_recipe("demo-ae-phys").changed(model={"width": 0.125}), release.manifest)
    model.begin(release)
    stars = EmulatedModel(model, "phys")
    assert stars.labels == ("teff", "mh", "logg", "vmic")
    assert stars.ranges.keys() == set(stars.labels)
    assert stars.grid.length == model.decoder.source_grid.length
    middle = torch.tensor([[sum(stars.ranges[name]) / 2 for name in stars.labels]])
    log_flux = stars.log_flux(middle)
    assert log_flux.shape == (1, stars.grid.length)
    assert 0.01 < float(log_flux.exp().std()) < 0.3
    hotter = middle.clone()
    hotter[:, 0] += 300
    assert float((stars.log_flux(hotter) - log_flux).abs().max()) > 1e-3
    with pytest.raises(ConfigError, match="such as the recipe ae-phys"):
        EmulatedModel(build_model(Encoder(width=0.125), release.grid), "cnn")
