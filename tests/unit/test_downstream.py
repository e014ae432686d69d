"""Regression from latents to labels: exact where the truth is linear, closed forms where labels have gaps."""

from __future__ import annotations

import numpy as np
import pytest

from harps_dist.errors import HarpsDistError
from harps_dist.evaluation.downstream import LatentRegression, labels_from_latents

NAN = np.nan
NODES = ((0.0, 1e-4, 0.0), (1.0, 1e-4, 300.0), (-50.0, 3.0, 1e5), (2.0, 7.0, 0.0))  # mean, std, coefficient


@pytest.fixture
def linear():
    """300 spectra, 4 nodes of very different scale, 2 labels that are exact linear functions of them."""
    rng = np.random.default_rng(5)
    mean, std, slope = np.array(NODES).T
    latent = rng.normal(mean, std, size=(300, 4))
    coefficients, intercept = np.stack([slope, [1.0, -2.0, 0.5, 0.25]], axis=1), np.array([5777.0, -0.3])
    return latent, latent @ coefficients + intercept, coefficients, intercept


def by_normal_equations(latent: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Intercept and coefficients by the textbook: (XᵀX)⁻¹ Xᵀy."""
    design = np.column_stack([np.ones(len(latent)), latent])
    return np.linalg.inv(design.T @ design) @ design.T @ label


@pytest.mark.parametrize("variant", ["complete", "masked"])
def test_noiseless_linear_labels_are_recovered(linear, variant):
    latent, labels, coefficients, intercept = linear
    labels = labels.copy()
    labels[::3, 0] = NAN
    found = LatentRegression.fit(latent, labels, variant)
    # a slope is known to rounding of the label (1.5e7 · 1e-16) over the node's spread (1e-4)
    np.testing.assert_allclose(found.coefficients, coefficients, rtol=1e-9, atol=1e-3)
    np.testing.assert_allclose(found.intercept, intercept, rtol=1e-6)
    np.testing.assert_allclose(found.predict(latent), latent @ coefficients + intercept, rtol=1e-11, atol=1e-7)
    assert found.predict(latent[:7]).shape == (7, 2)
    assert found.counts.tolist() == ([200, 200] if variant == "complete" else [200, 300])


def test_gaps_complete_and_masked_against_closed_forms():
    rng = np.random.default_rng(6)
    latent = rng.normal(size=(80, 3))
    labels = latent @ rng.normal(size=(3, 2)) + rng.normal(size=(80, 2))
    labels[:30, 0] = NAN
    labels[20:40, 1] = NAN
    rows = {
        "complete": (slice(40, None), slice(40, None)),
        "masked": (slice(30, None), np.r_[0:20, 40:80]),
    }
    for variant, used in rows.items():
        found = LatentRegression.fit(latent, labels, variant)
        for column, these in enumerate(used):
            expected = by_normal_equations(latent[these], labels[these, column])
            np.testing.assert_allclose(found.intercept[column], expected[0], rtol=1e-9)
            np.testing.assert_allclose(found.coefficients[:, column], expected[1:], rtol=1e-9)
        assert found.counts.tolist() == [len(latent[these]) for these in used]


def test_one_node_by_hand():
    # slope Σ(x - 2)(y - 3) / Σ(x - 2)² = 3 / 2
    found = LatentRegression.fit(np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [2.0], [5.0]]))
    assert found.coefficients == pytest.approx(1.5)
    assert found.intercept == pytest.approx(0.0, abs=1e-12)


def test_nodes_that_do_not_vary_or_repeat(linear):
    """Collapsed nodes are ignored; two equal nodes share what one would have."""
    latent, labels, coefficients, _ = linear
    dead = np.full((300, 1), 0.1)  # its mean is not exactly 0.1
    found = LatentRegression.fit(np.hstack([latent, dead, latent[:, 3:]]), labels)
    np.testing.assert_array_equal(found.coefficients[4], 0.0)
    np.testing.assert_allclose(found.coefficients[[3, 5], 1], coefficients[3, 1] / 2, rtol=1e-6)
    np.testing.assert_allclose(found.predict(np.hstack([latent, dead, latent[:, 3:]])), labels, rtol=1e-11, atol=1e-7)


def test_predictions_do_not_depend_on_the_scale_of_a_node():
    rng = np.random.default_rng(8)
    latent, labels = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    scale = np.array([1e-9, 1.0, 1e9])
    rescaled = LatentRegression.fit(latent * scale, labels).predict(latent * scale)
    np.testing.assert_allclose(rescaled, LatentRegression.fit(latent, labels).predict(latent), rtol=1e-9)


def test_float32_latents_are_fitted_in_float64(linear):
    latent = linear[0].astype(np.float32)
    labels = latent.astype(np.float64) @ linear[2]
    np.testing.assert_allclose(LatentRegression.fit(latent, labels).predict(latent), labels, rtol=1e-11, atol=1e-6)


def test_a_label_that_too_few_training_spectra_have_is_left_out(linear):
    """Those that enough have are fitted on the training rows and predicted for the others."""
    latent, labels, *_ = linear
    given = labels.copy()
    given[latent.shape[1] :, 0] = NAN
    found = labels_from_latents(latent[:200], given[:200], latent[200:])
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(found[:, 1:], labels[200:, 1:], rtol=1e-8)
    shuffled = labels_from_latents(latent[:200], given[np.random.default_rng(0).permutation(200)], latent[200:])
    assert np.abs(shuffled[:, 1:] - labels[200:, 1:]).mean() > 0.1 * labels[:, 1:].std(axis=0).min()


def test_too_few_rows_and_the_least_that_do(linear):
    latent, labels, _, _ = linear
    labels = labels.copy()
    labels[4:, 0] = NAN
    with pytest.raises(HarpsDistError, match=r"column 0 has 4 of 300 rows .* 4 latent nodes needs at least 5"):
        LatentRegression.fit(latent, labels)
    labels[4, 0] = 5000.0
    assert LatentRegression.fit(latent, labels).counts.tolist() == [5, 300]
    labels[0, 1] = NAN
    with pytest.raises(HarpsDistError, match="try variant masked"):
        LatentRegression.fit(latent, labels, "complete")


def test_other_errors_say_what_to_do(linear):
    latent, labels, _, _ = linear
    with pytest.raises(HarpsDistError, match="same spectra in the same order"):
        LatentRegression.fit(latent[1:], labels)
    with pytest.raises(HarpsDistError, match="choose complete or masked"):
        LatentRegression.fit(latent, labels, "all")
    for array, value in ((latent, NAN), (latent, np.inf), (labels, np.inf)):
        broken = array.copy()
        broken[17, 1] = value
        with pytest.raises(HarpsDistError, match="1 of 300 rows, the first 17"):
            LatentRegression.fit(*((broken, labels) if array is latent else (latent, broken)))
