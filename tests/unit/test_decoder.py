"""Decoders' layers by the kernels are those of their modules, on both sides of the switch-over."""

from __future__ import annotations

import pytest
import torch

from harps_dist.kernels import tiles
from harps_dist.kernels.decoder import decode
from harps_dist.models.decoder import ConvDecoder, ResNetDecoder
from tests.kernels import error, interpreted

DECODERS = [(ConvDecoder, {}), (ResNetDecoder, {}), (ResNetDecoder, {"block": "appendix_b"})]


@pytest.mark.slow
@interpreted
def test_flux_and_gradients_are_those_of_the_modules():
    for kind, options in DECODERS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "LEAST_PIXELS", 2048)
            torch.manual_seed(0)
            decoder = kind(4096, 3, width=0.25, init="on_scale", **options)
            exact = kind(4096, 3, width=0.25, **options)
            exact.load_state_dict(decoder.state_dict())
            exact.double()
            inputs = torch.randn(2, 3)
            seed = decoder.seed(inputs).unflatten(1, (decoder.seed_channels, -1))
            flux = decode(decoder.layers, decoder.output, seed, torch.float32)
            expected = exact(inputs.double())
            weights = torch.randn_like(flux)
            found = torch.autograd.grad(flux, list(decoder.parameters()), weights)
            gradients = torch.autograd.grad(expected, list(exact.parameters()), weights.double())
        assert flux.shape == expected.shape
        assert flux.dtype == torch.float32
        assert error(flux, expected) < 1e-4
        scale = max(gradient.norm() for gradient in gradients)
        for gradient, wanted in zip(found, gradients, strict=True):
            # float32 takes some values near zero for the other side of a ReLU, in PyTorch as here
            assert error(gradient, wanted) < 0.05 or (gradient - wanted).norm() < 1e-4 * scale
