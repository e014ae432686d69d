"""Fits of simulated observations: closed forms, derivatives, cosmics, edges, and where a fit begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harps_dist.errors import ConfigError
from harps_dist.fitting.fitter import GRID, Fitter, Held, fitting_grid
from harps_dist.fitting.observation import Observation
from harps_dist.fitting.solve import Settings
from harps_dist.fitting.start import Start
from harps_dist.fitting.stellar import PackagedModel
from harps_dist.fitting.table import columns_of
from harps_dist.formats.sed import MODEL_ERRORS, SedGrid
from harps_dist.spectra.grid import Grid, named_grid

SMALL = Grid("small", 233_500, 8192)  # 6120.00-6201.91 Å, without tellurics
NO_AIR = Held({"airmass": 1.2, "pwv": 2.0})
STAR = {"teff": 5730.0, "logg": 4.37, "mh": -0.08, "vmic": 1.13, "variance": 5.0, "rv": -31.4}
AIR = {"berv": 12.0, "airmass": 1.2, "pwv": 2.0}
SNR = 100.0


@pytest.fixture(scope="module")
def fitter() -> Fitter:
    return Fitter(SMALL, held=NO_AIR, settings=Settings(continuum=4))


def parameters(**changes: float) -> torch.Tensor:
    return torch.tensor([list((STAR | AIR | changes).values())], dtype=torch.float64)


def observed(fitter: Fitter, count: int, seed: int = 0, **changes: float) -> tuple[np.ndarray, np.ndarray]:
    """Flux and sigma (count, pixel) of one star with a sloping continuum, each with noise of its own."""
    flux = fitter.observation.render(parameters(**changes), derivatives=False).flux[0].double().numpy()
    flux = flux * (1 + 0.05 * np.linspace(-1, 1, len(flux)) ** 2)
    flux /= np.median(flux)
    sigma = np.sqrt(flux) / SNR
    noise = np.random.default_rng(seed).normal(size=(count, len(flux)))
    return flux + sigma * noise, np.broadcast_to(sigma, noise.shape)


def test_the_stellar_model_is_the_grid():
    model = PackagedModel(dtype=torch.float64)
    labels = torch.tensor([[5777.0, 4.44, 0.03, 1.1], [7600.0, 3.8, -1.0, 2.2]], dtype=torch.float64)
    expected = np.log(SedGrid.packaged().sample(*labels.numpy().T).astype(np.float64))
    off = model.log_flux(labels).numpy() - expected
    np.testing.assert_allclose(off, off[:, :1].repeat(off.shape[1], axis=1), atol=1e-6)
    assert off[0, 0] == pytest.approx(off[1, 0], abs=1e-6)  # one constant for all
    np.testing.assert_allclose(model.grid.wave_aa, SedGrid.packaged().wave_aa, atol=1e-9)


def test_a_star_at_rest_is_drawn_where_its_lines_are():
    model = PackagedModel(dtype=torch.float64)
    at = Observation(model, SMALL, "cpu", torch.float64)
    star = parameters(variance=0.0, rv=0.0)
    drawn = at.render(star, derivatives=False).flux[0]
    air = at.transmission(*star[:, -3:].T, derivatives=False)[0][0]
    first = SMALL.start - model.grid.start
    expected = torch.exp(model.log_flux(star[:, : len(model.labels)])[0])[first : first + SMALL.length]
    np.testing.assert_allclose(drawn, expected * air, rtol=1e-3)


def test_derivatives_are_finite_differences():
    at = Observation(PackagedModel(dtype=torch.float64), GRID, "cpu", torch.float64)
    star = parameters(airmass=1.6, pwv=4.0)
    found = at.render(star).derivatives[0]
    steps = {"teff": 1.0, "logg": 1e-3, "mh": 1e-3, "vmic": 1e-3}
    for number, name in enumerate(at.names):
        moved = torch.zeros_like(star)
        moved[0, number] = steps.get(name, 1e-2)
        up, down = (at.render(star + sign * moved, derivatives=False).flux[0] for sign in (1, -1))
        expected = (up - down) / (2 * moved[0, number])
        off = (found[number] - expected).norm() / expected.norm()
        # labels by steps to one side, and lines of oxygen that are narrower than their lattice
        assert off < {"teff": 0.03, "logg": 0.02, "mh": 0.02, "berv": 0.08}.get(name, 1e-5), name


def test_a_receding_star_is_redder_and_a_faster_earth_shifts_tellurics():
    at = Observation(PackagedModel(dtype=torch.float64), GRID, "cpu", torch.float64)
    rest = at.render(parameters(rv=0.0, berv=0.0, airmass=2.0), derivatives=False).flux[0].numpy()
    moving = at.render(parameters(rv=50.0, berv=0.0, airmass=2.0), derivatives=False).flux[0].numpy()
    near = (GRID.wave_aa > 6121) & (GRID.wave_aa < 6124)
    core = GRID.wave_aa[near][rest[near].argmin()], GRID.wave_aa[near][moving[near].argmin()]
    assert core[0] == pytest.approx(6122.22, abs=0.02)  # Ca I
    assert core[1] == pytest.approx(core[0] * (1 + 50 / 299_792.458), abs=0.012)
    air = [at.transmission(*(torch.tensor([value]) for value in (berv, 2.0, 1.0)), False)[0][0] for berv in (0.0, 20.0)]
    band = (GRID.wave_aa > 6276) & (GRID.wave_aa < 6300)
    still, shifted = (1 - each.numpy()[band] for each in air)
    lag = np.correlate(shifted - shifted.mean(), still - still.mean(), "full").argmax() - (band.sum() - 1)
    assert lag == pytest.approx(20 / 299_792.458 * 6288 / 0.01, abs=1)


def test_a_star_is_found_back_within_its_errors(fitter):
    """Over 40 draws of noise; the bounds are five of their own standard deviations wide, and more."""
    draws = 40
    flux, sigma = observed(fitter, draws)
    fitted = fitter.fit(flux, sigma, [12.0] * draws)
    found, covariance = fitted.solution.parameters.numpy(), fitted.solution.covariance.numpy()
    for number, name in enumerate(fitted.names):
        if name not in STAR:
            assert fitted.held[:, number].all()
            assert (covariance[:, number] == 0).all()
            continue
        errors = np.sqrt(covariance[:, number, number])
        pull = (found[:, number] - STAR[name]) / errors
        assert abs(pull.mean()) < 0.9, name  # what float32 and clipping cost is below noise
        assert 0.6 < pull.std() < 1.5, name
        scaled = np.sqrt(fitted.solution.scaled.numpy()[:, number, number])
        assert 0.7 < np.median(scaled / errors) < 1.4, name  # residuals are noise here
    teff = fitted.names.index("teff")
    assert np.sqrt(covariance[:, teff, teff]).mean() < 20
    assert 0.9 < fitted.solution.chi2.mean() < 1.1
    assert (fitted.solution.chi2_start > 2).all()
    assert not fitted.solution.at_edge.any()


def test_cosmics_are_clipped_and_cost_nothing(fitter):
    flux, sigma = observed(fitter, 4)
    clean = fitter.fit(flux, sigma, [12.0] * 4).solution
    hits = np.random.default_rng(1).choice(flux.shape[1], 60, replace=False)
    spoilt = flux.copy()
    spoilt[:, hits] += 0.8
    found = fitter.fit(spoilt, sigma, [12.0] * 4).solution
    assert not found.used[:, hits].any()
    assert found.used.double().mean() > 0.985
    errors = clean.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((found.parameters - clean.parameters).abs() <= 3 * errors).all()


def test_missing_pixels_have_no_part(fitter):
    flux, sigma = observed(fitter, 1)
    holes = slice(1000, 2500)
    hidden, errors = flux.copy(), sigma.copy()
    hidden[:, holes], errors[:, holes] = 77.0, np.nan
    found, expected = (fitter.fit(flux, errors, [12.0]).solution for flux in (hidden, flux))
    assert torch.equal(found.parameters, expected.parameters)
    assert not found.used[:, holes].any()


def test_a_star_beyond_the_model_is_flagged_and_not_read(fitter):
    narrow = Fitter(SMALL, held=NO_AIR, settings=fitter.settings)
    narrow.ranges = narrow.ranges | {"teff": (6000.0, 8000.0)}
    flux, sigma = observed(fitter, 2)
    for one, outside in ((narrow, True), (fitter, False)):
        fitted = one.fit(flux, sigma, [12.0, 12.0])
        columns = columns_of(fitted, SMALL, sigma, np.ones(2), np.zeros(2, bool), MODEL_ERRORS)
        assert columns["flag_at_edge"].tolist() == [outside] * 2
        assert ("at_edge" in columns["flags"][0]) == outside
        assert np.isnan(columns["teff"]).all() == outside
        assert np.isnan(columns["teff_model_error"]).all() == outside
        assert np.isnan(columns["vmic_error"]).all() == outside
        np.testing.assert_allclose(columns["rv"], STAR["rv"], atol=0.1)
        assert np.isnan(columns["airmass_sigma"]).all()  # which was held
    broken = columns_of(fitted, SMALL, sigma, np.ones(2), np.array([True, False]), MODEL_ERRORS)
    assert np.isnan(broken["rv"]).tolist() == [True, False]


def test_what_is_held_stays_and_the_rest_moves(fitter):
    flux, sigma = observed(fitter, 2)
    held = Fitter(SMALL, held=Held(NO_AIR.values | {"vmic": 1.5}), settings=fitter.settings)
    fitted = held.fit(flux, sigma, [12.0, np.nan])
    values = dict(zip(fitted.names, fitted.solution.parameters.numpy().T, strict=True))
    np.testing.assert_array_equal(values["vmic"], 1.5)
    assert fitted.held[:, fitted.names.index("berv")].tolist() == [True, False]
    assert values["berv"][0] == 12.0
    assert (np.abs(values["teff"] - STAR["teff"]) > 20).all()  # another microturbulence is another temperature


@pytest.mark.parametrize("rv", [-180.0, -31.4, 0.0, 150.0])
def test_cross_correlation_finds_velocity_and_temperature(fitter, rv):
    start = Start(PackagedModel(), SMALL)
    flux, _ = observed(fitter, 1, rv=rv)
    found = start.of(flux[0], np.ones(flux.shape[1], bool))
    assert found["rv"] == pytest.approx(rv, abs=2.0)
    assert 4900 < found["teff"] < 6500
    low, high = 0.5, 2.5
    assert low <= found["vmic"] <= high


def test_a_start_that_is_given_is_taken(fitter):
    flux, sigma = observed(fitter, 1)
    given = {"teff": 5600.0, "logg": 4.2, "mh": 0.0, "vmic": 1.0, "rv": -31.0}
    patched = Fitter(SMALL, held=NO_AIR, settings=fitter.settings)
    patched._start = None  # which nothing asks
    found = patched.fit(flux, sigma, [12.0], [given]).solution
    expected = fitter.fit(flux, sigma, [12.0]).solution
    errors = expected.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((found.parameters - expected.parameters).abs() <= errors + 1e-9).all()


def test_impossible_requests_are_errors():
    with pytest.raises(ConfigError, match=r"vsini is no parameter of a fit\. Hold one of teff, logg"):
        Fitter(SMALL, held=Held({"vsini": 3.0}))
    with pytest.raises(ConfigError, match=r"vmic is held at 3.5, expected 0.5..2.5"):
        Fitter(SMALL, held=Held({"vmic": 3.5}))
    with pytest.raises(ConfigError, match=r"grid harps spans .* Fit a narrower grid"):
        Fitter(named_grid("harps"))
    assert fitting_grid(None) is GRID
    assert fitting_grid(named_grid("harps")) is GRID
    assert fitting_grid(named_grid("tiny")).name == "tiny"
