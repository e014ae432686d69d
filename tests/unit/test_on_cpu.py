"""An encoder's convolutions in channels-last on a CPU are those of its layers, one spectrum at a time or several."""

from __future__ import annotations

import copy

import pytest
import torch

from harps_dist.kernels import on_cpu
from harps_dist.kernels.channels_last import conv_channels_last
from harps_dist.kernels.on_cpu import encode_on_cpu
from harps_dist.kernels.taps import Convolution
from harps_dist.models.encoder import ConvEncoder
from tests.kernels import error


@pytest.fixture
def encoder() -> ConvEncoder:
    torch.manual_seed(0)
    return ConvEncoder(8192, width=0.5, input_centre=0.9, input_scale=4.0, init="on_scale").requires_grad_(False)


def flux(count: int) -> torch.Tensor:
    return 1 + 0.1 * torch.randn(count, 8192, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("least", [1, 1024, 10**6], ids=["in turn", "some in turn", "together"])
def test_float32_is_that_of_the_layers_to_rounding(encoder, least, monkeypatch):
    monkeypatch.setattr(on_cpu, "LEAST_PIXELS", least)
    exact, names = copy.deepcopy(encoder).double()(flux(3).double()), list(encoder.state_dict())
    encoder.cpu_format = torch.float32
    encoder.layers.register_forward_pre_hook(lambda *_: pytest.fail("PyTorch's layers computed"))
    found = encoder(flux(3))
    assert found.dtype == torch.float32
    assert error(found, exact) < 1e-5
    assert list(encoder.state_dict()) == names


def test_bfloat16_rounds_activations_and_answers_in_float32(encoder):
    exact = encoder(flux(3))
    with torch.autocast("cpu", torch.bfloat16):
        eager = encoder(flux(3))
    encoder.cpu_format = torch.bfloat16
    found = encoder(flux(3))
    assert found.dtype == torch.float32
    assert 1e-4 < error(found, exact) < 1.5 * error(eager, exact)
    with torch.autocast("cpu", torch.float16):  # its own number format holds
        assert torch.equal(encoder(flux(3)), found)


def test_layers_of_many_pixels_do_not_see_the_batch(encoder, monkeypatch):
    """Computed one spectrum at a time, they give a spectrum the same bits in any company."""
    monkeypatch.setattr(on_cpu, "LEAST_PIXELS", 1)
    layers = encoder.layers
    together = encode_on_cpu(layers, flux(5), torch.float32)
    for number in range(5):
        assert torch.equal(encode_on_cpu(layers, flux(5)[number : number + 1], torch.float32)[0], together[number])


@pytest.mark.parametrize(("kernel", "stride", "group"), [(7, 2, 2), (5, 2, 4), (3, 1, 2)])
def test_pixels_in_groups_change_nothing(kernel, stride, group):
    torch.manual_seed(0)
    layer, x = torch.nn.Conv1d(2, 3, kernel, stride, (kernel - 1) // 2).double(), torch.randn(2, 2, 64).double()
    grouped = Convolution(kernel, stride, group=group)
    with torch.no_grad():
        found = conv_channels_last(x.transpose(1, 2).contiguous(), layer.weight, layer.bias, grouped)
        assert error(found.transpose(1, 2), layer(x)) < 1e-12
