"""Metrics against numbers worked out by hand, with gaps, failures and repeat visits."""

from __future__ import annotations

import numpy as np
import pytest

from harps_dist.errors import GridError
from harps_dist.evaluation import metrics
from harps_dist.spectra.grid import HARPS, named_grid
from harps_dist.spectra.labels import LABEL, NAMES

NAN = np.nan
EXACT = {"rel": 1e-12, "abs": 1e-12}


@pytest.fixture
def sample():
    """200 spectra of 40 stars, seven labels, a third of the truths missing."""
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(200, len(NAMES)))
    predicted = truth + rng.normal(0.1, 0.3, size=truth.shape)
    truth[rng.random(truth.shape) < 0.33] = NAN
    sigma = {name: 0.5 + k for k, name in enumerate(NAMES)}
    return truth, predicted, sigma, rng.integers(40, size=200).astype(str)


def test_label_score_by_hand():
    truth = np.array([[5000.0], [6000.0], [5500.0], [NAN]])
    predicted = np.array([[5010.0], [5980.0], [5530.0], [9999.0]])
    (score,) = metrics.label_scores(truth, predicted, ["teff"], {"teff": 400.0}, np.array(["a", "a", "b", "c"]))
    # residuals +10, -20, +30; absolute 10, 20, 30: mean 20, variance 100
    assert score.name == "teff"
    assert score.unit == "K"
    assert score.mae == pytest.approx(20.0, **EXACT)
    assert score.standard_error == pytest.approx(10.0 / 3**0.5, **EXACT)
    # star a deviates by -10 + 0, star b by +10: sqrt((100 + 100) / 3² · 2 / (2 - 1))
    assert score.standard_error_stars == pytest.approx(20.0 / 3, **EXACT)
    assert score.nmae == pytest.approx(0.05, **EXACT)
    assert score.nmae_paper == pytest.approx(20.0 / 401.2, **EXACT)
    assert score.bias == pytest.approx(20.0 / 3, **EXACT)
    assert score.scatter == pytest.approx(np.sqrt(1900.0 / 3), **EXACT)
    assert (score.count, score.stars) == (3, 2)


def test_label_without_truth_or_node_is_empty():
    truth = np.array([[NAN, 1.0], [NAN, 2.0]])
    predicted = np.array([[1.0, NAN], [2.0, NAN]])
    berv, airmass = metrics.label_scores(truth, predicted, ["berv", "airmass"], {"berv": 1.0}, np.arange(2))
    for score in (berv, airmass):
        assert (score.count, score.stars) == (0, 0)
        assert np.isnan([score.mae, score.standard_error, score.standard_error_stars, score.nmae]).all()
        assert np.isnan([score.nmae_paper, score.bias, score.scatter]).all()


def test_failed_prediction_is_shown_not_dropped():
    truth, predicted = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [NAN], [3.0]])
    (score,) = metrics.label_scores(truth, predicted, ["rv"], {"rv": 1.0}, np.arange(3))
    assert score.count == 3
    assert np.isnan(score.mae)


def test_pwv_has_no_paper_divisor_and_unknown_sigma_is_nan():
    truth, predicted = np.array([[1.0], [2.0]]), np.array([[1.5], [2.5]])
    (score,) = metrics.label_scores(truth, predicted, ["pwv"], {}, np.arange(2))
    assert score.mae == 0.5
    assert np.isnan(score.nmae)
    assert np.isnan(score.nmae_paper)


def test_one_spectrum_has_no_error():
    (score,) = metrics.label_scores(np.array([[1.0]]), np.array([[3.0]]), ["rv"], {"rv": 4.0}, np.array([1]))
    assert (score.mae, score.nmae, score.bias) == (2.0, 0.5, 2.0)
    assert np.isnan([score.standard_error, score.standard_error_stars, score.scatter]).all()


def test_shapes_that_disagree_are_refused(sample):
    truth, predicted, sigma, stars = sample
    with pytest.raises(ValueError, match=r"got truth \(200, 8\), predicted \(200, 6\)"):
        metrics.label_scores(truth, predicted[:, :6], NAMES, sigma, stars)
    with pytest.raises(ValueError, match="6 names"):
        metrics.group_scores(truth, predicted, NAMES[:6], sigma, stars)


