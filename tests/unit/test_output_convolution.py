"""The convolution to one channel in Triton against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harps_dist.kernels import output_convolution as module
from harps_dist.kernels.output_convolution import output_convolution
from harps_dist.kernels.tiles import Tile, Tiles
from tests.kernels import SHARED_BYTES, compiled_launches, error, interpreted


@interpreted
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    pixels=st.integers(1, 200),
    channels=st.sampled_from((1, 4, 12, 16)),
    kernel=st.sampled_from((1, 3, 5)),
    rows=st.sampled_from((16, 64)),
    programs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_float64(batch, pixels, channels, kernel, rows, programs, seed):
    torch.manual_seed(seed)
    module.OUTPUT = Tiles(forward=Tile(rows), backward=Tile(rows), programs=programs)
    layer = nn.Conv1d(channels, 1, kernel, padding=kernel // 2)
    exact = nn.Conv1d(channels, 1, kernel, padding=kernel // 2).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(batch, pixels, channels, requires_grad=True)
    double = x.detach().double().requires_grad_()
    y = output_convolution(x, layer.weight, layer.bias)
    expected_y = exact(double.transpose(1, 2)).squeeze(1)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    expected = torch.autograd.grad(expected_y, [double, *exact.parameters()], dy.double())
    for value, wanted in zip((y, *found), (expected_y, *expected), strict=True):
        assert error(value, wanted) < 1e-5 or (value - wanted).norm() < 1e-6


@pytest.mark.parametrize("architecture", SHARED_BYTES)
def test_compiles_without_spills(monkeypatch, architecture):
    launches = compiled_launches(monkeypatch, architecture, "triton_output", "output_forward", "output_backward")
    layer = nn.Conv1d(16, 1, 3, padding=1)
    x = torch.empty(1, 327680, 16, dtype=torch.bfloat16, requires_grad=True)
    y = output_convolution(x, layer.weight, layer.bias)
    y.backward(torch.empty_like(y))
    assert len(launches) == 2
    assert all(launch.stack == 0 and not launch.atomics for launch in launches)
