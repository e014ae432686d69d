"""Convolution with LeakyReLU in Triton: values and gradients in its interpreter, and what the compiler makes of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from harps_dist.kernels.conv_leaky import conv_leaky
from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import Tile, Tiles, fused
from harps_dist.models.encoder import CHANNELS, KERNELS
from tests.kernels import SHARED_BYTES, compiled_launches, error, interpreted
from tests.unit.test_taps import CONVOLUTIONS, layer_of

SLOPE = 0.1
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3}
TILES = st.builds(
    Tiles,
    forward=st.builds(Tile, st.sampled_from((16, 32))),
    chunk=st.sampled_from((16, 32)),
    backward=st.builds(Tile, st.sampled_from((16, 32))),
    programs=st.integers(1, 4),
)
HOT = [(c_in, c_out, KERNELS[i], 327680 >> i) for i, (c_in, c_out) in enumerate(pairwise((1, *CHANNELS[:8])))]


@interpreted
@settings(max_examples=40, deadline=None)
@given(
    convolution=CONVOLUTIONS,
    tiles=TILES,
    c_in=st.sampled_from((1, 3, 16, 20)),
    c_out=st.sampled_from((1, 5, 16)),
    pixels=st.integers(1, 70),
    batch=st.integers(1, 3),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_float64(convolution, tiles, c_in, c_out, pixels, batch, dtype, seed):
    torch.manual_seed(seed)
    layer = layer_of(convolution, c_in, c_out)
    x = torch.randn(batch, pixels, c_in).to(dtype).requires_grad_()
    y = conv_leaky(x, layer.weight, layer.bias, convolution, SLOPE, tiles)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)

    exact = layer_of(convolution, c_in, c_out).double()
    exact.load_state_dict(layer.state_dict())
    exact.weight.data = exact.weight.data.to(dtype).double()  # what the kernel multiplies with
    double = x.detach().double().requires_grad_()
    sums = exact(double.transpose(1, 2)).transpose(1, 2)
    # a value near zero may have either sign; its gradient then is right for that sign
    expected = torch.autograd.grad(sums, [double, exact.weight, exact.bias], dy.double().where(y > 0, SLOPE * dy))
    assert y.shape == sums.shape
    assert y.dtype == dtype
    assert error(y, F.leaky_relu(sums, SLOPE)) < TOLERANCES[dtype]
    for gradient, wanted in zip(found, expected, strict=True):
        assert error(gradient, wanted) < TOLERANCES[dtype] or (gradient - wanted).norm() < 1e-6


@interpreted
def test_gradients_have_the_same_bits_and_leave_out_what_needs_none():
    layer = layer_of(Convolution(5, 2), 4, 6)
    x, dy = torch.randn(3, 101, 4), torch.randn(3, 51, 6)
    tiles = Tiles(forward=Tile(16), chunk=16, backward=Tile(16), programs=4)

    def gradients(x):
        y = conv_leaky(x, layer.weight, layer.bias, Convolution(5, 2), SLOPE, tiles)
        y.backward(dy)
        found = [layer.weight.grad, layer.bias.grad]
        layer.zero_grad()
        return found

    first = gradients(x)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(x.requires_grad_()), strict=True))
    assert x.grad is not None
    with torch.no_grad():
        assert not conv_leaky(x, layer.weight, layer.bias, Convolution(5, 2), SLOPE, tiles).requires_grad


@pytest.mark.parametrize("architecture", SHARED_BYTES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_hot_shapes_compile_without_spills(monkeypatch, architecture, dtype):
    kernels = "triton_convolution", "conv_leaky_forward", "conv_leaky_backward"
    launches = compiled_launches(monkeypatch, architecture, *kernels)
    hot = [layer for layer in HOT if fused(layer[3], *layer[:2], Convolution(layer[2], 2), dtype)]
    for c_in, c_out, kernel, pixels in hot:
        layer = layer_of(Convolution(kernel, 2), c_in, c_out)
        x = torch.empty(
            32,
            pixels,
            c_in,  # no page of it is touched
            dtype=dtype,
            requires_grad=c_in > 1,
        )
        y = conv_leaky(x, layer.weight, layer.bias, Convolution(kernel, 2), SLOPE)
        y.backward(torch.empty_like(y))
    assert len(hot) >= 5
    assert len(launches) == 2 * len(hot)
    for launch in launches:
        assert launch.shared <= SHARED_BYTES[architecture]
        assert launch.stack <= 16  # 32 to 64 channels on sm_80; 0 elsewhere
        assert not launch.atomics
