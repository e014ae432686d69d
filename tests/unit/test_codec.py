"""Codecs, the noise they are measured against, and responses as combinations of a few vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harps_dist.data.codec import CODECS, LosslessCodec, NoiseCodec, quantised, restored
from harps_dist.spectra.noise import (
    NOISE_FLOOR,
    keyed_bits,
    keyed_normals,
    keyed_uniforms,
    photon_noise,
    photon_sigma,
)
from preprocessing.factorise import MOST_VECTORS, Terms, fit_basis, fit_term, spread_out, terms_of

PIXELS = 20_000


def star(snr: float, seed: int = 0, pixels: int = PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """A spectrum with lines of 4 km/s full width, and the same with photon noise, white on its pixels."""
    rng = np.random.default_rng(seed)
    pixel = np.arange(pixels)
    clean = 1 + 0.3 * np.sin(pixel / 3_000)
    for centre in rng.uniform(0, pixels, pixels // 40):
        near = slice(max(0, int(centre) - 30), int(centre) + 31)
        clean[near] *= 1 - rng.uniform(0, 0.8) * np.exp(-0.5 * ((pixel[near] - centre) / 3.0) ** 2)
    return clean, (clean + rng.normal(size=pixels) * np.sqrt(clean + NOISE_FLOOR) / snr).astype(np.float32)


@pytest.mark.parametrize(("snr", "off"), [(10.0, 0.1), (100.0, 0.1), (400.0, 0.25)])
def test_noise_is_found_among_lines(snr, off):
    _, flux = star(snr)
    assert np.sqrt(np.median(photon_noise(flux))) == pytest.approx(1 / snr, rel=off)


def test_noise_is_found_chunk_by_chunk_and_hits_do_not_move_it():
    clean, flux = star(100.0)
    second = clean + 3 * (flux - clean)
    both = np.concatenate([flux, second]).astype(np.float32)
    both[::701] += 50.0
    found = np.sqrt(photon_noise(both))
    chunks = len(found) // 2
    assert np.median(found[chunks:]) / np.median(found[:chunks]) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("snr", [20.0, 100.0, 300.0])
def test_quantisation_adds_half_a_percent_of_variance(snr):
    _, flux = star(snr)
    error = (restored(NoiseCodec(), NoiseCodec().encode(flux), PIXELS) - flux) / photon_sigma(flux)
    assert np.sqrt((error**2).mean()) == pytest.approx(0.25 / np.sqrt(12), rel=0.02)
    assert abs(error.mean()) < 0.003
    assert np.abs(error).max() < 0.15
    assert (error**2).mean() < 0.0053


def test_size_follows_the_noise_not_the_signal():
    sizes = [len(NoiseCodec().encode(star(snr)[1])) / PIXELS for snr in (20.0, 100.0)]
    assert max(sizes) < 0.85  # bytes a pixel; a float32 has 4
    assert sizes[1] / sizes[0] < 1.25


def test_velocity_survives_quantisation():
    """The velocity that moves most with the error, projected on the spectrum's gradient, stays below photon noise."""
    clean, flux = star(100.0, pixels=200_000)
    gradient = np.gradient(clean) / (0.01 / 5_500 * 299_792_458.0)  # per m/s
    stored = restored(NoiseCodec(), NoiseCodec().encode(flux), len(flux)).astype(np.float64)
    weight = gradient / (clean + NOISE_FLOOR)
    shift = ((stored - flux) * weight).sum() / (gradient * weight).sum()
    photon_limit = 1e-2 / np.sqrt((gradient**2 / (clean + NOISE_FLOOR)).sum())
    assert abs(shift) < 0.4 * photon_limit  # steps of 0.25 make 0.07 of it, 5.5 deviations


def test_glitches_cost_precision_where_they_are_alone():
    _, flux = star(300.0)
    flux[5_000], flux[5_001] = 400.0, -40.0
    error = (restored(NoiseCodec(), NoiseCodec().encode(flux), PIXELS) - flux) / photon_sigma(flux)
    elsewhere = np.ones(PIXELS, bool)
    elsewhere[4_864:5_120] = False
    assert np.abs(error[elsewhere]).max() < 0.15
    assert np.abs(error).max() < 2


@given(
    flux=st.lists(st.floats(-500, 500, width=32), min_size=1, max_size=700).map(lambda v: np.array(v, np.float32)),
    name=st.sampled_from(sorted(CODECS)),
)
@settings(max_examples=80, deadline=None)
def test_any_flux_comes_back(flux, name):
    codec = CODECS[name]()
    back = restored(codec, codec.encode(flux), len(flux))
    assert back.dtype == np.float32
    assert back.shape == flux.shape
    if name == "lossless":
        np.testing.assert_array_equal(back, flux)
    elif name == "u16":
        assert np.abs(back - flux).max() <= 0.51 * np.ptp(flux) / 65_534 + 1e-4
    else:
        step = np.maximum(0.25 * photon_sigma(flux), 2e-4 * (1 + np.abs(flux).max()))
        assert (np.abs(back - flux) <= 4 * step).all()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300).map(lambda v: np.array(v, np.float32)))
@settings(deadline=None)
def test_quantised_values_are_half_a_step_off_at_most(values):
    codes, scale = quantised(values)
    assert codes.dtype == np.int16
    error = np.abs(codes * np.float64(scale[0]) + scale[1] - values)
    assert error.max() <= 0.5001 * scale[0] + 1e-6 * np.abs(values).max()


def test_equal_spectra_make_equal_bytes():
    _, flux = star(100.0)
    for codec in CODECS.values():
        assert codec().encode(flux) == codec().encode(flux.copy())


