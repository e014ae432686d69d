"""Anomaly scores against closed forms: chi2 of noise and of a known misfit, distances in a known Gaussian."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harps_dist.errors import ExportError
from harps_dist.inference.anomaly import (
    POWERS,
    LatentGaussian,
    Likeness,
    Misfit,
    Orders,
    Reference,
    leading_axes,
    misfit,
    power,
)
from harps_dist.inference.calibrate import HeldOut, SplitPredictions, calibrated_anomaly, stars_needed
from harps_dist.spectra.grid import HARPS, named_grid
from harps_dist.spectra.noise import NOISE_CHUNK, NOISE_FLOOR, photon_noise


def test_every_valid_pixel_of_harps_belongs_to_the_order_whose_centre_is_nearest():
    orders = Orders.of(HARPS)
    assert orders.numbers == tuple(m for m in range(161, 88, -1) if m != 115)
    assert orders.first == 0
    assert sum(orders.sizes) == HARPS.valid.sum() == 309_060
    wave_aa, centres = HARPS.wave_aa[HARPS.valid], 611_400 / np.array(orders.numbers)
    expected = np.abs(wave_aa[:, None] - centres).argmin(axis=1)
    number = np.repeat(np.arange(len(orders.sizes)), orders.sizes)
    off = np.flatnonzero(number != expected)
    middle = np.abs(np.abs(wave_aa[off] - centres[number[off]]) - np.abs(wave_aa[off] - centres[expected[off]]))
    assert len(off) == 0 or middle.max() < 1e-6  # exactly between two
    gap = HARPS.wave_aa[[HARPS.instrument.gap[0] - HARPS.start, HARPS.instrument.gap[1] - HARPS.start]]
    assert gap[0] < 611_400 / 115 < gap[1] + 20  # where order 115 would be


def test_a_window_has_the_orders_that_it_covers():
    assert Orders.of(named_grid("demo")).numbers == (102, 101, 100, 99, 98, 97)
    assert Orders.of(named_grid("tiny")).numbers == (100,)
    values = torch.arange(4096.0)[None]
    torch.testing.assert_close(Orders.of(named_grid("tiny")).means(values), torch.tensor([[2047.5]]))


def spectra(count: int, snr: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flux with lines, its noisy observation, and the variance per flux of every chunk that went in, on `demo`."""
    draw, pixels = np.random.default_rng(seed), named_grid("demo").length
    flux = 1 - 0.4 * np.exp(-(((np.arange(pixels) % 300) - 150) ** 2) / 200) + 0 * draw.random((count, 1))
    variance = np.full((count, pixels // NOISE_CHUNK), snr**-2.0)
    sigma = np.sqrt(np.repeat(variance, NOISE_CHUNK, axis=1) * (flux + NOISE_FLOOR))
    return tuple(torch.from_numpy(part) for part in (flux, flux + sigma * draw.normal(size=flux.shape), variance))


@pytest.mark.parametrize("snr", [10, 200])
def test_chi2_of_a_perfect_reconstruction_is_one_in_every_order(snr):
    flux, observed, noise = spectra(20, snr, seed=snr)
    orders = Orders.of(named_grid("demo"))
    found = misfit(observed, flux, noise, orders)
    assert found.chi2.shape == (20, 6)
    pixels = torch.tensor(orders.sizes)
    scatter = (2 / pixels / 20) ** 0.5
    bias = 3 / snr**2  # sigma follows the observed flux, not the true one
    assert ((found.chi2.mean(dim=0) - 1).abs() < 5.5 * scatter + bias).all()  # chance: 2e-7
    measured = torch.from_numpy(np.array([photon_noise(one) for one in observed.numpy()]))
    own = misfit(observed, flux, measured, orders)
    assert (own.chi2.mean(dim=0) - 1).abs().max() < 0.1  # against the noise that it shows itself


def test_a_systematic_misfit_is_learned_and_taken_out_whatever_the_noise():
    """A model that is off by 3 % everywhere: chi2 is 1 + (0.03 S/N)^2 / flux, the excess 1 at any S/N."""
    orders, ratios = Orders.of(named_grid("demo")), []
    off, systematic = 0.03, None
    for snr in (20, 100, 300):
        flux, observed, noise = spectra(20, snr, seed=snr)
        found = misfit(observed, flux + off, noise, orders)
        expected = 1 + off**2 * found.weight
        assert (found.chi2 / expected - 1).abs().max() < 0.15
        if snr == 100:
            systematic = found.systematic()
            torch.testing.assert_close(systematic, torch.full((6,), off**2, dtype=torch.float64), rtol=0.05, atol=0)
        ratios.append(found)
    for found in ratios:
        assert (found.excess(systematic).mean(dim=0) - 1).abs().max() < 0.1
    doubled = misfit(observed, flux + 2 * off, noise, orders).excess(systematic)
    assert (doubled / 4 - 1).abs().max() < 0.1


def test_a_model_that_reconstructs_to_the_noise_has_no_systematic_misfit():
    found = Misfit(torch.tensor([[0.9], [0.8], [1.1]]), torch.ones(3, 1))
    assert found.systematic().tolist() == [0.0]


def test_the_latent_gaussian_is_the_one_that_was_drawn_from():
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=draw, dtype=torch.float64)
    latent = torch.randn(20_000, 5, generator=draw, dtype=torch.float64) @ mixing.T + 3
    found = LatentGaussian.fit(latent)
    covariance = found.axes @ torch.diag(found.variance) @ found.axes.T
    torch.testing.assert_close(covariance, mixing @ mixing.T, rtol=0.1, atol=0.1)
    fresh = torch.randn(500, 5, generator=draw, dtype=torch.float64)
    exact = (fresh.square().sum(dim=1) / 5).sqrt()  # Mahalanobis distance of mixing @ fresh
    torch.testing.assert_close(found.distance(fresh @ mixing.T + 3), exact, rtol=0.03, atol=0)
    assert found.components(latent).std(dim=0).sub(1).abs().max() < 1e-3
    drawn = found.draw(torch.randn(20_000, 5, generator=draw))
    torch.testing.assert_close(drawn.mean(dim=0), latent.mean(dim=0), rtol=0, atol=0.2)  # 8 deviations
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0.1, atol=0.1)