@pytest.mark.parametrize("score", [metrics.label_scores, metrics.group_scores])
def test_order_of_spectra_does_not_matter(sample, score):
    truth, predicted, sigma, stars = sample
    shuffled = np.random.default_rng(1).permutation(200)
    before = score(truth, predicted, NAMES, sigma, stars)
    after = score(truth[shuffled], predicted[shuffled], NAMES, sigma, stars[shuffled])
    for one, other in zip(before, after, strict=True):
        for key, value in vars(one).items():
            same = pytest.approx(value, nan_ok=True, **EXACT) if isinstance(value, float) else value
            assert getattr(other, key) == same, key


def test_clustered_error_is_plain_for_single_visits_and_grows_with_repeats():
    values = np.random.default_rng(3).normal(size=50)
    plain = metrics.mean_with_error(values)[1]
    assert metrics.clustered_error(values, np.arange(50)) == pytest.approx(plain, **EXACT)
    # every star visited four times with the same error: four times the spectra, no more knowledge
    repeated = metrics.clustered_error(np.repeat(values, 4), np.repeat(np.arange(50), 4))
    assert repeated == pytest.approx(plain, **EXACT)
    # deviations that cancel within each star leave nothing between stars
    assert metrics.clustered_error(np.array([0.0, 2.0, 0.0, 2.0]), np.array(["a", "a", "b", "b"])) == 0.0
    assert np.isnan(metrics.clustered_error(values, np.zeros(50)))


def test_clustered_error_has_the_right_scale():
    """Against the scatter of the mean over 2,000 simulated surveys: 30 stars, 1 to 9 visits each."""
    rng = np.random.default_rng(5)
    stars = np.repeat(np.arange(30), rng.integers(1, 10, size=30))
    surveys = [rng.normal(size=30)[stars] + 0.5 * rng.normal(size=len(stars)) for _ in range(2000)]
    actual = np.std([survey.mean() for survey in surveys])
    claimed = np.mean([metrics.clustered_error(survey, stars) for survey in surveys])
    assert claimed == pytest.approx(actual, rel=0.1)


def test_group_by_hand():
    names = ["teff", "mh", "logg", "rv"]
    truth = np.array([[5000.0, 0.0, 4.0, 1.0], [5000.0, NAN, 4.0, 2.0]])
    predicted = truth + np.array([[100.0, 0.2, 0.1, 3.0], [300.0, 0.0, 0.3, 5.0]])
    sigma = {"teff": 1000.0, "mh": 0.4, "logg": 0.5, "rv": 10.0}
    intrinsic, extrinsic = metrics.group_scores(truth, predicted, names, sigma, np.array(["a", "b"]))
    # NMAE: teff 0.2, mh 0.5 (one truth), logg 0.4
    assert intrinsic.labels == ("teff", "mh", "logg")
    assert intrinsic.nmae == pytest.approx(1.1 / 3, **EXACT)
    assert intrinsic.nmae_paper == pytest.approx((200 / 401.2 + 0.2 / 0.1855 + 0.2 / 0.1325) / 3, **EXACT)
    # pulls: first spectrum (0.1 - 0.2) / 6 + 0 + (0.2 - 0.4) / 6 = -0.05, second +0.05
    assert intrinsic.standard_error == pytest.approx((2 * 0.05**2 * 2) ** 0.5, **EXACT)
    assert extrinsic.labels == ("rv",)
    assert extrinsic.nmae == pytest.approx(0.4, **EXACT)
    assert extrinsic.standard_error == pytest.approx(0.1, **EXACT)


def test_group_of_one_label_equals_the_label(sample):
    truth, predicted, sigma, stars = sample
    k = NAMES.index("rv")
    (label,) = metrics.label_scores(truth[:, [k]], predicted[:, [k]], ["rv"], sigma, stars)
    _, group = metrics.group_scores(truth[:, [k]], predicted[:, [k]], ["rv"], sigma, stars)
    assert group.nmae == pytest.approx(label.nmae, **EXACT)
    assert group.standard_error == pytest.approx(label.standard_error / sigma["rv"], **EXACT)
    assert group.standard_error_stars == pytest.approx(label.standard_error_stars / sigma["rv"], **EXACT)
    assert group.standard_error_paper == pytest.approx(label.standard_error / LABEL["rv"].paper_mad, **EXACT)


