"""Positions that move, names that contradict them, and the Sun in a mirror."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.time import Time

from preprocessing.catalog import Catalog, resolve_target, telling_names
from preprocessing.sky import is_place, year_of
from tests.unit.test_catalog import NAMELESS, named, placed

TAU_CETI = {
    "gaia": ["1000000"], "ra_deg": [26.0092997], "dec_deg": [-15.9337986], "epoch": [2016.0],
    "pm_ra": [-1721.728], "pm_dec": [854.963], "teff": [5320.0],
}  # fmt: skip


def moved(columns: dict, year: float) -> tuple[float, float]:
    """Where astropy says that the first star of a catalogue is in a year."""
    start = SkyCoord(
        columns["ra_deg"][0] * u.deg, columns["dec_deg"][0] * u.deg, pm_ra_cosdec=columns["pm_ra"][0] * u.mas / u.yr,
        pm_dec=columns["pm_dec"][0] * u.mas / u.yr, obstime=Time(columns["epoch"][0], format="jyear"),
    )  # fmt: skip
    found = start.apply_space_motion(new_obstime=Time(year, format="jyear"))
    return float(found.ra.deg), float(found.dec.deg)


def at(place: tuple[float, float], year: float = float("nan"), name: str = ""):
    return replace(placed(*place, name), mjd_obs=51544.5 + (year - 2000) * 365.25)


@pytest.mark.parametrize("year", [2000.0, 2004.7, 2012.0, 2025.0])
def test_a_star_that_moves_is_found_where_it_was_on_the_day(year):
    catalog = Catalog(TAU_CETI)
    assert catalog.match(at(moved(TAU_CETI, year), year)).by == "position"
    assert catalog.match(at(moved(TAU_CETI, 2000.0), year)).by == "position"  # as observers enter it
    assert catalog.match(at(moved(TAU_CETI, year + 20), year)) is None
    still = TAU_CETI | {"pm_ra": [np.nan], "pm_dec": [np.nan]}
    assert (Catalog(still).match(at(moved(TAU_CETI, year), year)) is None) == (abs(year - 2016) > 3)


def test_a_gaia_table_is_at_2016_and_others_at_2000(tmp_path):
    body = "ra,dec,pmra,pmdec,teff,name\n{},26.0092997,-15.9337986,-1721.728,854.963,5320,x\n"
    place = at(moved(TAU_CETI, 2000.0), 2003.0)
    (tmp_path / "g.csv").write_text("source_id," + body.format(1))
    assert Catalog.read(tmp_path / "g.csv").match(place).by == "position"
    (tmp_path / "t.csv").write_text("ID," + body.format(1))
    assert Catalog.read(tmp_path / "t.csv").match(place) is None
    assert Catalog.read(tmp_path / "t.csv").match(at((26.0092997, -15.9337986), 2003.0)).by == "position"
    (tmp_path / "r.csv").write_text("ref_epoch," + body.format("J2016.0"))
    assert Catalog.read(tmp_path / "r.csv").match(place).by == "position"


def test_motion_over_the_pole_and_across_zero_hours():
    for ra, dec in ((0.0001, 0.0), (10.0, 89.99), (359.9999, -60.0)):
        star = {
            "object": ["A 1"],
            "ra_deg": [ra],
            "dec_deg": [dec],
            "pm_ra": [-9000.0],
            "pm_dec": [4000.0],
            "epoch": [2016.0],
        }
        assert Catalog(star).match(at(moved(star, 2005.0), 2005.0)).target_id == "A1"


def test_a_name_that_contradicts_the_position_gives_no_labels():
    catalog = Catalog(
        {"object": ["HR 1217"], "tic": ["7"], "ra_deg": [58.8001], "dec_deg": [-12.1001], "teff": [7250.0]}
    )
    for name in ("HR1217", "TIC 7"):
        record = at((4.10021, -35.31147), 2010.0, name)
        match = catalog.match(record)
        assert (match.labels, match.note.partition(" lies ")[0]) == ({}, f"not taken: {name.replace(' ', '')}")
        assert is_place(resolve_target(record, match))
        assert telling_names(record, match) == ""
    near = catalog.match(at((58.8, -12.1 + 100 / 3600), 2010.0, "HR1217"))
    assert (near.by, near.labels) == ("name", {"teff": 7250})
    assert "10.0 arcmin" in catalog.match(at((58.8, -12.1 + 1 / 6), 2010.0, "HR1217")).note
    assert catalog.match(named("HR 1217")).labels  # no position, nothing to contradict


def test_how_far_a_star_can_have_moved_decides():
    place = {"object": ["A 1"], "ra_deg": [10.0001], "dec_deg": [0.0001], "teff": [5000.0]}
    off = at((10.0, 0.07), 2020.0, "A 1")  # 252 arcsec: 2 arcmin and 20 years of the fastest star allow 328
    assert Catalog(place).match(off).labels
    slow = place | {"pm_ra": [10.0], "pm_dec": [10.0]}
    assert not Catalog(slow).match(off).labels
    assert not Catalog(place).match(at((10.0, 0.1), 2020.0, "A 1")).labels


def test_rounded_positions_contradict_no_name_within_their_last_decimal():
    place = {"object": ["A 1", "B 2"], "ra_deg": [10.1, 20.0], "dec_deg": [0.1, 5.2], "pm_ra": [0, 0], "pm_dec": [0, 0]}
    off = at((10.15, 0.15), 2020.0, "A 1")
    assert not Catalog(place).match(off).note
    assert Catalog(place | {"ra_deg": [10.1, 20.001]}).match(off).note
    assert Catalog(place).match(at((10.3, 0.1), 2020.0, "A 1")).note


@pytest.mark.parametrize("name", ["Ceres", "(1) Ceres", "4 Vesta", "MOON", "Ganymede", "Sun", "Sun-sky"])
def test_what_reflects_the_sun_is_the_sun(name):
    assert resolve_target(named(name), None) == "SUN"
    match = Catalog({"object": ["Sun"], "teff": [5772.0], "rv": [1.5]}).match(named(name))
    assert match.target_id == "SUN"
    assert match.labels == {"teff": 5772.0} | ({"rv": 1.5} if name == "Sun" else {})


def test_stars_that_are_called_alike_are_none():
    for name in ("HD 1", "IO Peg", "SUN 1", "Europa Nova"):
        assert resolve_target(named(name), None) != "SUN"


def test_a_date_that_is_not_known_moves_nothing():
    assert np.isnan(year_of(NAMELESS.mjd_obs))
    assert Catalog(TAU_CETI).match(at(moved(TAU_CETI, 2000.0))).by == "position"


def test_rows_of_a_star_that_has_one_are_counted():
    catalog = Catalog({"object": ["A 1", "A1", "B 2"], "teff": [5000.0, 5100.0, 5200.0]})
    assert catalog.counts["catalogue's labels of a star that has a row before"] == 1