def test_axes_that_few_spectra_cannot_tell_apart_share_their_variance():
    draw = torch.Generator().manual_seed(1)
    scale = torch.cat([torch.tensor([10.0, 5.0]), torch.ones(98)])
    latent = torch.randn(80, 100, generator=draw) * scale
    found, own = LatentGaussian.fit(latent), leading_axes(80, 100)
    assert own == 10
    assert len(set(found.variance[own:].tolist())) == 1
    fresh = torch.randn(300, 100, generator=draw) * scale
    assert 0.8 < found.distance(fresh).mean() / found.distance(latent).mean() < 1.6  # unlike a plain inverse
    outlier = torch.zeros(1, 100)
    outlier[0, 50] = 30.0  # 30 sigma off, along an axis that no spectrum told anything of
    assert found.distance(outlier) > found.distance(fresh).max()


def tried(stars: int, visits: int, seed: int, kind: str = "real", spread: float = 1.0) -> SplitPredictions:
    draw = np.random.default_rng(seed)
    count = stars * visits
    of_star = np.repeat(np.arange(stars), visits)
    latent = draw.normal(size=(stars, 4))[of_star] + 0.3 * draw.normal(size=(count, 4))
    chi2 = torch.from_numpy(1 + 0.2 * draw.random((count, 3)))
    nothing = np.empty((count, 0))
    return SplitPredictions(
        kind, np.char.add(f"{kind} ", of_star.astype(str)), nothing, nothing, nothing, nothing, nothing,
        torch.from_numpy(latent * spread), Misfit(chi2, torch.ones(count, 3)),
    )  # fmt: skip


def trial_of(parts: dict[str, SplitPredictions]) -> SimpleNamespace:
    exported = SimpleNamespace(orders=SimpleNamespace(numbers=(3, 2, 1)))
    manifest = SimpleNamespace(genuine=True)

    class Trial(SimpleNamespace):
        def __call__(self, kind, split, reconstruct=True):
            return parts.get(kind)

    return Trial(trained_on=tuple(parts), exported=exported, release=SimpleNamespace(manifest=manifest))


