"""InstanceNorm and ReLU in Triton against float64, also where the mean is many deviations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from harps_dist.kernels.norm_relu import norm_relu
from tests.kernels import SHARED_BYTES, compiled_launches, error, interpreted


@interpreted
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    pixels=st.integers(9, 600),
    channels=st.sampled_from((1, 4, 16, 20, 48)),
    offset=st.sampled_from((0.0, 1e3)),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_float64(batch, pixels, channels, offset, seed):
    torch.manual_seed(seed)
    x = (torch.randn(batch, pixels, channels) + offset).requires_grad_()
    double = x.detach().double().requires_grad_()
    y, normalised = norm_relu(x), F.instance_norm(double.transpose(1, 2)).transpose(1, 2)
    dy = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, [x], dy)
    # a value near the mean may have either sign; its gradient then is right for that sign
    (expected,) = torch.autograd.grad(normalised, [double], dy.double().where(y > 0, torch.zeros(())))
    tolerance = 1e-3 if offset else 1e-5
    assert error(y, normalised.relu()) < tolerance
    assert (found - expected).norm() < tolerance * max(expected.norm(), dy.norm())


@pytest.mark.parametrize("architecture", SHARED_BYTES)
def test_compiles_without_spills(monkeypatch, architecture):
    launches = compiled_launches(monkeypatch, architecture, "triton_norm", "norm_relu_forward", "norm_relu_backward")
    for pixels, channels in ((20, 512), (5120, 64)):
        y = norm_relu(torch.empty(1, pixels, channels, dtype=torch.bfloat16, requires_grad=True))
        y.backward(torch.empty_like(y))
    assert len(launches) == 4
    assert all(launch.stack == 0 and not launch.atomics for launch in launches)
