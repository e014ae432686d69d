"""The table of an archive that says which star each spectrum is of, and how it was found or why not."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.archive import Archive
from harps_dist.formats.matches import FIELDS, matches_path
from tests.commands import command, run

PREPROCESSING = "preprocessing/__main__.py"


@pytest.fixture
def spectra(tiny_demo, tmp_path) -> Path:
    """Two spectra, named otherwise: one of a star elsewhere, one of a star that no catalogue has."""
    (tmp_path / "s").mkdir()
    names = {"a.fits": ("HR1217", 4.10021, -35.31147), "b.fits": ("HD999999", 100.0, 20.0)}
    for path, (name, (called, ra, dec)) in zip(
        sorted((tiny_demo / "files/spectra").glob("*.fits")), names.items(), strict=False
    ):
        shutil.copy(path, tmp_path / "s" / name)
        with fits.open(tmp_path / "s" / name, mode="update") as hdus:
            header = hdus[0].header
            for key, value in {"OBJECT": called, "RA": ra, "DEC": dec, "HIERARCH ESO OBS TARG NAME": called}.items():
                header[key] = value
            for key in ("ALPHA", "DELTA"):
                header.remove(f"ESO TEL TARG {key}", ignore_missing=True)
    return tmp_path / "s"


def test_a_name_of_another_star_is_reported_and_its_labels_are_not_taken(spectra, tmp_path):
    (tmp_path / "c.csv").write_text("object,ra,dec,teff,logg,mh\nHR 1217,58.81147,-12.10052,7250,4.2,0.3\n")
    arguments = ("--spectra", spectra, "--archive", "a.zarr", "--grid", "tiny", "--catalog", "c.csv")
    ingest = command(PREPROCESSING, "ingest", *arguments)
    printed = run(ingest, tmp_path)
    assert "1 with a name that contradicts the position (no label taken)" in printed
    assert "a.zarr.stars.csv" in printed
    archive = Archive(tmp_path / "a.zarr")
    assert np.isnan(archive.column("real", "teff")).all()
    table = matches_path(tmp_path / "a.zarr").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert tuple(rows[0]) == FIELDS
    assert [(row["source"], row["star"], row["catalogue_id"]) for row in rows] == [
        ("a.fits", "J001624-351840", ""),
        ("b.fits", "HD999999", ""),
    ]
    assert rows[0]["matched_by"] == "not taken: HR1217 lies 54.40 deg away"  # as astropy's SkyCoord.separation says
    assert rows[1]["matched_by"] == "not in the catalogue"
    matches_path(tmp_path / "a.zarr").unlink()
    run(ingest, tmp_path)
    assert matches_path(tmp_path / "a.zarr").read_text() == table


def test_a_file_of_someone_else_in_its_place_is_refused_before_any_work(spectra, tmp_path):
    matches_path(tmp_path / "a.zarr").write_text("mine\n")
    ingest = command(PREPROCESSING, "ingest", "--spectra", spectra, "--archive", "a.zarr", "--grid", "tiny")
    assert "a.zarr.stars.csv" in run(ingest, tmp_path, expect=1)
    assert not (tmp_path / "a.zarr").exists()
    assert matches_path(tmp_path / "a.zarr").read_text() == "mine\n"


def test_parts_that_are_merged_have_the_table_of_one_ingest(spectra, tmp_path):
    arguments = ("ingest", "--spectra", spectra, "--grid", "tiny", "--archive")
    run(command(PREPROCESSING, *arguments, "one.zarr"), tmp_path)
    for part in ("0/2", "1/2"):
        run(command(PREPROCESSING, *arguments, "a.zarr", "--part", part), tmp_path)
    run(command(PREPROCESSING, "merge", "--archive", "a.zarr", "--parts", 2), tmp_path)
    tables = [matches_path(tmp_path / name).read_text() for name in ("one.zarr", "a.zarr")]
    assert tables[0] == tables[1]
    assert tables[0].count("\n") == 3