def test_one_per_cent_of_spectra_of_new_stars_are_flagged():
    assert stars_needed(0.99) == 99
    shares = []
    for seed in range(40):
        trial = trial_of({"real": tried(600, 3, 1000 + seed)})
        reference, facts = calibrated_anomaly(trial, HeldOut(trial.release, (tried(300, 3, seed),)))
        fresh = tried(300, 3, 2000 + seed)
        excess = fresh.misfit.excess(reference.systematic).amax(dim=1) / facts.excess_scale
        distance = reference.gaussian.distance(fresh.features) / facts.distance_scale
        shares.append((torch.maximum(excess, distance) > facts.threshold).double().mean())
    assert (facts.stars, facts.spectra, facts.calibrated_on) == (300, 900, "real")
    error = np.std(shares) / len(shares) ** 0.5
    assert np.mean(shares) == pytest.approx(0.01, abs=6.5 * error + 0.01 / 300)  # of Student's t with 39: 1e-7


def test_few_real_stars_are_joined_by_simulated_ones_and_too_few_flag_nothing():
    trial = trial_of({"real": tried(30, 2, 1), "simulated": tried(100, 1, 2, "simulated")})
    held = HeldOut(trial.release, (tried(30, 2, 3), tried(80, 1, 4, "simulated")))
    _, facts = calibrated_anomaly(trial, held)
    assert (facts.calibrated_on, facts.stars) == ("real and simulated", 110)
    assert np.isfinite(facts.threshold)
    _, facts = calibrated_anomaly(trial, HeldOut(trial.release, held.tried[:1]))
    assert facts.threshold == np.inf


def test_power_tells_depth_and_width_of_lines_apart():
    """The same equivalent width in deep, narrow lines and in shallow, wide ones; a constant has no lines at all."""
    pixel = np.arange(named_grid("demo").length) % 500 - 250.0
    lines = [1 - 4 / width * np.exp(-0.5 * (pixel / width) ** 2) for width in (5, 10)]
    found = power(torch.from_numpy(np.stack(lines)))
    assert found.shape == (2, POWERS)
    wide, narrow = slice(6, 9), slice(13, 15)
    assert (found[0, wide] - found[1, wide]).abs().max() < 0.5
    assert (found[0, narrow] - found[1, narrow]).min() > 3


def test_likeness_does_not_hang_on_the_units_of_its_numbers():
    draw = torch.Generator().manual_seed(3)
    known, fresh = (torch.randn(count, 30, generator=draw).double() for count in (400, 50))
    units = 10.0 ** torch.linspace(-6, 6, 30).double()
    distance = Likeness.fit(known * units).distance(fresh * units)
    torch.testing.assert_close(distance, Likeness.fit(known).distance(fresh))
    assert distance.mean() == pytest.approx(1, abs=0.1)
    assert Likeness.fit(known).distance(fresh + 4).min() > 3


def test_the_score_is_by_fingerprints_where_there_are_some():
    """Spectra whose features are as usual and whose fingerprints are not."""

    def with_fingerprints(part: SplitPredictions, seed: int, off: float = 0.0) -> SplitPredictions:
        numbers = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(part.stars), 6)) + off)
        return part._replace(fingerprints=numbers)

    trial = trial_of({"real": with_fingerprints(tried(600, 1, 1), 1)})
    held = with_fingerprints(tried(300, 1, 2), 2)
    reference, facts = calibrated_anomaly(trial, HeldOut(trial.release, (held,)))
    assert facts.numbers == 6
    strange, usual = with_fingerprints(tried(50, 1, 3), 3, off=4.0), with_fingerprints(tried(500, 1, 4), 4)
    shares = [
        float((reference.likeness.distance(part.fingerprints) / facts.likeness_scale > facts.threshold).double().mean())
        for part in (strange, usual)
    ]
    assert shares[0] > 0.95
    assert shares[1] < 0.05
    again = Reference.of(reference.tensors(), 4, 3, 6, "x")
    numbers = usual.fingerprints
    torch.testing.assert_close(again.likeness.distance(numbers), reference.likeness.distance(numbers))
    with pytest.raises(ExportError, match="Export the run again"):
        Reference.of(reference.tensors(), 4, 3, 7, "x")
