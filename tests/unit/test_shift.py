"""Shifts and broadening that can be learned through, against float64 and closed forms."""

import math

import numpy as np
import pytest
import torch

from harps_dist.spectra.doppler import C_KMS, bspline_coefficients, resample_shifted, spline_samples
from harps_dist.spectra.grid import MARGIN, named_grid
from harps_dist.spectra.shift import broadened_coefficients, shifted

GRID = named_grid("tiny")
SOURCE = GRID.widened(MARGIN)
VELOCITIES = torch.tensor([-199.0, -30.0, 0.0, 12.345, 160.0], dtype=torch.float64)


def lines(seed: int = 0, count: int = len(VELOCITIES), grid=SOURCE) -> torch.Tensor:
    """(count, pixel) float64 spectra of Gaussian lines that HARPS resolves."""
    rng = np.random.default_rng(seed)
    pixel = np.arange(grid.length)
    flux = np.ones((count, grid.length))
    for row in flux:
        for centre in rng.uniform(0, grid.length, grid.length // 40):
            near = slice(max(0, int(centre) - 40), int(centre) + 40)
            row[near] *= 1 - 0.6 * rng.random() * np.exp(-(((pixel[near] - centre) / 3.0) ** 2) / 2)
    return torch.from_numpy(flux)


def test_a_shift_is_that_of_the_simulator():
    coefficients = bspline_coefficients(lines())
    due = resample_shifted(coefficients, VELOCITIES, SOURCE, GRID)
    assert torch.equal(shifted(coefficients, VELOCITIES, SOURCE, GRID), due)
    assert torch.isfinite(due).all()


def test_derivatives_are_those_of_differences():
    coefficients = bspline_coefficients(lines(1)).requires_grad_()
    velocities = VELOCITIES.clone().requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(2).normal(size=(len(VELOCITIES), GRID.length)))
    (shifted(coefficients, velocities, SOURCE, GRID) * weights).sum().backward()

    def total(source, rv):
        return (shifted(source, rv, SOURCE, GRID) * weights).sum(1)

    with torch.no_grad():
        step = 1e-4
        by_velocity = (total(coefficients, VELOCITIES + step) - total(coefficients, VELOCITIES - step)) / (2 * step)
        torch.testing.assert_close(velocities.grad, by_velocity, rtol=1e-6, atol=1e-4)
        # linear in the coefficients: any direction tells all of the gradient
        direction = torch.from_numpy(np.random.default_rng(3).normal(size=coefficients.shape))
        along = total(coefficients + direction, VELOCITIES) - total(coefficients, VELOCITIES)
        torch.testing.assert_close((coefficients.grad * direction).sum(1), along, rtol=1e-9, atol=1e-9)


def test_float32_is_near_float64():
    coefficients, velocities = bspline_coefficients(lines(4)).float().requires_grad_(), VELOCITIES.float()
    precise = coefficients.detach().double().requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(5).normal(size=(len(VELOCITIES), GRID.length)))
    (shifted(coefficients, velocities, SOURCE, GRID) * weights.float()).sum().backward()
    (shifted(precise, velocities.double(), SOURCE, GRID) * weights).sum().backward()
    torch.testing.assert_close(coefficients.grad.double(), precise.grad, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["tiny", "harps"])
def test_broadening_is_a_gaussian_in_velocity_at_either_end(name):
    grid = named_grid(name)
    sigma = torch.tensor([0.0, 2.0, 15.0], dtype=torch.float64)
    flux = torch.ones(3, grid.length, dtype=torch.float64)
    places = [400, grid.length // 2, grid.length - 400]
    line_px = 4.0
    pixel = torch.arange(grid.length, dtype=torch.float64)
    for place in places:
        flux -= 0.5 * torch.exp(-(((pixel - place) / line_px) ** 2) / 2)
    found = spline_samples(broadened_coefficients(flux, sigma, grid))
    for place in places:
        width = sigma / C_KMS * (grid.wave0_aa / grid.step_aa + place)
        whole = torch.sqrt(line_px**2 + width**2)[:, None]
        near = torch.arange(-250, 251)
        due = 1 - 0.5 * line_px / whole * torch.exp(-((near[None] / whole) ** 2) / 2)
        assert float((found[:, near + place] - due).abs().max()) < 0.5 * 0.012 * line_px / float(whole[0]), place
    torch.testing.assert_close(found[0], flux[0], rtol=0, atol=1e-9)


def test_broadening_has_derivatives():
    flux = lines(6, 2, SOURCE).requires_grad_()
    sigma = torch.tensor([1.5, 7.0], dtype=torch.float64, requires_grad=True)
    weights = torch.from_numpy(np.random.default_rng(7).normal(size=flux.shape))
    (broadened_coefficients(flux, sigma, SOURCE) * weights).sum().backward()
    with torch.no_grad():
        step = 1e-5
        up, down = ((broadened_coefficients(flux, sigma + way * step, SOURCE) * weights).sum(1) for way in (1, -1))
        torch.testing.assert_close(sigma.grad, (up - down) / (2 * step), rtol=1e-5, atol=1e-6)
        whole = (broadened_coefficients(flux, sigma, SOURCE) * weights).sum()
        assert math.isclose(float((flux.grad * flux).sum()), float(whole), rel_tol=1e-9)  # linear in the flux
