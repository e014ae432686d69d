"""The paper's figures: densities against SciPy and by hand, every figure drawn from full, scant and missing runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import gaussian_kde

from harps_dist.paper.evaluations import Evaluations
from harps_dist.paper.figures import MODELS, draw_paper_figures, scott_density
from tests.made_up_runs import index_of, write_run


def test_density_has_scotts_bandwidth_between_the_outer_percentiles():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 500)
    x, density = scott_density(values)
    assert (x[0], x[-1]) == pytest.approx(tuple(np.percentile(values, [1, 99])), abs=1e-9)
    np.testing.assert_allclose(density, gaussian_kde(values, "scott")(x), rtol=1e-9)
    three = np.array([0.0, 1.0, 2.0])
    x, density = scott_density(three)
    width = 3 ** (-1 / 5) * three.std(ddof=1)
    by_hand = np.exp(-(((x[:, None] - three) / width) ** 2) / 2).sum(1) / (3 * width * (2 * np.pi) ** 0.5)
    np.testing.assert_allclose(density, by_hand, rtol=1e-9)


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [3.0, 3.0, 3.0]])
def test_too_few_or_equal_values_have_no_density(values):
    assert all(len(part) == 0 for part in scott_density(np.array(values)))


@pytest.mark.parametrize("spectra", [300, 3])
def test_every_figure_is_drawn(spectra, tmp_path):
    names = [*MODELS, "cnn-dec-etc", "resnet-etc", "fig2-b7", "fig2-b9", "fig2-b9-free", "figd1-lab0.1", "figd1-lab1"]
    for name in names:
        write_run(tmp_path, name, spectra)
    drawn = draw_paper_figures(Evaluations(tmp_path, demo=False), index_of(spectra), tmp_path / "figures")
    assert [figure.number for figure in drawn] == [*(f"Fig. {number}" for number in range(1, 9)), "Fig. D.1"]
    for figure in drawn:
        assert figure.path.stat().st_size > 8_000, figure.number
        assert figure.caption.endswith(".")


def test_without_runs_only_the_data_are_drawn(tmp_path):
    drawn = draw_paper_figures(Evaluations(tmp_path, demo=False), index_of(20), tmp_path / "figures")
    assert [figure.number for figure in drawn] == ["Fig. 1"]
