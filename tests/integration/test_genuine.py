"""The benchmark of stars with known labels: what users' commands read is what it scores, and nothing goes unsaid."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from harps_dist.benchmarks.genuine import (
    GenuineScores,
    genuine_scores,
    genuine_tables,
    read_genuine,
    stated_errors,
    write_genuine,
)
from harps_dist.columns import read_columns
from harps_dist.errors import ConfigError, OutputError
from harps_dist.fitting.files import fit_files
from harps_dist.fitting.fitter import Fitter, fitting_grid
from harps_dist.fitting.stellar import CorrectedModel, PackagedModel
from harps_dist.formats.archive import Archive
from harps_dist.inference.model import Exported, load
from harps_dist.inference.predict import predict_files
from harps_dist.text import strict_json
from preprocessing.catalog import Catalog
from tests.commands import command, run

METHODS = ["network", "network, blanked", "fit", "network + fit"]


class Known(NamedTuple):
    """Spectra and a catalogue; whose they are, by dp_id, of those that are in it."""

    spectra: Path
    labels: Path
    stars: dict[str, str]


@pytest.fixture(scope="module")
def known(tiny_demo, tmp_path_factory) -> Known:
    """Spectra of two stars of a catalogue, three and two of them, of one that is not in it, and a file that is none."""
    folder, spectra_of = tmp_path_factory.mktemp("known"), defaultdict[str, list[str]](list)
    for row in Archive(tiny_demo / "archive.zarr").rows("real"):
        if 4600 < row["teff"] < 6800 and row["logg"] < 4.7 and np.isfinite(row["rv"]):
            spectra_of[row["target"]].append(row["key"])
    first, second, third = sorted(spectra_of, key=lambda star: (-len(spectra_of[star]), star))[:3]
    assert (len(spectra_of[first]), len(spectra_of[second])) == (3, 2)
    (folder / "spectra").mkdir()
    for name in (*spectra_of[first], *spectra_of[second], spectra_of[third][0]):
        shutil.copy(tiny_demo / "files/spectra" / f"{name}.fits", folder / "spectra")
    (folder / "spectra/z_text.fits").write_text("no FITS at all")
    header, *lines = (tiny_demo / "files/catalog.csv").read_text().splitlines()
    of_star = {f"TIC {line.partition(',')[0]}": line for line in lines}
    texts = [f"{header},e_Teff", f"{of_star[first]},40", f"{of_star[second]},"]
    (folder / "labels.csv").write_text("\n".join(texts) + "\n")
    stars = {name: star for star in (first, second) for name in spectra_of[star]}
    return Known(folder / "spectra", folder / "labels.csv", stars)


@pytest.fixture(scope="module")
def network(tiny_exports) -> Exported:
    """An encoder that is told to have seen blanked pieces."""
    network = load(tiny_exports / "demo-cnn-mix-laplace")
    facts = tuple(replace(fact, sampled_factors=fact.factors) for fact in network.description.labels)
    network.description = replace(network.description, blanked=0.3, labels=facts)
    return network


@pytest.fixture(scope="module")
def scored(known, network, tmp_path_factory) -> tuple[GenuineScores, Path]:
    folder = tmp_path_factory.mktemp("scored") / "tables"
    fitter = Fitter(fitting_grid(network.grid))
    return genuine_scores(known.spectra, Catalog.read(known.labels), fitter, network, folder), folder


def test_every_method_is_scored_star_by_star_by_what_users_commands_read(scored, known, network, tmp_path):
    scores, _ = scored
    assert scores.methods == METHODS
    assert {score.label for score in scores.of_stars} == {"teff", "logg", "mh", "rv"}
    assert len(scores.of_stars) == 2 * len(METHODS) * 4
    files = sorted(known.spectra.glob("ADP*.fits"))
    predict_files(network, files, tmp_path / "p.parquet", samples=16)
    fit_files(Fitter(fitting_grid(network.grid)), files, tmp_path / "f.parquet", network)
    for method, name in (("network, blanked", "p"), ("network + fit", "f")):
        rows = read_columns(tmp_path / f"{name}.parquet")
        assert rows is not None
        for score in (score for score in scores.of_stars if score.method == method):
            visits = np.array([known.stars.get(name) == score.star for name in rows["dp_id"]])
            fine = visits & (rows["flags"] == "") & np.isfinite(rows[score.label])
            taken = fine if fine.any() else visits & np.isfinite(rows[score.label])
            assert (score.visits, score.used, score.trusted) == (visits.sum(), taken.sum(), fine.any())
            assert score.flagged == (rows["flags"][visits] != "").sum()
            if taken.any():
                assert score.median == pytest.approx(np.median(rows[score.label][taken]), rel=1e-5, abs=1e-4)
                assert score.stated == pytest.approx(np.median(stated_errors(rows, score.label)[taken]), rel=1e-3)
    teff = {score.star: score for score in scores.of_stars if (score.method, score.label) == ("fit", "teff")}
    assert sorted(score.visits for score in teff.values()) == [2, 3]
    for score in teff.values():
        assert score.bias == score.median - score.reference
        assert abs(score.bias) < 400
        assert score.reference_error == 40 if score.visits == 3 else np.isnan(score.reference_error)


def test_over_stars_the_references_errors_are_known(scored):
    found = {(score.method, score.label, score.sample): score for score in scored[0].of_methods}
    assert len(found) == len(METHODS) * 4 * 2
    assert found["fit", "teff", "all"].stars_with_errors == 1
    assert found["fit", "logg", "all"].stars_with_errors == 0
    assert (found["fit", "teff", "all"].stars, found["fit", "teff", "all"].spectra) == (2, 5)


def test_what_is_left_out_and_what_is_simulated_is_said(scored):
    scores, _ = scored
    assert scores.left_out == {"could not be read": 1, "not in the catalogue": 1}
    assert (scores.spectra, scores.simulated) == (5, 5)
    assert scores.title == "5 spectra of 2 stars, simulated"
    assert replace(scores, simulated=0).title == "5 spectra of 2 stars, genuine"
    assert replace(scores, simulated=1).title == "5 spectra of 2 stars, 1 of them simulated"
    stars, over = genuine_tables(scores)
    assert (stars.row_count, over.row_count) == (2 * len(METHODS), 2 * len(METHODS))


def test_a_folder_that_keeps_the_tables_is_gone_on_with(scored, known, network, monkeypatch):
    scores, folder = scored
    tables = {path.stem for path in folder.glob("*.parquet")}
    assert tables == {"network", "network-blanked", "fit", "network-fit"}

    def again(*_, **__):
        raise AssertionError("it is fitted already")

    monkeypatch.setattr(Fitter, "fit", again)
    repeated = genuine_scores(
        known.spectra, Catalog.read(known.labels), Fitter(fitting_grid(network.grid)), network, folder
    )
    assert strict_json([vars(score) for score in repeated.of_stars]) == strict_json(
        [vars(score) for score in scores.of_stars]
    )


def test_scores_are_read_as_they_were_written_and_damage_is_said(scored, tmp_path):
    scores, path = scored[0], tmp_path / "genuine.json"
    write_genuine(scores, path)
    found = read_genuine(path)
    assert found.of_methods[0].stars == scores.of_methods[0].stars
    np.testing.assert_equal([vars(score) for score in found.of_stars], [vars(score) for score in scores.of_stars])
    np.testing.assert_equal([vars(score) for score in found.of_methods], [vars(score) for score in scores.of_methods])
    assert found.versions.keys() == {"harps_dist", "torch", "numpy", "astropy"}
    path.write_text(path.read_text().replace('"visits": 3', '"visits": 4'))
    with pytest.raises(ConfigError, match="is damaged"):
        read_genuine(path)


def test_a_model_that_draws_is_refined_and_learned_lines_are_told(known, tiny_exports, tmp_path):
    """One visit of each star."""
    (tmp_path / "spectra").mkdir()
    for name in {star: name for name, star in known.stars.items()}.values():
        shutil.copy(known.spectra / f"{name}.fits", tmp_path / "spectra")
    network, stars = load(tiny_exports / "demo-ae-mix"), PackagedModel()
    unchanged = np.zeros(stars.grid.length)
    fitter = Fitter(fitting_grid(network.grid), CorrectedModel(stars, unchanged, unchanged))
    scores = genuine_scores(tmp_path / "spectra", Catalog.read(known.labels), fitter, network)
    assert scores.methods == ["network", "network, refined", "fit, lines", "network + fit, lines"]
    read = {(score.star, score.method): score.median for score in scores.of_stars if score.label == "rv"}
    assert all(read[star, "network"] != read[star, "network, refined"] for star in set(known.stars.values()))


def test_spectra_of_no_star_of_the_catalogue_are_refused(known, tmp_path):
    (tmp_path / "labels.csv").write_text("object,teff\nHD 1,5000\n")
    with pytest.raises(
        ConfigError,
        match=r"expected spectra of stars with labels in .*, got 1 could not be read, 6 not in the catalogue",
    ):
        genuine_scores(known.spectra, Catalog.read(tmp_path / "labels.csv"), Fitter())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("of mine")
    with pytest.raises(OutputError):
        genuine_scores(known.spectra, Catalog.read(known.labels), Fitter(), tables=tmp_path / "mine")


def test_without_a_model_the_command_fits_alone_and_says_how_it_measured(known, tmp_path):
    arguments = ("genuine", "--spectra", known.spectra, "--labels", known.labels, "--json", "genuine.json")
    printed = run(command("launch/benchmark.py", *arguments), tmp_path)
    assert "1 could not be read" in printed
    assert "teff from Teff" in printed
    assert "reference errors: teff" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["genuine.json"]
    content = json.loads((tmp_path / "genuine.json").read_text())
    assert content["command"] == f"harps-dist benchmark genuine --spectra {known.spectra} --labels {known.labels}"
    assert (content["model"], content["stars"].split()[0]) == ("", "PackagedModel")
    assert {score["method"] for score in content["of_stars"]} == {"fit"}


def test_genuine_dwarfs_are_read_and_a_flagged_star_stands_apart(genuine_data, tmp_path):
    for pattern in ("HARPS.2012-0[345]*", "HARPS.2003-12-13*", "HARPS.2010*"):
        for path in sorted((genuine_data / "harps").glob(pattern))[:5]:
            (tmp_path / path.name).symlink_to(path)
    scores = genuine_scores(tmp_path, Catalog.read(genuine_data / "labels.csv"), Fitter())
    assert scores.simulated == 0
    assert not scores.left_out
    found = {(score.star, score.label): score for score in scores.of_stars}
    teff, rv = (found["HD128621", label] for label in ("teff", "rv"))
    assert (teff.visits, teff.flagged, teff.used) == (5, 0, 5)
    assert abs(teff.bias) < 180
    assert teff.ratio < 1
    assert abs(rv.bias) < 0.6
    assert rv.about_line < 0.015 < rv.stated * 2
    others = {score.star for score in scores.of_stars if not score.trusted}
    assert others == {"GJ581", "GJ273"}
    over = {(score.label, score.sample): score for score in scores.of_methods}
    assert over["teff", "unflagged"].stars == over["teff", "all"].stars == 1  # no temperature of an M dwarf is read
    assert over["rv", "unflagged"].stars == 1 < over["rv", "all"].stars
