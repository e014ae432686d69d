"""The emulator of model spectra: held-out spectra, ranges, what it refuses."""

import numpy as np
import pytest
import torch

from harps_dist.errors import ConfigError
from harps_dist.formats.sed import SedGrid
from harps_dist.models.emulator import SedEmulator, decomposed
from harps_dist.spectra.doppler import spline_samples
from harps_dist.spectra.labels import INTRINSIC

PIXELS = slice(11_000, 15_096)


def spectra(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3) teff, mh, logg and (count, pixel) fluxes of the packaged grid in medians of themselves."""
    grid, rng = SedGrid.packaged(), np.random.default_rng(seed)
    labels = np.stack([rng.uniform(4500, 7500, count), rng.uniform(-1.1, 0.35, count), rng.uniform(3.6, 4.9, count)], 1)
    flux = grid.sample(labels[:, 0], labels[:, 2], labels[:, 1])[:, PIXELS].astype(np.float64)
    return labels, flux / np.median(flux, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def emulator():
    labels, flux = spectra(300, 0)
    made = SedEmulator(flux.shape[1], 40, 320, INTRINSIC)
    made.fit(labels, np.log(flux))
    return made


def drawn(emulator, labels) -> np.ndarray:
    log_flux = emulator.log_flux(emulator.coefficients(torch.as_tensor(labels).float()))
    flux = spline_samples(log_flux).exp().numpy()
    return flux / np.median(flux, axis=1, keepdims=True)


def test_held_out_spectra_are_drawn_to_a_thousandth_of_the_continuum(emulator):
    labels, flux = spectra(60, 1)
    error = np.sqrt(((drawn(emulator, labels) - flux) ** 2).mean(axis=1))
    assert np.median(error) < 1e-3
    assert error.max() < 1e-2
    assert np.median(error) < 0.02 * flux.std()  # a mean spectrum errs by as much as they differ


def test_labels_beyond_the_range_count_as_its_end(emulator):
    (low, high), *_ = emulator.ranges.values()
    assert list(emulator.ranges) == list(INTRINSIC)
    assert 4500 <= low < 4600
    assert 7400 < high <= 7500
    ends = drawn(emulator, [[high, 0.0, 4.4], [high + 3000, 0.0, 4.4]])
    np.testing.assert_array_equal(*ends)


def test_before_it_is_fitted_it_draws_flat_spectra():
    made = SedEmulator(100, 8, 32)
    assert float(made.log_flux(made.coefficients(torch.tensor([[5777.0, 0.0, 4.4]]))).abs().max()) == 0


@pytest.mark.parametrize("count", [5, 400])
def test_too_few_or_too_many_spectra_are_refused(count):
    with pytest.raises(ConfigError, match="Give 6 to 320"):
        SedEmulator(64, 8, 320).fit(np.ones((count, 3)), np.ones((count, 64)))


def test_fewer_vectors_than_the_basis_holds_are_filled_up():
    labels, flux = spectra(12, 2)
    made = SedEmulator(flux.shape[1], 40, 64)
    made.fit(labels, np.log(flux))
    assert np.abs(drawn(made, labels) - flux).max() < 2e-2
    assert not made.basis[12:].any()
    assert not made.nodes[12:].any()


def test_principal_components_are_those_of_the_singular_values():
    values = np.random.default_rng(3).normal(size=(20, 50)) * np.linspace(0.1, 3, 20)[:, None]
    found = decomposed(values, 5)
    _, strengths, axes = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs((found.vectors * axes[:5]).sum(axis=1)), 1, atol=1e-5)
    np.testing.assert_allclose(np.sqrt((found.coefficients**2).sum(axis=0)), strengths[:5], rtol=1e-5)
