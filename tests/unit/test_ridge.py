"""Ridge regression on principal components, against what it must find and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harps_dist.benchmarks.ridge import ComponentRidge, ridge_report
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.recipes import find_recipe

NAN = float("nan")


def test_labels_that_are_linear_in_few_components_are_found():
    """Spectra 3 + a e1 + b e2 and labels linear in a, b, one of them missing in places: no error is left."""
    draw = torch.Generator().manual_seed(0)
    amplitudes = torch.randn(200, 2, generator=draw)
    axes = torch.linalg.qr(torch.randn(50, 2, generator=draw))[0].T
    flux = 3.0 + amplitudes @ axes
    labels = torch.stack([5000 + 100 * amplitudes[:, 0], amplitudes[:, 0] - 2 * amplitudes[:, 1]], 1).double()
    gappy = labels.clone()
    gappy[::3, 1] = NAN
    ridge = ComponentRidge.fit(flux[:150], gappy[:150], components=2, penalty=1e-12)
    torch.testing.assert_close(ridge.predict(flux[150:]), labels[150:], rtol=1e-5, atol=1e-4)
    stiff = ComponentRidge.fit(flux[:150], gappy[:150], components=2, penalty=1e12)
    mean = gappy[:150].nanmean(0).expand(50, 2)
    torch.testing.assert_close(stiff.predict(flux[150:]), mean, rtol=1e-6, atol=1e-6)


def test_fewer_spectra_than_components_are_refused():
    with pytest.raises(ConfigError, match="more spectra of every label"):
        ComponentRidge.fit(torch.randn(20, 50), torch.randn(20, 1), components=20)


def test_it_is_tried_on_the_spectra_that_a_run_is_evaluated_on(tiny_release):
    recipe, release = find_recipe("demo-cnn-etc"), Release(tiny_release)
    report = ridge_report("demo-cnn-etc", recipe, release, "simulated", "all", spectra=100, components=5)
    assert report.spectra == len(release.index.rows("simulated"))
    assert report.origin == "simulated"
    scores = {score.name: score for score in report.labels}
    assert scores.keys() == set(recipe.model.labels)
    assert scores["teff"].mae < release.index.labels[release.index.rows("simulated"), 2].std()
    assert np.isfinite([score.mae for score in report.labels]).all()
