"""Convolutions over rows are PyTorch's convolutions, whatever kernel, stride and group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harps_dist.errors import ConfigError
from harps_dist.kernels.taps import Convolution
from harps_dist.models.layers import ConvTranspose1d

CONVOLUTIONS = st.one_of(
    st.builds(Convolution, st.sampled_from((1, 3, 5, 7)), st.integers(1, 3), st.just(False), st.integers(1, 4)),
    st.builds(Convolution, st.sampled_from((1, 3, 5)), st.integers(1, 2), st.just(True), st.integers(1, 4)),
    st.builds(Convolution, st.just(4), st.just(2), st.just(True), st.integers(1, 4)),
)


def layer_of(convolution: Convolution, c_in: int, c_out: int) -> nn.Conv1d | nn.ConvTranspose1d:
    """PyTorch's layer of that kernel and stride."""
    if convolution.transposed:
        return ConvTranspose1d(c_in, c_out, convolution.kernel, convolution.stride)
    return nn.Conv1d(c_in, c_out, convolution.kernel, convolution.stride, (convolution.kernel - 1) // 2)


@settings(deadline=None)
@given(convolution=CONVOLUTIONS, rows=st.integers(1, 4))
def test_rows_are_the_convolution(convolution, rows):
    layer = layer_of(convolution, 3, 2).double()
    x = torch.randn(2, 3, rows * convolution.pixels_in, dtype=torch.float64)
    expected = layer(x).transpose(1, 2)
    taps, first, row_in, row_out = convolution.rows(3, 2)
    matrices = convolution.matrices(layer.weight, torch.float64)
    assert matrices.shape == (taps, row_in, row_out)
    x_rows = x.transpose(1, 2).reshape(2, rows, row_in)
    y_rows = torch.zeros(2, rows, row_out, dtype=torch.float64)
    for q in range(rows):
        for o in range(taps):
            if 0 <= q + first + o < rows:
                y_rows[:, q] += x_rows[:, q + first + o] @ matrices[o]
    assert convolution.length(x.shape[2]) == expected.shape[1]
    torch.testing.assert_close(y_rows.view(2, -1, 2) + layer.bias, expected)


@given(convolution=CONVOLUTIONS)
def test_the_gradient_of_the_weight_is_the_adjoint(convolution):
    weight = torch.randn_like(layer_of(convolution, 3, 2).weight).double()
    matrices = convolution.matrices(weight, torch.float64)
    other = torch.randn_like(matrices)
    torch.testing.assert_close((matrices * other).sum(), (weight * convolution.weight(other)).sum())


def test_an_even_kernel_is_refused():
    with pytest.raises(ConfigError, match="odd kernel"):
        Convolution(4)
