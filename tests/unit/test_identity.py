"""A star keeps the id that it came in with, and a version supersedes an older one."""

from __future__ import annotations

import numpy as np
import pytest

from harps_dist.formats.versions import newest_versions, version_order
from preprocessing.identity import KnownStars, KnownVersions


def row(target: str, names: str = "", catalogue_id: str = "", ra: float = np.nan, dec: float = np.nan) -> dict:
    return {"target": target, "names": names, "catalogue_id": catalogue_id, "ra": ra, "dec": dec}


ARCSEC = 1 / 3600


def test_a_star_that_a_catalogue_learns_of_keeps_its_id():
    known = KnownStars([row("HD5", "HD5", ra=10.0, dec=-60.0)])
    assert known.settle(row("TIC 7", "HD5", "TIC 7"))["target"] == "HD5"  # by name
    assert known.settle(row("GJ9", "GJ9", ra=10.0, dec=-60.0 + 4 * ARCSEC))["target"] == "HD5"  # by place
    assert known.settle(row("GJ9", "GJ9"))["target"] == "HD5"  # by a name learned just now
    assert known.settle(row("TIC 7", "another", "TIC 7"))["target"] == "HD5"  # by the catalogue's id, learned too
    assert known.settle(row("GJ9b", "GJ9b", ra=10.0, dec=-60.0 + 12 * ARCSEC))["target"] == "GJ9b"


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (359.9999, 80.0), (123.4, -89.999)])
def test_places_are_compared_on_the_sphere(ra, dec):
    known = KnownStars([row("A", ra=ra, dec=dec)])
    east = 4 * ARCSEC / np.cos(np.radians(dec))
    assert known.settle(row("B", ra=(ra + east) % 360, dec=dec))["target"] == "A"
    assert KnownStars([row("A", ra=ra, dec=dec)]).settle(row("B", ra=(ra + 2 * east) % 360, dec=dec))["target"] == "B"


def test_stars_that_a_catalogue_tells_apart_stay_two():
    known = KnownStars([row("TIC 1", "OBJ5", "TIC 1", 10.0, 5.0)])
    assert known.settle(row("TIC 2", "OBJ5", "TIC 2", 10.0, 5.0))["target"] == "TIC 2"
    assert known.settle(row("OBJ5", "OBJ5"))["target"] == "OBJ5"  # two have that name: it tells nothing
    assert known.settle(row("X", "X", ra=10.0, dec=5.0))["target"] in ("TIC 1", "TIC 2")
    assert known.settle(row("TIC 1", "", "TIC 1"))["target"] == "TIC 1"


def test_a_star_keeps_its_id_whatever_kind_of_id_the_next_catalogue_has():
    here = {"ra": 10.0, "dec": 5.0}
    known = KnownStars([row("HD5", "HD5", "HD5", **here), row("J010000+300000", "", "J010000+300000", 15.0, 30.0)])
    assert known.settle(row("TIC 7", "HD5", "TIC 7", **here))["target"] == "HD5"  # by name
    assert known.settle(row("TIC 7", "", "TIC 7", **here))["target"] == "HD5"
    assert known.settle(row("HIP9", "HD5", "HIP9"))["target"] == "HD5"
    assert known.settle(row("TIC 8", "", "TIC 8", 15.0, 30.0))["target"] == "J010000+300000"  # by place
    assert KnownStars([row("A", "", "A", **here)]).settle(row("B", "", "B", **here))["target"] == "B"


def test_what_reflects_the_sun_is_one_star_and_stays_what_it_was():
    fresh = KnownStars([])
    assert {fresh.settle(row("SUN", names))["target"] for names in ("CERES;SUN", "SUN", "VESTA;SUN")} == {"SUN"}
    old = KnownStars([row("CERES", "CERES"), row("SUN", "SUN", "SUN"), row("VESTA", "VESTA")])
    found = [old.settle(row("SUN", names))["target"] for names in ("CERES;SUN", "VESTA;SUN", "GANYMEDE;SUN")]
    assert found == ["CERES", "VESTA", "SUN"]


def test_versions_are_ordered_by_their_numbers():
    assert version_order("espdr/2.0.0") > version_order("HARPS_3.10") > version_order("HARPS_3.8") > version_order("")
    made = {"key": "k", "pipeline": "HARPS_3.8", "source": "a.fits"}
    versions = KnownVersions([made])
    assert versions.objection("other", "") is None
    assert versions.objection("k", "HARPS_3.10") is None
    assert "the same version" in versions.objection("k", "HARPS_3.8")
    assert "an older version" in versions.objection("k", "HARPS_3.5")
    assert versions.is_there("k", "HARPS_3.8", "a.fits")
    assert not versions.is_there("k", "HARPS_3.8", "b.fits")
    keys, pipelines = np.array(["a", "b", "a", "c", "a"], object), np.array(["3.1", "1", "3.10", "1", "3.9"], object)
    assert newest_versions(keys, pipelines).tolist() == [1, 2, 3]
