"""Masks and units of what comes in: kept wherever it comes in."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn
from astropy.utils.masked import Masked

from harps_dist.errors import ConfigError
from harps_dist.formats.units import UnitError, in_unit, number_of, plain, unit_named
from harps_dist.inference.spectra import on_grid
from harps_dist.spectra.grid import named_grid
from tests.made_up_decoder import simulator


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [("m/s", "km/s", 0.2), ("km s-1", "km/s", 200), ("kms", "km/s", 200), ("Kelvin", "K", 200), ("[cm/s2]", "dex", 200),
     ("log(cm.s**-2)", "dex", 200), ("dex", "dex", 200), ("dex(m/s2)", "dex", 202), ("cgs", "dex", 200),
     ("arcsec/yr", "mas/yr", 2e5), ("", "K", 200), ('"d:m:s"', "deg", 200), ("h", "deg", 3000)],
)  # fmt: skip
def test_units_as_catalogues_write_them(text, wanted, value):
    name = "ra_deg" if text == "h" else "it"
    np.testing.assert_allclose(in_unit(np.array([200.0]), unit_named(text), wanted, name), value)


@pytest.mark.parametrize(
    ("text", "wanted"), [("K", "km/s"), ("furlongs", "K"), ("mag", "dex"), ("K", ""), ("h", "deg")]
)
def test_a_unit_of_another_quantity_is_refused(text, wanted):
    with pytest.raises(UnitError, match="expected"):
        in_unit(np.ones(1), unit_named(text), wanted, "dec_deg")


@pytest.mark.parametrize(
    "given",
    [
        np.ma.masked_array([1.0, 0.0], [False, True]),
        np.ma.masked_array([1, 0], [False, True]),
        MaskedColumn([1.0, 0.0], mask=[False, True]),
        MaskedColumn([1000.0, 0.0], mask=[False, True], unit="m/s"),
        Masked([1.0, 0.0] * u.km / u.s, mask=[False, True]),
        Masked([1000.0, 0.0] * u.m / u.s, mask=[False, True]),
        [1, np.nan],
        [1000, np.nan] * u.m / u.s,
    ],
)
def test_what_a_mask_hides_is_missing_and_units_are_converted(given):
    np.testing.assert_array_equal(plain(given, "km/s"), [1.0, np.nan])


def test_numbers_with_decimal_commas():
    assert [number_of(text) for text in ("5817,5", "-0,07", "1e3", "\N{MINUS SIGN}4.5", " 7 ")] == [
        5817.5,
        -0.07,
        1e3,
        -4.5,
        7,
    ]
    for text in ("1,2,3", "", "x", "1,", "5 817"):
        with pytest.raises(ValueError, match=r"could not|invalid"):
            number_of(text)


def test_masked_flux_and_wavelengths_with_units_are_brought_onto_a_grid():
    grid = named_grid("tiny")
    wave = np.asarray(grid.wave_aa, float)
    flux = 1 + 0.1 * np.sin(wave)
    hidden = np.zeros(len(wave), bool)
    hidden[500:900] = True
    expected = on_grid(wave, np.where(hidden, np.nan, flux), None, grid)
    junk = np.where(hidden, 0.0, flux)
    for given in (np.ma.masked_array(junk, hidden), Masked(junk * u.ct, mask=hidden), MaskedColumn(junk, mask=hidden)):
        for one, other in zip(on_grid(wave, given, None, grid), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(
        on_grid((wave / 10) * u.nm, np.ma.masked_array(junk, hidden), None, grid), expected, strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    alone = on_grid(np.ma.masked_array(junk, hidden), None, None, grid)
    np.testing.assert_array_equal(alone.coverage, expected.coverage)
    with pytest.raises(ConfigError, match="finite wavelengths"):
        on_grid(np.ma.masked_array(wave, hidden), flux, None, grid)
    with pytest.raises(ConfigError, match="expected Angstrom"):
        on_grid(wave * u.K, flux, None, grid)


def test_labels_to_simulate_with_units():
    given = simulator().request({"rv": 20_000 * u.m / u.s, "teff": [5000, 5500] * u.K})
    assert given.labels[:, 0].tolist() == [20, 20]
    with pytest.raises(ConfigError, match="rv is in K"):
        simulator().request({"rv": 20 * u.K})
    with pytest.raises(ConfigError, match="teff"):
        simulator().request({"teff": np.ma.masked_array([5000.0], [True])})
