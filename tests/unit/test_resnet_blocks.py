"""Residual blocks in Triton: values, gradients and statistics in its interpreter, registers from its compiler."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harps_dist.kernels import resnet_blocks as resnet
from harps_dist.kernels.resnet_blocks import EPS, Block, instance_statistics, resnet_blocks
from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import Tile, Tiles, tiles_for_block
from harps_dist.models.decoder import PreActTransResNetBlock
from tests.kernels import SHARED_BYTES, compiled_launches, error, interpreted

HOT = [((64, 32, 32), 10240), ((32, 32, 32), 20480), ((32, 16, 16), 40960), ((16, 16, 16), 163840)]


def tiles(group: int = 1, rows: int = 16, chunk: int = 32, programs: int = 3) -> Tiles:
    return Tiles(group, Tile(rows), chunk, Tile(rows), programs)


def network(channels: list[int], kernel: int, stride: int) -> nn.Sequential:
    """Blocks as the decoders have them: kernel 5 changes channels in its first convolution, kernel 3 in its last."""
    pairs = pairwise(channels)
    return nn.Sequential(*(PreActTransResNetBlock(a, b if kernel == 5 else a, b, kernel, stride) for a, b in pairs))


def parameters(blocks: nn.Sequential) -> list[nn.Parameter]:
    return [p for block in blocks for part in (block.conv1, block.conv2, block.skip) for p in part.parameters()]


@interpreted
@settings(max_examples=15, deadline=None)
@given(
    channels=st.sampled_from(([16, 16], [8, 4], [4, 8, 6], [16, 4, 1])),
    kernel=st.sampled_from((3, 5)),
    stride=st.sampled_from((1, 2)),
    group=st.integers(1, 2),
    rows=st.sampled_from((16, 32)),
    chunk=st.sampled_from((16, 32)),
    programs=st.integers(1, 4),
    pixels=st.integers(8, 50),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_float64(
    channels, kernel, stride, group, rows, chunk, programs, pixels, batch, seed
):
    if stride == 1 and channels[0] == channels[1]:
        channels = [channels[0] + 4, *channels[1:]]  # a block of equal shapes has no skip convolution
    torch.manual_seed(seed)
    of = tiles(group, rows, chunk, programs)
    net = network(channels, kernel, stride)
    exact = network(channels, kernel, stride).double()
    exact.load_state_dict(net.state_dict())
    x = (torch.randn(batch, pixels, channels[0]) * 2 + 3).requires_grad_()
    y = resnet_blocks(x, [Block(kernel, stride, of, of) for _ in net], parameters(net))
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *parameters(net)], dy)
    double = x.detach().double().requires_grad_()
    expected_y = exact(double.transpose(1, 2)).transpose(1, 2)
    expected = torch.autograd.grad(expected_y, [double, *parameters(exact)], dy.double())
    assert error(y, expected_y) < 1e-5
    scale = max(gradient.norm() for gradient in expected[1:])
    for gradient, wanted in zip(found, expected, strict=True):  # a bias before a norm has gradient 0
        assert error(gradient, wanted) < 1e-4 or (gradient - wanted).norm() < 1e-5 * scale


@interpreted
def test_float16_is_as_good_as_its_rounding():
    torch.manual_seed(0)
    net = network([16, 16, 8], 5, 2)
    x = torch.randn(2, 100, 16)
    y = resnet_blocks(x.half(), [Block(5, 2, tiles(), tiles()) for _ in net], parameters(net))
    assert y.dtype == torch.float16
    assert error(y, net.double()(x.half().double().transpose(1, 2)).transpose(1, 2)) < 3e-3


@interpreted
@settings(max_examples=10, deadline=None)
@given(
    offset=st.sampled_from((0.0, -1e3, 1e3)),
    pixels=st.integers(9, 200),
    rows=st.sampled_from((16, 64)),
    stride=st.sampled_from((1, 2)),
    seed=st.integers(0, 99),
)
def test_statistics_hold_where_the_mean_is_many_deviations(offset, pixels, rows, stride, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, pixels, 4)
    convolution = Convolution(5, stride, True)
    matrices = convolution.matrices(torch.randn(4, 3, 5) * 0.3, torch.float32)
    bias = torch.full((3,), offset)
    norm = resnet._Norm(x, instance_statistics(x))
    y, statistics = resnet._convolve(norm, convolution, matrices, bias, tiles(rows=rows), None, True)
    variance, mean = torch.var_mean(y.double(), dim=1, correction=0)
    deviation = (variance + EPS).sqrt()
    assert ((statistics[:, 0] - mean).abs() / deviation).max() < 1e-3
    assert (statistics[:, 1] * deviation - 1).abs().max() < 1e-3


@interpreted
def test_gradients_have_the_same_bits():
    torch.manual_seed(0)
    net = network([8, 8, 4], 5, 2)
    x, dy = torch.randn(2, 50, 8), torch.randn(2, 200, 4)

    def gradients():
        y = resnet_blocks(x, [Block(5, 2, tiles(), tiles()) for _ in net], parameters(net))
        return torch.autograd.grad(y, parameters(net), dy)

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("architecture", SHARED_BYTES)
@pytest.mark.parametrize(("channels", "pixels"), HOT)
def test_hot_shapes_compile_without_spills(monkeypatch, architecture, channels, pixels):
    kernels = "triton_resnet", "norm_conv_forward", "norm_conv_backward", "finish_statistics"
    launches = compiled_launches(monkeypatch, architecture, *kernels)
    dtype = torch.bfloat16
    net = nn.Sequential(PreActTransResNetBlock(*channels, 5, 2), PreActTransResNetBlock(channels[2], 16, 16, 5, 2))
    first = Block(5, 2, *tiles_for_block(channels, 5, 2, dtype))
    second = Block(5, 2, *tiles_for_block((channels[2], 16, 16), 5, 2, dtype))
    x = torch.empty(32, pixels, channels[0], dtype=dtype, requires_grad=True)
    y = resnet_blocks(x, [first, second], parameters(net))
    y.backward(torch.empty_like(y))
    assert len(launches) == 4 + 3 + 4  # the last activation needs no statistics
    for launch in launches:
        assert launch.shared <= SHARED_BYTES[architecture]
        assert launch.stack <= 64, launch
        assert not launch.atomics
