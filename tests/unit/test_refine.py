"""Velocities by gradient: within their stated errors, which are the photon limit's, from where an encoder starts."""

import pytest
import torch

from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.models.build import build_model
from harps_dist.models.config import Encoder
from harps_dist.models.refine import VELOCITIES, check_refines, refine
from harps_dist.recipes import find_recipe
from harps_dist.runs.run import initial_model

SNR, DRAWS, STARS = 100, 12, 5


@pytest.fixture(scope="module")
def model(tiny_release):
    release = Release(tiny_release)
    made = initial_model(find_recipe("demo-ae-phys").changed(model={"width": 0.125}), release.manifest)
    made.begin(release)
    return made.eval()


@pytest.fixture(scope="module")
def truth(model) -> torch.Tensor:
    """(STARS, bottleneck) nodes of stars."""
    nodes = torch.randn(STARS, model.nodes, generator=torch.Generator().manual_seed(0)) * 0.3
    nodes[:, len(model.labels) :] = 0
    return nodes


def column(model, label: str) -> tuple[int, float]:
    number = model.labels.index(label)
    return number, float(model.label_std[number])


def noisy(model, truth, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        flux = model.decode(truth)
    sigma = flux.clamp(min=2e-3).sqrt() / SNR
    return flux + sigma * torch.randn(flux.shape, generator=torch.Generator().manual_seed(seed)), sigma


def started(model, truth) -> torch.Tensor:
    """Nodes as far from the truth as an encoder errs after minutes."""
    start = truth.clone()
    for label, off in {"rv": 4.0, "berv": -1.0}.items():
        number, unit = column(model, label)
        start[:, number] += off / unit
    return start


def test_errors_are_those_stated_and_those_the_photons_allow(model, truth):
    valid = torch.arange(model.decoder.length)
    (rv, rv_unit), (berv, berv_unit) = column(model, "rv"), column(model, "berv")
    pulls, start = [], started(model, truth)
    for seed in range(DRAWS):
        flux, sigma = noisy(model, truth, seed)
        found = refine(model, flux, start, sigma, valid)
        error = (found.nodes - truth)[:, [rv, berv]].double() * torch.tensor([rv_unit, berv_unit])
        pulls.append(error / found.covariance.diagonal(dim1=1, dim2=2).sqrt()[:, [rv, berv]])
    pulls = torch.stack(pulls)
    count = pulls[..., 0].numel()
    for velocity in range(2):  # the mean square pull is chi-square over its degrees of freedom: six deviations
        assert abs(float(pulls[..., velocity].square().mean()) - 1) < 6 * (2 / count) ** 0.5
    # the limit, by differences of the spectrum itself (Bouchy et al. 2001), without the continuum and berv to fit
    with torch.no_grad():
        up, down = truth.clone(), truth.clone()
        up[:, rv] += 0.05 / rv_unit
        down[:, rv] -= 0.05 / rv_unit
        slope = (model.decode(up) - model.decode(down)) / 0.1
    limit = ((slope / sigma) ** 2).sum(1) ** -0.5
    ratio = found.covariance[:, rv, rv].sqrt() / limit
    assert (ratio > 0.99).all()
    assert (ratio < 1.2).all()
    assert ((found.misfit - 1).abs() < 0.1).all()


def test_all_labels_are_found_within_their_errors(model, truth):
    valid, start = torch.arange(model.decoder.length), started(model, truth)
    intrinsic = [model.labels.index(name) for name in ("teff", "logg", "mh")]
    start[:, intrinsic] += torch.tensor([0.3, -0.3, 0.2])
    pulls = []
    for seed in range(DRAWS):
        flux, sigma = noisy(model, truth, 200 + seed)
        found = refine(model, flux, start, sigma, valid)
        error = (found.nodes - truth)[:, : len(model.labels)].double() * model.label_std.double()
        pulls.append(error / found.covariance.diagonal(dim1=1, dim2=2).sqrt())
    square = dict(zip(model.labels, torch.stack(pulls).square().mean((0, 1)).tolist(), strict=True))
    for name in ("rv", "teff", "mh", "logg"):  # chi-square of 60 draws over 60
        assert 0.3 < square[name] < 2.1


def test_what_an_encoder_says_beyond_the_model_spectra_is_found_back(model, truth):
    """Where nothing is drawn beyond a limit, no step would lead away from there."""
    valid, (logg, unit) = torch.arange(model.decoder.length), column(model, "logg")
    flux, sigma = noisy(model, truth, 300)
    start = truth.clone()
    start[:, logg] = float((model.model_spectra["logg"][1] - model.label_mean[logg]) / unit) + 0.6
    found = refine(model, flux, start, sigma, valid)
    error = (found.nodes - truth)[:, logg].double() * unit
    assert (found.covariance[:, logg, logg].sqrt() < 0.1).all()
    assert (error.abs() < 6 * found.covariance[:, logg, logg].sqrt()).all()


def test_a_worse_misfit_widens_the_errors_and_hits_do_not_pull(model, truth):
    valid = torch.arange(model.decoder.length)
    flux, sigma = noisy(model, truth, 100)
    calm = refine(model, flux, truth, sigma, valid)
    hit = flux.clone()
    hit[:, 1000::500] = 30.0
    struck = refine(model, hit, truth, sigma, valid)
    rv, unit = column(model, "rv")
    moved = (struck.nodes - calm.nodes)[:, rv].double() * unit
    assert (moved.abs() < 2 * calm.covariance[:, rv, rv].sqrt()).all()
    wrong = refine(model, flux, truth, sigma / 3, valid)  # noise that is three times what is said
    widened = wrong.covariance[:, rv, rv] / calm.covariance[:, rv, rv]
    assert ((widened.sqrt() - 1).abs() < 0.15).all()
    assert ((wrong.misfit / 3 - 1).abs() < 0.1).all()


def test_it_takes_a_model_that_reads_and_draws_both_velocities(model, tiny_release):
    check_refines(model, "this")
    encoder = build_model(Encoder(width=0.125), Release(tiny_release).grid)
    with pytest.raises(ConfigError, match="such as ae-phys"):
        check_refines(encoder, "cnn")
    unsupervised = find_recipe("beta-vae-u").changed(model={"width": 0.125, "decoder_width": 0.125}).model
    with pytest.raises(ConfigError, match="such as ae-phys"):
        check_refines(build_model(unsupervised, Release(tiny_release).grid), "beta-vae-u")


def test_a_step_that_makes_it_worse_is_not_taken(model, truth):
    """A spectrum without lines says nothing of velocities: what was read stays near."""
    valid = torch.arange(model.decoder.length)
    flat = torch.ones(STARS, model.decoder.length)
    found = refine(model, flat, truth, torch.full_like(flat, 0.01), valid)
    assert torch.isfinite(found.nodes).all()
    assert torch.isfinite(found.covariance).all()
    velocities = [column(model, name)[0] for name in VELOCITIES]
    assert float((found.nodes - truth)[:, velocities].abs().max()) < 2


def test_errors_hold_where_neighbouring_pixels_share_their_noise(model, truth):
    valid, (rv, unit), pulls = torch.arange(model.decoder.length), column(model, "rv"), []
    with torch.no_grad():
        flux = model.decode(truth)
    sigma = flux.clamp(min=2e-3).sqrt() / SNR
    for seed in range(DRAWS):
        white = torch.randn(STARS, 1, flux.shape[1] + 8, generator=torch.Generator().manual_seed(50 + seed))
        shared = torch.nn.functional.avg_pool1d(white, 9, stride=1)[:, 0] * 3  # as large, over nine pixels alike
        found = refine(model, flux + sigma * shared, truth, sigma, valid)
        error = (found.nodes - truth)[:, rv].double() * unit
        pulls.append(error / found.covariance[:, rv, rv].sqrt())
    square = float(torch.stack(pulls).square().mean())
    assert 0.3 < square < 2  # 60 draws; without what neighbours share, the pulls' mean square is 9


def test_lines_that_the_encoder_missed_by_far_are_found(model, truth):
    valid = torch.arange(model.decoder.length)
    flux, sigma = noisy(model, truth, 8)
    (rv, unit), start = column(model, "rv"), truth.clone()
    start[:, rv] += torch.tensor([60.0, -45.0, 20.0, -90.0, 33.0]) / unit
    found = refine(model, flux, start, sigma, valid)
    error = (found.nodes - truth)[:, rv].double() * unit
    assert (error.abs() < 6 * found.covariance[:, rv, rv].sqrt()).all()


def test_a_broken_spectrum_spoils_no_other(model, truth):
    valid = torch.arange(model.decoder.length)
    flux, sigma = noisy(model, truth, 7)
    alone = refine(model, flux[:2], truth[:2], sigma[:2], valid)
    flux[2], flux[3] = torch.nan, 0.0
    found = refine(model, flux, truth, sigma, valid)
    torch.testing.assert_close(found.nodes[:2], alone.nodes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.covariance[:2], alone.covariance, rtol=1e-3, atol=0)
