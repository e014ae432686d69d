"""Nuisances by the kernels are those by PyTorch, each alone and together."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from harps_dist.kernels.nuisances import disturbed, prefiltered
from harps_dist.spectra.doppler import bspline_coefficients, spline_samples
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.nuisance import broaden, scale_lines, smooth_noise
from tests.kernels import SHARED_BYTES, compiled_launches, error, interpreted

GRID = Grid("some", 231_000, 2_345)


def made_up() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-32768, 32767, (2, GRID.length), generator=draw).to(torch.int16)
    return codes, torch.tensor([[1e-5, 1.0], [2e-5, 3.0]])


@interpreted
def test_nuisances_are_those_of_float64():
    codes, scale = made_up()
    draw = torch.Generator().manual_seed(1)
    errors = 0.2 * torch.randn(2, 49, generator=draw)
    ripples = 0.05 * torch.randn(2, 8, generator=draw)
    sigma_kms = torch.tensor([3.0, 0.4])
    for with_lines, with_broadening, with_ripples in product((False, True), repeat=3):
        found = disturbed(
            codes,
            scale,
            errors if with_lines else None,
            (lambda flux: broaden(flux, GRID, sigma_kms)) if with_broadening else None,
            ripples if with_ripples else None,
        )
        expected = spline_samples(codes.double() * scale[:, :1].double() + scale[:, 1:].double())
        if with_lines:
            expected = scale_lines(expected, smooth_noise(errors.double(), GRID.length))
        if with_broadening:
            expected = broaden(expected, GRID, sigma_kms)
        if with_ripples:
            expected = expected * (1 + smooth_noise(ripples.double(), GRID.length))
        assert found.dtype == torch.float32
        assert error(found, expected) < 3e-7, (with_lines, with_broadening, with_ripples)
        torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=0)
    coefficients = bspline_coefficients(found.double())
    torch.testing.assert_close(prefiltered(found).double(), coefficients, rtol=0, atol=1e-6 * float(found.max()))


@pytest.mark.parametrize("architecture", SHARED_BYTES)
def test_compiles_without_spills(monkeypatch, architecture):
    kernels = ("block_maxima", "disturb_samples", "prefilter")
    launches = compiled_launches(monkeypatch, architecture, "triton_nuisances", *kernels)
    codes, scale = made_up()
    errors, ripples = torch.empty(2, 49), torch.empty(2, 8)
    disturbed(codes, scale, errors, None, ripples)
    prefiltered(disturbed(codes, scale, errors, lambda flux: flux, ripples))
    assert [launch.kernel for launch in launches] == ["block_maxima", "disturb_samples"] * 2 + [
        "disturb_samples",
        "prefilter",
    ]
    assert all(launch.stack == 0 and not launch.atomics for launch in launches)
