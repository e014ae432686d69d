"""Tables of fits, read back: who gives labels, who does not, and one digest for every form."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from harps_dist.errors import ConfigError
from harps_dist.fitting.table import FLAGS
from harps_dist.formats.fit_tables import PARTLY, read_fits
from harps_dist.spectra.labels import NAMES
from tests.made_up_fits import write_fits

TEFF, RV, VMIC, AIRMASS = (NAMES.index(name) for name in ("teff", "rv", "vmic", "airmass"))
FITS = {
    "b": {"teff": (5200.0, 20.0), "rv": (-23.0, 0.01), "vmic": (2.5, 0.1), "berv": (10.0, np.nan)},
    "a": {"teff": (5000.0, 30.0), "rv": (-2.0, 0.02), "vmic": (1.0, 0.1), "airmass": (0.97, 0.01)},
    "giant": {"rv": (5.0, 0.1)},
}
FLAGGED = {"b": PARTLY, "giant": "at_edge,poor"}


@pytest.fixture(params=["ecsv", "fits", "csv", "parquet"])
def table(request, tmp_path):
    return write_fits(tmp_path / f"fits.{request.param}", FITS, FLAGGED, {"a": "a_s1d;a_old"})


def test_what_a_fit_read_comes_back_in_every_form(table, tmp_path):
    found = read_fits(table)
    assert found.products == ("b", "a")
    np.testing.assert_array_equal(found.values[:, [TEFF, RV]], [[5200.0, -23.0], [5000.0, -2.0]])
    np.testing.assert_array_equal(found.errors[:, [TEFF, RV]], [[20.0, 0.01], [30.0, 0.02]])
    assert found.flagged == {"giant": "at_edge,poor"}
    assert np.isnan(found.values[0, [VMIC, NAMES.index("berv")]]).all()  # at an edge, and held
    assert np.isnan(found.values[1, AIRMASS])  # no airmass is below 1
    assert np.isnan(found.errors[1, AIRMASS])
    assert found.values[1, VMIC] == 1.0
    assert PARTLY in FLAGS
    same = write_fits(tmp_path / "same.ecsv", dict(reversed(FITS.items())), FLAGGED, {"a": "a_old;a_s1d"})
    assert read_fits(same).digest == found.digest
    other = write_fits(tmp_path / "other.ecsv", FITS | {"a": FITS["a"] | {"teff": (5000.0, 31.0)}}, FLAGGED)
    assert read_fits(other).digest != found.digest


def test_an_exposure_is_found_by_any_of_its_forms(table):
    found = read_fits(table)
    assert (found.row("a"), found.row("a_s1d"), found.row("a_old"), found.row("c", ["a"])) == (1, 1, 1, 1)
    assert found.row("c", ["d"]) is found.row("giant") is None


def test_units_of_others_are_converted(tmp_path):
    table = Table({"dp_id": ["a"], "flags": [""], "rv": [-2000.0], "rv_error": [20.0]})
    table["rv"].unit = table["rv_error"].unit = "m/s"
    table.write(tmp_path / "t.ecsv")
    found = read_fits(tmp_path / "t.ecsv")
    assert (found.values[0, RV], found.errors[0, RV]) == (-2.0, 0.02)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"object": ["HD 1"], "teff": [5000.0]}, "lacks dp_id, flags, teff_error"),
        ({"dp_id": ["a"], "flags": [""], "teff": [5000.0]}, "lacks teff_error"),
        ({"dp_id": ["a", "a"], "flags": ["", ""], "teff": [5e3, 5e3], "teff_error": [1.0, 1.0]}, "names a twice"),
        ({"dp_id": ["a"], "flags": [""], "teff": ["hot"], "teff_error": [1.0]}, "teff is no column of numbers"),
    ],
)
def test_what_is_no_table_of_fits_is_refused(columns, said, tmp_path):
    Table(columns).write(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=said):
        read_fits(tmp_path / "t.csv")


def test_what_model_spectra_are_off_by_counts_too(tmp_path):
    columns = {"dp_id": ["a"], "flags": [""], "teff": [5000.0], "teff_error": [30.0], "teff_model_error": [40.0]}
    Table(columns, units={name: "K" for name in ("teff", "teff_error", "teff_model_error")}).write(tmp_path / "t.ecsv")
    assert read_fits(tmp_path / "t.ecsv").errors[0, TEFF] == 50.0