def test_group_leaves_out_labels_it_cannot_score():
    names = ["rv", "berv", "airmass"]
    truth = np.array([[1.0, NAN, 1.2], [2.0, NAN, 1.3]])
    predicted = truth + np.array([[1.0, 0.0, 0.1], [3.0, 0.0, 0.1]])
    scores = metrics.group_scores(truth, predicted, names, {"rv": 4.0, "berv": 1.0, "airmass": NAN}, np.arange(2))
    assert scores[0].labels == ()
    assert np.isnan([scores[0].nmae, scores[0].standard_error, scores[0].nmae_paper]).all()
    assert scores[1].labels == ("rv",)
    assert scores[1].nmae == pytest.approx(0.5, **EXACT)


def test_mean_with_error():
    assert metrics.mean_with_error(np.array([1.0, 2.0, 6.0])) == pytest.approx((3.0, (7.0 / 3) ** 0.5), **EXACT)
    assert metrics.mean_with_error(np.array([4.0])) == pytest.approx((4.0, NAN), nan_ok=True)
    assert np.isnan(metrics.mean_with_error(np.array([]))).all()
    assert np.isnan(metrics.mean_with_error(np.array([1.0, NAN]))[0])


def test_reconstruction_counts_valid_pixels_only():
    truth = np.array([[1.0, 2.0, NAN, 4.0], [1.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    predicted = np.array([[1.5, 2.25, 7.0, 4.0], [0.0, 3.0, 9.0, 1.0]], dtype=np.float32)
    shared = np.array([True, True, False, True])
    np.testing.assert_allclose(metrics.reconstruction_mae(truth, predicted, shared), [0.25, 1.0], rtol=1e-12)
    own = np.array([[True, False, False, False], [False, False, False, False]])
    np.testing.assert_allclose(metrics.reconstruction_mae(truth, predicted, own), [0.5, NAN], rtol=1e-12)
    predicted[0, 0] = NAN
    assert np.isnan(metrics.reconstruction_mae(truth, predicted, shared)[0])


def test_reconstruction_is_summed_in_double():
    truth = np.full((1, 327_680), 0.1, dtype=np.float32)
    mae = metrics.reconstruction_mae(truth, np.zeros_like(truth), np.ones(327_680, dtype=bool))
    assert mae[0] == pytest.approx(float(np.float32(0.1)), **EXACT)


def test_paper_comparable_is_zeros_averaged_in():
    rng = np.random.default_rng(2)
    truth, valid = rng.normal(size=(3, HARPS.length)), HARPS.valid
    ours = metrics.reconstruction_mae(truth, np.zeros_like(truth), valid)
    reference = np.abs(truth * valid).mean(axis=1)
    np.testing.assert_allclose(metrics.paper_comparable(ours, valid.mean()), reference, rtol=1e-12)
    assert valid.mean() == pytest.approx(0.943, abs=5e-4)


def test_rvis_mask():
    demo = named_grid("demo")
    wave_aa = demo.wave_aa[metrics.rvis_mask(demo.wave_aa, demo.valid)]
    assert wave_aa[0] == pytest.approx(6050.0, abs=0.005)
    assert wave_aa[-1] == pytest.approx(6250.0, abs=0.005)
    valid = demo.valid & (demo.wave_aa > 6100.0)
    assert demo.wave_aa[metrics.rvis_mask(demo.wave_aa, valid)].min() > 6100.0
    with pytest.raises(GridError, match=r"6050-6250 Å, but the grid covers 3785\.00-3794\.99"):
        metrics.rvis_mask(3785.0 + 0.01 * np.arange(1000), np.ones(1000, dtype=bool))


def test_rvis_by_hand():
    decoded = np.zeros((2, 2, 4))
    shifted = np.array([[[1.0, 2.0, NAN, 9.0], [3.0, 4.0, NAN, 9.0]], [[0.0, 0.0, NAN, 9.0], [-1.0, 1.0, NAN, 9.0]]])
    mask = np.array([True, True, False, False])
    error = metrics.intervention_error(decoded, shifted, mask)
    np.testing.assert_allclose(error, [[1.5, 3.5], [0.0, 1.0]], rtol=1e-12)
    np.testing.assert_allclose(metrics.rvis(decoded, shifted, mask), [2.5, 0.5], rtol=1e-12)
    one_by_one = np.array([[True, False, False, False], [False, True, False, False]])  # a mask per intervention
    np.testing.assert_allclose(metrics.rvis(decoded, shifted, one_by_one), [2.5, 0.5], rtol=1e-12)


def test_sensitivity_tells_a_dead_decoder_from_a_faithful_one():
    rng = np.random.default_rng(9)
    base = rng.normal(size=(3, 50))
    change = rng.normal(size=(3, 5, 50))
    change[2] = 0.0
    expected = base[:, None] + change
    mask = rng.random(50) < 0.5
    dead = np.broadcast_to(base[:, None], expected.shape)
    for decoded, ratio in ((expected, 1.0), (base[:, None] - 0.5 * change, 0.5), (dead, 0.0)):
        found = metrics.sensitivity(decoded, base, expected, base, mask)
        np.testing.assert_allclose(found, [ratio, ratio, NAN], rtol=1e-12)


def test_rvis_scale_on_genuine_line_profiles(genuine_data):
    """A velocity error of 0.25 and 1 km/s gives 0.005 and 0.02; not shifting at all, about 0.1."""
    sed = np.load(genuine_data / "sed_grid_5985_6323.npz")
    components = sed["components_i16"] * sed["component_scale"][:, None]
    flux = np.exp(sed["log_flux_mean"] + sed["coefficients"][4, 2, 3] @ components)
    flux /= np.median(flux)
    wave_aa = sed["wave0_aa"] + sed["step_aa"] * np.arange(len(flux))
    mask = metrics.rvis_mask(wave_aa, np.ones(len(flux), dtype=bool))

    def shifted(rv_kms):
        return np.stack([np.interp(wave_aa / (1 + rv / 299_792.458), wave_aa, flux) for rv in rv_kms])[None]

    rv_kms = np.linspace(-40.0, 40.0, 9)
    small, large = (metrics.rvis(shifted(rv_kms + error), shifted(rv_kms), mask)[0] for error in (0.25, 1.0))
    assert 0.002 < small < 0.01
    assert large == pytest.approx(4 * small, rel=0.05)
    assert 0.03 < metrics.rvis(shifted(0 * rv_kms), shifted(rv_kms), mask)[0] < 0.2


def test_leakage_tells_stellar_lines_from_telluric_ones():
    """Decoders that move the right lines, all of them, the wrong ones, none, and 0.7 and 0.1 of them."""
    draw = np.random.default_rng(1)
    own, other = draw.normal(size=(2, 5, 3, 40))
    mask = np.arange(40) < 30
    own[..., 30:] = np.nan
    shares = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [0.7, 0.1]])
    answered = shares[:, 0, None, None] * own + shares[:, 1, None, None] * other
    response, leakage = metrics.response_and_leakage(answered, own, other, mask)
    np.testing.assert_allclose(np.stack([response, leakage], 1), shares, atol=1e-12)
    response, leakage = metrics.response_and_leakage(answered, own, 2 * own, mask)
    assert np.isnan(response).all()
    assert np.isnan(leakage).all()


def test_response_is_the_share_of_the_change_due():
    draw = np.random.default_rng(3)
    due = draw.normal(size=(2, 3, 50))
    beside = draw.normal(size=due.shape)
    beside -= due * (beside * due).sum((1, 2), keepdims=True) / (due * due).sum((1, 2), keepdims=True)
    everywhere = np.ones(50, dtype=bool)
    share = np.array([0.25, -1.5])
    np.testing.assert_allclose(
        metrics.response_to(share[:, None, None] * due + beside, due, everywhere), share, rtol=1e-9
    )
    assert metrics.response_to(beside, due, everywhere) == pytest.approx(0, abs=1e-9)
    half = np.arange(50) < 25
    broken = np.where(half, due, np.nan)
    np.testing.assert_allclose(metrics.response_to(broken, broken, half), 1.0, rtol=1e-9)
    assert np.isnan(metrics.response_to(due, np.zeros_like(due), everywhere)).all()