def test_lossless_keeps_every_bit():
    flux = np.random.default_rng(0).normal(size=5_000).astype(np.float32)
    assert restored(LosslessCodec(), LosslessCodec().encode(flux), 5_000).tobytes() == flux.tobytes()


def test_genuine_spectra_meet_the_aims(genuine_data):
    """200 kB at S/N 100, half a percent of noise, a tenth of a metre per second."""
    from harps_dist.formats.readers import read_spectrum
    from harps_dist.spectra.grid import HARPS
    from harps_dist.spectra.regrid import regrid
    from harps_dist.spectra.standardise import standardise

    sizes = {}
    for name in ("HARPS.2007-08-29T00:30:28.617_s1d_A", "HARPS.2006-09-08T02:12:38.604_s1d_A"):  # S/N 69 and 158
        record = read_spectrum(genuine_data / "harps" / f"{name}.fits.gz")
        flux = regrid(record.wave_aa, record.flux, HARPS)
        flux[~HARPS.valid] = np.nan
        flux = standardise(flux, HARPS)[0][HARPS.valid]
        content = NoiseCodec().encode(flux)
        back = restored(NoiseCodec(), content, len(flux)).astype(np.float64)
        error = (back - flux) / photon_sigma(flux)
        assert np.sqrt((error**2).mean()) < 0.073
        keep = np.abs(flux) < 2
        smooth = np.convolve(flux, np.hanning(9) / np.hanning(9).sum(), "same")
        gradient = np.gradient(smooth) * HARPS.wave_aa[HARPS.valid] / 0.01 / 299_792_458.0
        weight = np.where(keep, gradient / photon_sigma(flux) ** 2, 0)
        assert abs(((back - flux) * weight).sum() / (gradient * weight).sum()) < 0.1  # m/s
        sizes[record.snr] = len(content)
    assert np.interp(100.0, sorted(sizes), [sizes[snr] for snr in sorted(sizes)]) < 200_000


def test_keyed_normals_are_normal_and_independent():
    key = torch.tensor([0, 1, 2, 2**40, 2**40 + 1, 2**62 + 5])
    draws = keyed_normals(key, 100_001)
    assert draws.shape == (6, 100_001)
    for row in draws.numpy():
        assert stats.kstest(row, "norm").pvalue > 1e-3
        for lag in (1, 2, 50_001):
            assert abs(np.corrcoef(row[lag:], row[:-lag])[0, 1]) < 0.02
    other = keyed_normals(key, 100_001, purpose=1)
    together = np.corrcoef(np.concatenate([draws.numpy(), other.numpy()]))
    assert np.abs(together - np.eye(12)).max() < 0.02
    squares = np.corrcoef(np.concatenate([draws.numpy(), other.numpy()]) ** 2)
    assert np.abs(squares - np.eye(12)).max() < 0.02


def test_keyed_bits_are_frozen_and_uniforms_uniform():
    """Frozen values: a change here changes the noise of every run ever made."""
    assert keyed_bits(torch.tensor([12345678901234]), 3).tolist() == FROZEN_BITS
    uniform = keyed_uniforms(torch.tensor([7]), 100_000)[0].numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert 0 < uniform.min() < uniform.max() < 1


FROZEN_BITS = [[154570437, -2121802481, 69555608]]


def made_up_runs(count: int, pixels: int = 4_096, seed: int = 0) -> list[np.ndarray]:
    """Responses of one instrument at many airmasses, water columns, brightnesses and skies."""
    rng = np.random.default_rng(seed)
    pixel = np.arange(pixels)
    water = sum(
        np.exp(-0.5 * ((pixel - c) / 3) ** 2) * d
        for c, d in zip(rng.uniform(0, pixels, 60), rng.uniform(0, 1, 60), strict=True)
    )
    blaze = 0.4 + 0.6 * np.sin(pixel / 700) ** 2
    found = []
    for _ in range(count):
        airmass, pwv = rng.uniform(1, 2.9), rng.uniform(0.5, 20)
        bright, sky = 10 ** rng.uniform(2, 5), rng.uniform(0, 9)
        saturated = 0.02 + 0.98 * np.exp(-0.1 * airmass * pwv * water)  # no product of powers any more
        through = blaze * np.exp(-0.3 * airmass * (1 + pixel / pixels)) * saturated
        mean = bright * through
        found.append(np.stack([mean, mean / blaze, (sky * through / blaze + 200) / blaze**2]).astype(np.float32))
    return found


def test_responses_are_combinations_of_a_few_vectors():
    runs = [terms_of(run) for run in made_up_runs(60)]
    basis = fit_basis(runs[:40])
    assert sum(basis.counts) < 30
    assert basis.vectors.shape == (sum(basis.counts), 4_096)
    for run in runs:
        combined = basis.combined(basis.coefficients(run))
        assert not basis.missed(run, combined)
        assert (np.abs(combined - run.values)[0] * np.exp(run.values[0] / 2)).max() < 1e-3


def test_what_the_vectors_miss_is_noticed():
    runs = [terms_of(run) for run in made_up_runs(30)]
    basis = fit_basis(runs)
    strange = runs[0].values.copy()
    strange[0, 1_000:1_100] -= 0.2  # a cloud that only these pixels see
    odd = Terms(strange, runs[0].level)
    assert basis.missed(odd, basis.combined(basis.coefficients(odd)))


def test_a_basis_has_an_end():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 200))
    assert len(fit_term(values, np.ones_like(values), 1e-9).pixels) == MOST_VECTORS
    assert len(fit_term(np.zeros((3, 200)), np.ones((3, 200)), 1e-9).pixels) == 0


def test_runs_that_lie_far_apart_are_chosen():
    features = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [0.0, 5.0], [0.05, 0.1]])
    assert spread_out(features, 3).tolist() == [0, 2, 3]
    assert len(spread_out(features, 50)) == 5
