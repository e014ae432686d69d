"""Weights in another label scale predict and draw the same."""

from __future__ import annotations

import pytest
import torch

from harps_dist.data.observer import Batch
from harps_dist.models.build import build_model
from harps_dist.models.config import Autoencoder, Decoder, Encoder
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.labels import NAMES, SEVEN

TINY = named_grid("tiny")
BEFORE = ({name: 10.0 * k + 1 for k, name in enumerate(NAMES)}, {name: 0.5 + k for k, name in enumerate(NAMES)})
AFTER = ({name: 3.0 - k for k, name in enumerate(NAMES)}, {name: 7.0 / (k + 1) for k, name in enumerate(NAMES)})


def pair(config):
    """A model with every weight drawn, and another in another scale that adopted it; float64, evaluation mode."""
    torch.manual_seed(1)
    old, new = build_model(config, TINY).double().eval(), build_model(config, TINY).double().eval()
    old.set_label_scale(*BEFORE)
    new.set_label_scale(*AFTER)
    with torch.no_grad():
        for weight in old.parameters():
            weight.copy_(0.1 * torch.randn_like(weight))
    new.adopt(old.state_dict(), old.labels)
    assert not torch.equal(old.label_mean, new.label_mean)
    return old, new


def batch(size: int = 3) -> Batch:
    fields = dict.fromkeys(Batch._fields)
    return Batch(**fields | {"flux": 1 + 0.1 * torch.randn(size, TINY.length, dtype=torch.float64)})


@pytest.mark.parametrize("uncertainty", ["none", "laplace"])
@pytest.mark.parametrize("labels", [SEVEN, ("logg", "teff")])
def test_an_encoder_predicts_the_same(uncertainty, labels):
    old, new = pair(Encoder(width=0.25, uncertainty=uncertainty, labels=labels))
    seen = batch()
    with torch.no_grad():
        before, after = old(seen), new(seen)
    torch.testing.assert_close(new.physical(after.labels), old.physical(before.labels), rtol=1e-12, atol=1e-10)
    assert not torch.allclose(after.labels, before.labels)
    if uncertainty != "none":
        sigma = [torch.exp(out.log_scale) * model.label_std for out, model in ((before, old), (after, new))]
        torch.testing.assert_close(*sigma, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variational", [False, True])
def test_an_autoencoder_predicts_and_draws_the_same(variational):
    old, new = pair(Autoencoder(width=0.25, decoder_width=0.25, architecture="cnn", variational=variational))
    seen = batch()
    with torch.no_grad():
        before, after = old(seen), new(seen)
        spread = [model.encode(seen.flux).log_variance for model in (old, new)]
    torch.testing.assert_close(new.physical(after.labels), old.physical(before.labels), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(after.reconstruction, before.reconstruction, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after.nodes[:, 7:], before.nodes[:, 7:], rtol=0, atol=0)
    sigma = [torch.exp(0.5 * s[:, :7]) * model.label_std for s, model in zip(spread, (old, new), strict=True)]
    torch.testing.assert_close(*sigma, rtol=1e-12, atol=0)


def test_a_decoder_draws_the_same_alone_and_inside_an_autoencoder():
    old, new = pair(Decoder(architecture="cnn", width=0.25))
    labels = 5 * torch.randn(4, len(NAMES), dtype=torch.float64)
    with torch.no_grad():
        drawn = old.decode(old.normalise(labels))
        torch.testing.assert_close(new.decode(new.normalise(labels)), drawn, rtol=1e-10, atol=1e-10)
        inside = build_model(Autoencoder(architecture="cnn", width=0.25, decoder_width=0.25), TINY).double().eval()
        inside.set_label_scale(*AFTER)
        inside.adopt(old.state_dict(), old.labels)
        nodes = torch.cat([inside.normalise(labels), torch.randn(4, 2, dtype=torch.float64)], dim=1)
        torch.testing.assert_close(inside.decode(nodes), drawn, rtol=1e-10, atol=1e-10)
