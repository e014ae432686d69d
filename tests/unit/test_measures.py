"""The table of measures: names, what is best, what is printed, and that nobody else spells the names."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from harps_dist.evaluation.measures import (
    COMPARABLE,
    COVERAGES,
    GIS,
    MAE,
    MEASURES,
    RV_LEAKAGE,
    RV_SENSITIVITY,
    RVIS,
    RVIS_TRUE,
    is_coverage,
    label_measure,
)
from harps_dist.promotion import comparison
from harps_dist.spectra.labels import NAMES
from tests.commands import ROOT

EVERY = (*MEASURES, COMPARABLE, *COVERAGES)


def test_every_measure_has_its_own_name_and_a_meaning():
    assert len({measure.name for measure in EVERY}) == len(EVERY)
    assert all(measure.meaning for measure in EVERY)


def test_errors_are_distances_from_the_best_value():
    values = np.array([0.5, 1.0, -0.25])
    for measure, name, errors in (
        (MAE, "MAE'", values),
        (RV_SENSITIVITY, "|RV sensitivity - 1|", [0.5, 0.0, 1.25]),
        (RV_LEAKAGE, "|do(rv) leakage|", [0.5, 1.0, 0.25]),
    ):
        assert measure.error_name == name
        np.testing.assert_array_equal(measure.error(values), errors)


def test_names_of_coverages_are_those_of_comparisons_on_disk():
    levels = ["68%", "90%", "95%"]
    names = [f"{word}coverage {level}" for word in ("", "conformal ") for level in levels]
    assert [measure.name for measure in COVERAGES] == names
    assert [measure.best for measure in COVERAGES] == [0.68, 0.90, 0.95] * 2
    of_labels = {label_measure(name, label) for name in names for label in NAMES}
    assert of_labels == {f"{name} {label}" for name in names for label in NAMES}
    assert {name for name in (*comparison.MEASURES, *names) if is_coverage(name)} == of_labels | set(names)


def test_what_the_paper_prints_stands_beside_its_measure():
    assert COMPARABLE.printed_for("resnet-etc") == (0.0064, 0.0011)  # Table 7
    for measure, label, printed in (
        (RVIS, "", 0.017),
        (GIS, "teff", 0.0041),
        (GIS, "mh", 0.0069),
        (GIS, "logg", 0.0077),
    ):
        value, error = measure.printed_for("ae-mix", label)  # Table 8
        assert value == printed
        assert np.isnan(error)
    for measure, recipe, label in (
        (RVIS_TRUE, "ae-mix", ""),
        (RVIS, "cnn-mix", ""),
        (GIS, "ae-mix", ""),
        (MAE, "", ""),
    ):
        assert np.isnan(measure.printed_for(recipe, label)).all()


@pytest.mark.parametrize("room", ["evaluation", "paper", "promotion"])
def test_names_of_measures_are_written_once(room):
    names = {name for measure in EVERY for name in (measure.name, measure.error_name)}
    for path in sorted((ROOT / "harps_dist" / room).glob("*.py")):
        if path.name == "measures.py":
            continue
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not texts & names, f"{path} spells {texts & names}. Take the name from harps_dist.evaluation.measures."
