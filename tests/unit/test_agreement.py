"""Network and fit of one spectrum: flagged where they differ beyond the errors of both."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from harps_dist.formats.fit_tables import read_fits
from harps_dist.inference.agreement import agreement_line, with_agreement
from tests.made_up_fits import write_fits

LABELS = ("teff", "rv")
DESCRIPTION = SimpleNamespace(labels=[SimpleNamespace(name=name) for name in LABELS], levels=(0.68, 0.95))


def columns(products, teff, half=40.0, sigma=400.0, forms=()):
    n = len(products)
    made = {"dp_id": np.array(products, object), "other_forms": np.array([*forms, *[""] * (n - len(forms))], object)}
    for name, value, scale in (("teff", np.array(teff, float), 1.0), ("rv", np.zeros(n), 0.01)):
        made |= {name: value, f"{name}_sigma": np.full(n, sigma * scale)}
        made |= {f"{name}_lo68": value - half * scale, f"{name}_hi68": value + half * scale}
    return made | {"flags": np.array(["anomalous", *[""] * (n - 1)], object)}


@pytest.fixture
def fits(tmp_path):
    fitted = {name: {"teff": (5000.0, 30.0), "rv": (0.0, 0.3)} for name in ("a", "b", "c", "poor")}
    return read_fits(write_fits(tmp_path / "fits.ecsv", fitted, {"poor": "poor"}))


def test_beyond_three_combined_errors_the_flag_says_so(fits):
    """50 K from 40 and 30 K."""
    found = with_agreement(DESCRIPTION, columns(["a", "b", "none", "poor"], [5151, 4851, 6000, 6000]), fits)
    assert found["flag_fit_disagrees"].tolist() == [True, False, False, False]
    assert found["flags"].tolist() == ["anomalous,fit_disagrees", "", "", ""]
    np.testing.assert_allclose(found["fit_deviation"], [151 / 50, 149 / 50, np.nan, np.nan])
    assert found["fit_label"].tolist() == ["teff", "teff", "", ""]
    assert (
        agreement_line(found)
        == "2 of 4 were compared with fits; 1 disagree by more than 3 standard deviations, in teff"
    )


def test_without_a_calibrated_interval_the_models_own_error_counts(fits):
    found = with_agreement(DESCRIPTION, columns(["a"], [5900], half=np.nan), fits)
    assert found["fit_deviation"][0] == pytest.approx(900 / np.hypot(400, 30))
    assert not found["flag_fit_disagrees"][0]


def test_a_model_without_errors_and_a_broken_spectrum_are_not_compared(fits):
    for made in (
        columns(["a"], [9000], half=np.nan, sigma=np.nan),
        columns(["a"], [np.nan]) | {"rv": np.array([np.nan])},
    ):
        found = with_agreement(DESCRIPTION, made, fits)
        assert np.isnan(found["fit_deviation"][0])
        assert (found["fit_label"][0], found["flag_fit_disagrees"][0]) == ("", False)


def test_a_fit_of_another_form_of_the_exposure_counts(fits):
    found = with_agreement(DESCRIPTION, columns(["adp"], [6000], forms=["x;b"]), fits)
    assert found["flag_fit_disagrees"].tolist() == [True]
