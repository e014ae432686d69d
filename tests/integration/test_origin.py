"""The files decide what is genuine: from their headers through archive, release and growth to every report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from astropy.io import fits
from rich.console import Console

import preprocessing.__main__ as cli
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError, ConfigError
from harps_dist.evaluation.evaluate import evaluate_run
from harps_dist.evaluation.terminal import console_table
from harps_dist.formats.archive import Archive
from harps_dist.formats.headers import Header
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import SpectrumRecord
from harps_dist.inference import predict_files
from harps_dist.inference.export import export_run
from harps_dist.inference.model import load
from harps_dist.paper.reproduce import reproduce
from harps_dist.promotion.compare import compare_runs
from harps_dist.ranks.world import World
from harps_dist.runs.run import RECIPE
from harps_dist.spectra.grid import named_grid
from preprocessing.catalog import Catalog
from preprocessing.demo import DESCRIPTION
from preprocessing.difference import compare_releases, difference_tables
from preprocessing.growth import grow
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import Settings, pack
from preprocessing.verify import verify
from tests.archives import remade

ALONE = World.alone()
SPLIT = Settings((0.6, 0.2, 0.2))
SIMULATED = "ORIGIN = SIMULATED; not genuine"
OBSERVED = {"origin": "ESO", "simulated": ""}


@pytest.mark.parametrize(
    ("origin", "software", "cards", "said"),
    [
        ("ESO", "HARPS_3.5", ["HIERARCH ESO INS SWSIM", "SIMPLE"], ""),
        ("TEST", "", [], ""),
        ("", "", [], ""),
        ("SIMULATED", "HARPS_3.5", [], "ORIGIN = SIMULATED"),
        ("ESO simulation", "", [], "ORIGIN = ESO simulation"),
        ("Synthetic", "", [], "ORIGIN = Synthetic"),
        ("ESO", "harps_dist 0.1.0", [], "PROCSOFT = harps_dist 0.1.0"),
        ("ESO", "", ["OBJECT", "HIERARCH SIM MODEL"], "HIERARCH SIM MODEL"),
    ],
)
def test_what_in_a_header_says_that_no_telescope_was_involved(origin, software, cards, said):
    header = fits.Header({"ORIGIN": origin, "PROCSOFT": software} | dict.fromkeys(cards, "x"))
    assert Header(header).simulated == said


def test_genuine_files_say_nothing_of_the_kind(genuine_data):
    found = [read_spectrum(path) for path in sorted((genuine_data / "harps").glob("*.fits.gz"))]
    assert {(record.origin, record.simulated) for record in found if isinstance(record, SpectrumRecord)} == {
        ("ESO", ""),
        ("TEST", ""),
    }
    assert len(found) == 15


@pytest.mark.parametrize("hdu", [0, 1])
def test_any_header_of_a_file_may_say_it(hdu, tiny_demo, tmp_path):
    path = shutil.copy(next((tiny_demo / "files/spectra").glob("*.fits")), tmp_path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["ORIGIN"] = "ESO"
        hdus[hdu].header["HIERARCH SIM MODEL"] = "some network"
    record = read_spectrum(Path(path))
    assert (record.origin, record.simulated) == ("ESO", "HIERARCH SIM MODEL")


# --- archive and release -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tiny_demo, tmp_path_factory) -> dict[str, Path]:
    """The demo's, and the same as if all its files, or every other, were ESO's, or said nothing."""
    folder, rows = tmp_path_factory.mktemp("archives"), range(Archive(tiny_demo / "archive.zarr").count("real"))
    made = {
        "genuine": {("real", row): OBSERVED for row in rows},
        "mixed": {("real", row): OBSERVED for row in rows[::2]},
        "silent": {("real", row): {"origin": "", "simulated": ""} for row in rows},
    }
    demo = tiny_demo / "archive.zarr"
    return {"simulated": demo} | {name: remade(demo, folder / name, changes) for name, changes in made.items()}


@pytest.fixture(scope="module")
def releases(archives, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("releases")
    for name, archive in archives.items():
        pack(archive, folder / name, SPLIT)
    return {name: folder / name for name in archives}


def test_a_release_is_as_genuine_as_its_files_say(releases, tiny_demo):
    manifests = {name: Release(path).manifest for name, path in releases.items()}
    count = manifests["genuine"].counts["real"]
    half = sum(manifests["mixed"].simulated.values())
    assert 0 < half < count
    assert {name: (m.genuine, m.not_genuine) for name, m in manifests.items()} == {
        "simulated": (False, SIMULATED),
        "genuine": (True, ""),
        "mixed": (False, f"ORIGIN = SIMULATED in {half} of {count}; not genuine as a whole"),
        "silent": (True, ""),
    }
    assert {name: m.origins for name, m in manifests.items()} == {
        "simulated": {"SIMULATED": count},
        "genuine": {"ESO": count},
        "mixed": {"ESO": count - half, "SIMULATED": half},
        "silent": {"": count},
    }
    assert [manifests[name].genuine_spectra for name in ("simulated", "genuine", "mixed")] == [0, count, count - half]
    demo = Release(tiny_demo / "release").manifest
    assert (demo.genuine, demo.not_genuine, demo.description) == (False, SIMULATED, DESCRIPTION)
    assert all(verify(path) == [] for path in releases.values())


@pytest.mark.parametrize("name", ["simulated", "mixed"])
def test_nobody_can_call_genuine_what_says_that_it_is_not(name, archives, tmp_path):
    with pytest.raises(ArchiveError, match=r"are not genuine, as their files say .*ORIGIN = SIMULATED.*--genuine out"):
        cli.pack(archive=archives[name], release=tmp_path / "release", genuine=True)
    assert not (tmp_path / "release").exists()


def test_genuine_is_lowered_by_who_packs_and_never_raised(archives, releases, tmp_path, capsys):
    assert cli.pack(archive=archives["silent"], release=tmp_path / "silent", no_genuine=True) == 0
    assert "called observed-like (not genuine)" in capsys.readouterr().out
    lowered = Release(tmp_path / "silent").manifest
    assert (lowered.genuine, lowered.not_genuine) == (False, "not genuine")
    assert cli.pack(archive=archives["silent"], release=tmp_path / "silent", genuine=True) == 0
    assert "its genuine differ" in capsys.readouterr().out
    assert Release(tmp_path / "silent").manifest.genuine
    with pytest.raises(ConfigError, match="contradict each other"):
        cli.pack(archive=archives["silent"], release=tmp_path / "silent", genuine=True, no_genuine=True)


def test_simulated_spectra_that_arrive_on_genuine_ones_are_told_of(tiny_demo, archives, releases, tmp_path, capsys):
    archive = shutil.copytree(archives["genuine"], tmp_path / "a.zarr")
    source = next((tiny_demo / "files/spectra").glob("*.fits"))
    for name, origin in (("ADP.2030-01-01T00:00:00.000", "ESO"), ("ADP.2031-01-01T00:00:00.000", "SIMULATED")):
        (tmp_path / name).mkdir()
        with fits.open(source) as hdus:
            hdus[0].header.update({"ORIGIN": origin, "ARCFILE": f"{name}.fits"})
            hdus.writeto(tmp_path / name / f"{name}.fits", checksum=True)
        ingest_spectra(tmp_path / name, archive, named_grid("tiny"), Catalog.read(tiny_demo / "files/catalog.csv"))
        assert Archive(archive).column("real", "origin")[-1] == origin
        grow(archive, releases["genuine"], tmp_path / origin)
    eso, simulated = (Release(tmp_path / origin) for origin in ("ESO", "SIMULATED"))
    assert eso.manifest.genuine
    count = simulated.manifest.counts["real"]
    assert simulated.manifest.not_genuine == f"ORIGIN = SIMULATED in 1 of {count}; not genuine as a whole"
    with pytest.raises(ArchiveError, match=r"1 of .* are not genuine, as their files say"):
        grow(archive, releases["genuine"], tmp_path / "other", genuine=True)
    found = compare_releases(Release(releases["genuine"]), simulated)
    assert found.not_genuine == ("", simulated.manifest.not_genuine)
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "diff.txt").open("w"))
    console.print(*difference_tables(found))
    assert f"genuine to observed-like ({simulated.manifest.not_genuine})" in console.export_text()


# --- what reports say --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("simulated", f"observed-like spectra ({SIMULATED})"),
        ("mixed", "not genuine as a whole)"),
        ("genuine", "real HARPS spectra"),
    ],
)
def test_every_report_calls_spectra_what_their_files_say(name, words, releases, tiny_runs, tmp_path):
    run, release = tiny_runs / "demo-cnn-mix-laplace", Release(releases[name])
    shutil.copytree(run, tmp_path / "runs/demo-cnn-mix")
    run = tmp_path / "runs/demo-cnn-mix"
    reports = evaluate_run(run, release, "test", run / "evaluation", ALONE, Console(quiet=True))
    real = run / "evaluation/test-real"
    console = Console(width=200, record=True, file=(tmp_path / "log.txt").open("w"))
    console.print(console_table([reports[real]]))
    comparison = compare_runs(run, run, release, "test", tmp_path / "comparison", ALONE, Console(quiet=True))
    page = reproduce(tmp_path / "runs", True, release)
    export_run(run, tmp_path / "export", release)
    card = (tmp_path / "export/README.md").read_text()
    said = {
        "report.md": (real / "report.md").read_text(),
        "console": " ".join(console.export_text().split()),
        "comparison.md": (tmp_path / "comparison/comparison.md").read_text().replace("Observed", "observed"),
        "tables.md": (tmp_path / "runs/tables.md").read_text(),
        "page": (tmp_path / "runs/index.html").read_text(),
        "card": card,
    }
    for place, text in said.items():
        assert (words if place != "comparison.md" else words.replace("real", "Real")) in text, place
        if name != "genuine":
            assert "real HARPS spectra of" not in text, place
            assert "Data: real" not in text, place
    assert page.genuine is comparison.release.genuine is (name == "genuine")
    assert comparison.release.not_genuine == release.manifest.not_genuine
    assert json.loads((tmp_path / "runs/tables.json").read_text())["genuine"] is (name == "genuine")
    front = yaml.safe_load(card.split("---")[1])
    assert front["genuine_spectra"] is False  # what it was trained on was not, whatever tries it
    assert yaml.safe_load((run / RECIPE).read_text())["not_genuine"] == SIMULATED
    assert f"weights of the mix: **observed-like** spectra ({SIMULATED})" in card
    if name != "genuine":
        assert front["observed_spectra"] == release.manifest.not_genuine
        assert json.loads((real / "scores.json").read_text())["origin"] == "observed-like"
    assert load(tmp_path / "export").description.provenance["not_genuine"] == release.manifest.not_genuine


@pytest.mark.parametrize("kind", ["files", "archive", "release"])
def test_the_table_of_labels_says_what_the_header_does(kind, tiny_demo, tiny_exports, archives, releases, tmp_path):
    inputs = {"files": tiny_demo / "files/spectra", "archive": archives["mixed"], "release": releases["mixed"]}
    predict_files(load(tiny_exports / "demo-cnn-mix-laplace"), [inputs[kind]], tmp_path / "labels.parquet")
    table = pq.read_table(tmp_path / "labels.parquet")
    found = set(zip(table["origin"].to_pylist(), table["simulated"].to_pylist(), strict=True))
    expected = {("SIMULATED", "ORIGIN = SIMULATED")}
    assert found == (expected if kind == "files" else expected | {("ESO", "")})
