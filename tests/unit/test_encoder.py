"""An encoder's convolutions by the kernels are those of its modules, on both sides of the switch-over."""

from __future__ import annotations

import pytest
import torch

from harps_dist.kernels import tiles
from harps_dist.kernels.encoder import encode
from harps_dist.models.encoder import ConvEncoder
from tests.kernels import error, interpreted


@interpreted
def test_features_and_gradients_are_those_of_the_modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "LEAST_PIXELS", 512)  # four layers in Triton, eleven in PyTorch
        torch.manual_seed(0)
        encoder = ConvEncoder(4096, width=0.5, init="on_scale")
        exact = ConvEncoder(4096, width=0.5).double()
        exact.load_state_dict(encoder.state_dict())
        flux = torch.randn(2, 4096)
        features, expected = encode(encoder.layers, flux, torch.float32), exact(flux.double())
        weights = torch.randn_like(features)
        found = torch.autograd.grad(features, list(encoder.parameters()), weights)
        gradients = torch.autograd.grad(expected, list(exact.parameters()), weights.double())
    assert features.shape == expected.shape
    assert error(features, expected) < 1e-5
    for gradient, parameter, wanted in zip(found, encoder.parameters(), gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (parameter.dtype, parameter.shape)
        assert error(gradient, wanted) < 1e-4


def test_layers_that_are_small_need_no_triton(monkeypatch):
    monkeypatch.setattr(tiles, "LEAST_PIXELS", 10**6)
    encoder = ConvEncoder(4096, width=0.25)
    flux = torch.randn(2, 4096)
    with torch.autocast("cpu", torch.bfloat16):  # the kernels' own dtype holds
        features = encode(encoder.layers, flux, torch.float32)
    torch.testing.assert_close(features, encoder(flux), rtol=1e-4, atol=1e-5)
    assert encode(encoder.layers, flux, torch.bfloat16).dtype == torch.bfloat16
