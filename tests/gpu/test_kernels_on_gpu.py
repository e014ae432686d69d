"""Kernels on a GPU: whole networks against float64, the same bits twice, and steps in a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from harps_dist.data.augment import Augment, Nuisance
from harps_dist.data.observer import Observer
from harps_dist.kernels.availability import available
from harps_dist.kernels.decoder import decode
from harps_dist.kernels.encoder import encode
from harps_dist.models.decoder import ConvDecoder, ResNetDecoder
from harps_dist.models.encoder import ConvEncoder
from harps_dist.spectra.grid import HARPS
from tests.kernels import error
from tests.unit.test_observer_by_kernels import NUISANCES, made_up
from tests.unit.test_observer_by_kernels import VALUES as OF_SPECTRA

pytestmark = pytest.mark.skipif(not available(), reason="needs a GPU and Triton")
LENGTH = 32768
VALUES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def draw(decoder, inputs, dtype):
    """What the decoder makes by the kernels."""
    return decode(decoder.layers, decoder.output, decoder.seed(inputs).unflatten(1, (decoder.seed_channels, -1)), dtype)


@pytest.fixture(autouse=True)
def strict():
    """No TF32 in what the kernels are compared with."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("dtype", VALUES)
def test_an_encoder_is_that_of_float64(dtype):
    torch.manual_seed(0)
    encoder = ConvEncoder(LENGTH, init="on_scale").cuda()
    flux = torch.randn(3, LENGTH, device="cuda")
    found = encode(encoder.layers, flux, dtype)
    assert error(found, encoder.double()(flux.double())) < VALUES[dtype]


@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("kind", [ConvDecoder, ResNetDecoder])
def test_a_decoder_is_that_of_float64(kind, dtype):
    torch.manual_seed(0)
    decoder = kind(LENGTH, 5, init="on_scale").cuda()
    inputs = torch.randn(3, 5, device="cuda")
    found = draw(decoder, inputs, dtype)
    assert error(found, decoder.double()(inputs.double())) < VALUES[dtype]


def test_gradients_have_the_same_bits():
    encoder, decoder = ConvEncoder(LENGTH).cuda(), ResNetDecoder(LENGTH, 5).cuda()
    flux, inputs = torch.randn(3, LENGTH, device="cuda"), torch.randn(3, 5, device="cuda")

    def gradients():
        features, drawn = encode(encoder.layers, flux, torch.bfloat16), draw(decoder, inputs, torch.bfloat16)
        total = features.float().square().sum() + drawn.square().sum()
        return torch.autograd.grad(total, [*encoder.layers.parameters(), *decoder.parameters()])

    torch.backends.cudnn.deterministic, before = True, torch.backends.cudnn.deterministic
    try:
        assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))
    finally:
        torch.backends.cudnn.deterministic = before


def test_a_step_in_a_cuda_graph_is_the_step():
    encoder = ConvEncoder(LENGTH).cuda()
    flux = torch.randn(3, LENGTH, device="cuda")

    def gradients():
        features = encode(encoder.layers, flux, torch.bfloat16)
        return torch.autograd.grad(features.float().square().sum(), list(encoder.parameters()))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [gradients() for _ in range(3)][-1]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = gradients()
    graph.replay()
    torch.cuda.synchronize()
    assert all(error(a, b) < 1e-2 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shift", ["cubic", "linear"])
@pytest.mark.parametrize("berv_kms", [0.0, 30.0])
@pytest.mark.parametrize("nuisance", [Nuisance(), NUISANCES])
def test_spectra_are_those_of_float64(shift, berv_kms, nuisance):
    device = torch.device("cuda")
    decoding, raw = made_up(HARPS, 1, 3, residuals=True)
    augment, raw = Augment(shift=shift, berv_kms=berv_kms, nuisance=nuisance), raw.to(device)
    by_kernels = Observer(decoding, augment, device, kernels="triton")
    found, expected = by_kernels(raw).flux, Observer(decoding, augment, device, dtype=torch.float64)(raw).flux
    assert (found - expected).abs().max() < OF_SPECTRA
    assert torch.equal(found, by_kernels(raw).flux)
