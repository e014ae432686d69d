"""Entries of a comparison against numbers that can be done by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from harps_dist.data.manifest import INDEX_COLUMNS, Index
from harps_dist.promotion.compare import new_stars
from harps_dist.promotion.comparison import MEASURES, Comparison, Entry
from harps_dist.promotion.comparison_report import write_report
from harps_dist.promotion.entries import Spectra, entries_of, errors_of
from harps_dist.spectra.instrument import HARPS
from harps_dist.spectra.labels import INTRINSIC, NAMES
from tests.made_up_models import comparison, write_model

STARS = np.array(["a", "a", "b", "c", "n"])  # n is new
TEFF = np.array([4500.0, 4500.0, 5500.0, np.nan, 6500.0])


def spectra(**changes) -> Spectra:
    given = {
        "stars": STARS,
        "new_star": STARS == "n",
        "snr": np.array([20.0, 60.0, 150.0, 300.0, 50.0]),
        "mjd": np.array([53000.0, 58000.0, HARPS.changes_mjd[0], np.nan, HARPS.changes_mjd[0] - 1]),
        "varied": np.full(5, ""),
        "truth": {name: np.full(5, np.nan) for name in NAMES} | {"teff": TEFF},
    }
    return Spectra(**(given | changes))


def predicted(off: list[float], **scores) -> dict[str, np.ndarray]:
    """teff off by so much; star c has no truth."""
    return {name: np.full(5, np.nan) for name in NAMES} | {"teff": np.nan_to_num(TEFF) + off} | scores


def entries(new: dict, old: dict | None, labels=("teff",), kind="real", **changes) -> dict[tuple, Entry]:
    known = spectra(**changes)
    measured = [errors_of(known, labels, table, {}) if table else {} for table in (new, old)]
    found = list(entries_of(kind, known, measured[0], measured[1] if old is not None else None))
    assert all(entry.measure in MEASURES for entry in found)
    places = {(entry.population, entry.by, entry.bin, entry.measure): entry for entry in found}
    assert len(places) == len(found)
    return places


def test_errors_are_averaged_by_star_and_compared():
    """Old errors: a 10 and 30, b 20, n 80. New ones: a 20 and 20, b 30, n 40."""
    found = entries(predicted([20, -20, 30, 9, -40]), predicted([10, -30, 20, 9, 80]))
    everyone = found["all", "overall", "", "teff"]
    assert (everyone.old, everyone.new) == (pytest.approx(40), pytest.approx(30))
    assert everyone.difference == pytest.approx((0 + 10 - 40) / 3)
    assert (everyone.by_spectrum_old, everyone.by_spectrum_new) == (pytest.approx(35), pytest.approx(27.5))
    assert (everyone.spectra, everyone.stars, everyone.unit) == (4, 3, "K")
    assert np.isnan([everyone.low, everyone.high, everyone.p_value]).all()
    assert "fewer than 5 stars" in everyone.note
    frozen, new = (found[population, "overall", "", "teff"] for population in ("frozen", "new"))
    assert (frozen.old, frozen.new, frozen.stars) == (pytest.approx(20), pytest.approx(25), 2)
    assert (new.old, new.new, new.difference) == (pytest.approx(80), pytest.approx(40), pytest.approx(-40))
    assert {key[3] for key in found} == {"teff"}


def test_bins_hold_their_lower_edge_and_what_is_unknown_has_its_own():
    found = entries(predicted([1, 2, 3, 0, 5], **{"MAE'": np.full(5, 0.1)}), predicted([0] * 5))
    of_teff = {place[1:3]: entry.spectra for place, entry in found.items() if (place[0], place[3]) == ("all", "teff")}
    assert of_teff == {
        ("overall", ""): 4,
        **{("teff", name): count for name, count in (("4000 to 5000", 2), ("5000 to 6000", 1), ("6000 to 7000", 1))},
        **{("snr", name): count for name, count in (("below 50", 1), ("50 to 100", 2), ("100 to 200", 1))},
        **{("era", name): count for name, count in (("before", 2), ("after", 2))},
    }
    assert found["all", "era", "after", "teff"].new == pytest.approx(2.5)
    assert found["new", "era", "before", "teff"].new == pytest.approx(5)
    assert found["all", "teff", "unknown", "MAE'"].spectra == 1
    assert found["all", "era", "unknown", "MAE'"].spectra == 1


def test_an_instrument_that_never_changed_has_one_era():
    found = entries(predicted([1, 2, 3, 0, 5]), predicted([0] * 5), changes_mjd=())
    assert {place[2]: entry.spectra for place, entry in found.items() if place[:2] == ("all", "era")} == {"before": 4}


def test_a_lost_label_is_there_and_failed():
    lost = entries(predicted([0] * 5), predicted([10, 10, 10, 0, 10]), labels=())
    assert lost == {}
    known = spectra()
    old = errors_of(known, ("teff",), predicted([10, 10, 10, 0, 10]), {})
    entry = next(entries_of("real", known, {}, old))
    assert (entry.failed_new, entry.failed_old, entry.old) == (4, 0, pytest.approx(10))
    assert np.isnan([entry.new, entry.difference]).all()
    assert "the new model does not have it" in entry.note


def test_a_failed_prediction_shows():
    """In the new model: its mean and all that is held against limits is NaN. In the old one: pairs are compared."""
    found = entries(predicted([np.nan, -20, 30, 0, -40]), predicted([10, -30, 20, 0, 80]))["all", "overall", "", "teff"]
    assert (found.failed_new, found.failed_old) == (1, 0)
    assert np.isnan(found.new)
    assert found.old == pytest.approx(40)
    found = entries(predicted([20, -20, 30, 0, -40]), predicted([10, np.inf, 20, 0, 80]))["all", "overall", "", "teff"]
    assert (found.failed_new, found.failed_old, found.new) == (0, 1, pytest.approx(30))
    assert np.isnan(found.old)
    assert found.reference == pytest.approx((10 + 20 + 80) / 3)
    assert found.difference == pytest.approx((10 + 10 - 40) / 3)
    broken = entries(predicted([np.nan] * 5), None)["all", "overall", "", "teff"]  # of the first model
    assert (broken.failed_new, broken.note) == (4, "")


def test_the_first_model_has_figures_of_its_own():
    found = entries(predicted([20, -20, 30, 0, -40]), None)["frozen", "overall", "", "teff"]
    assert (found.new, found.by_spectrum_new) == (pytest.approx(25), pytest.approx(70 / 3))
    assert np.isnan([found.old, found.reference, found.difference, found.low]).all()


def test_a_decoder_that_ignores_its_input_is_worse_not_better():
    """Its response is 0 where the other's is 0.9, its leakage 0.5 where the other's is -0.1."""
    scores = [
        {"do(rv) response": np.full(5, value), "do(rv) leakage": np.full(5, leak), "RV sensitivity": np.full(5, 1.2)}
        for value, leak in ((0.0, 0.5), (0.9, -0.1))
    ]
    scores[0]["RV sensitivity"] = np.array([np.nan, *[1.2] * 4])  # nothing is due
    found = entries(predicted([0] * 5, **scores[0]), predicted([0] * 5, **scores[1]))
    response, leakage = (found["all", "overall", "", name] for name in ("|do(rv) response - 1|", "|do(rv) leakage|"))
    assert (response.old, response.difference) == (pytest.approx(0.1), pytest.approx(0.9))
    assert (leakage.old, leakage.difference) == (pytest.approx(0.1), pytest.approx(0.4))
    sensitivity = found["all", "overall", "", "|RV sensitivity - 1|"]
    assert (sensitivity.spectra, sensitivity.failed_new) == (5, 1)  # the other one has a number there


def test_scores_of_the_generative_set_are_those_of_the_label_that_varies():
    varied = np.array(["teff", "teff", "mh", "mh", "logg"])
    table = predicted([0] * 5, GIS=np.array([0.1, 0.3, 0.5, 0.7, 0.9]))
    found = entries(table, table, varied=varied, kind="generative", stars=np.array(list("ppqqr")))
    assert [found["all", "overall", "", f"GIS {name}"].new for name in INTRINSIC] == pytest.approx([0.2, 0.6, 0.9])
    assert {by for _, by, _, _ in found} == {"overall"}


def test_a_new_visit_makes_no_new_star():
    columns = {name: np.zeros(6) for name in INDEX_COLUMNS}
    columns |= {
        "star": np.array(["a", "a", "b", "c", "c", "d"]),
        "generation": np.array([0, 2, 1, 2, 2, 0]),
        "split": np.full(6, "test"),
        "kind": np.full(6, "real"),
    }
    index = Index(pa.table(columns))
    assert new_stars(index, 2).tolist() == [False, False, False, True, True, False]
    columns["generation"] = np.zeros(6, dtype=int)
    assert not new_stars(Index(pa.table(columns)), 0).any()  # of a release that grew from none


def test_a_report_says_what_is_worse_better_and_lost(tmp_path):
    rng = np.random.default_rng(0)
    n = 120
    known = spectra(
        stars=np.arange(n).astype(str),
        new_star=np.arange(n) >= 100,
        snr=rng.uniform(20, 300, n),
        mjd=rng.uniform(54000, 59000, n),
        varied=np.full(n, ""),
        truth={name: rng.normal(5500, 400, n) for name in NAMES},
    )
    off = {name: rng.normal(0, 50, n) for name in NAMES}
    old = {name: known.truth[name] + off[name] for name in NAMES}
    new = old | {"teff": known.truth["teff"] + 2 * off["teff"], "rv": known.truth["rv"] + 0.5 * off["rv"]}
    six = tuple(name for name in NAMES if name != "mh")
    made = list(entries_of("real", known, errors_of(known, six, new, {}), errors_of(known, NAMES, old, {})))
    run = write_model(tmp_path / "run", 1)
    compared = comparison(run, run).model_copy(update={"entries": tuple(made)})
    write_report(compared, tmp_path)
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    for label, word in (("teff [K]", "**worse**"), ("rv [km/s]", "**better**"), ("mh [dex]", "does not have it")):
        assert word in next(line for line in lines if line.startswith(f"| {label}")), label
    assert not any("**" in line for line in lines if line.startswith("| airmass "))
    for figure in ("comparison.png", "comparison_bins.png"):
        assert (tmp_path / figure).stat().st_size > 10_000
        assert any(figure in line for line in lines)
    write_report(Comparison.model_validate(compared.model_dump() | {"entries": [], "old": None}), tmp_path)
    assert not (tmp_path / "comparison.png").exists()
