"""A first ingest that takes nothing in leaves no archive behind, and says in a few lines why."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harps_dist.formats.archive import Archive
from harps_dist.formats.records import Reason, Refusal
from harps_dist.spectra.grid import grid_within, named_grid
from preprocessing.refused import refusal_lines
from tests.commands import command, environment, run

PREPROCESSING = "preprocessing/__main__.py"


@pytest.fixture
def spectra(tiny_demo, tmp_path) -> Path:
    folder = tmp_path / "files/spectra"
    folder.mkdir(parents=True)
    for path in sorted((tiny_demo / "files/spectra").glob("*.fits"))[:6]:
        shutil.copy(path, folder)
    return folder


def test_the_wrong_grid_makes_no_archive_and_the_right_one_is_named(spectra, tmp_path):
    ingest = command(PREPROCESSING, "ingest", "--spectra", spectra, "--archive", "out/a.zarr")
    printed = run(ingest, tmp_path, expect=1)
    line = (
        r"^6 of 6: coverage 10\.\d % of grid harps, expected 98 % \(coverage; .* and 5 more\)\. "
        r"These files span 5987-6321 Å: try --grid demo\.$"
    )
    assert re.search(line, printed, re.MULTILINE), printed
    assert "No archive was made." in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.zarr.quarantine.csv"]
    assert "added 6" in run([*ingest, "--grid", "tiny"], tmp_path)
    assert Archive(tmp_path / "out/a.zarr").grid.name == "tiny"


def test_parts_that_took_nothing_in_are_merged_into_no_archive_with_every_reason(spectra, tmp_path):
    for part in ("0/2", "1/2"):
        command_of_part = ("ingest", "--spectra", spectra, "--archive", "a.zarr", "--part", part)
        run(command(PREPROCESSING, *command_of_part), tmp_path, expect=None)
    printed = run(command(PREPROCESSING, "merge", "--archive", "a.zarr", "--parts", 2), tmp_path, expect=1)
    assert "6 of 6: coverage" in printed
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ingest", "--spectra", "nowhere", "--grid", "tiny"), "there is nothing at nowhere"),
        (("ingest", "--spectra", "spectra", "--catalog", "labls.csv", "--grid", "tiny"), "labls.csv"),
        (("ingest", "--spectra", "spectra", "--grid", "tinny"), "known grids are"),
        (("ingest", "--spectra", "bad", "--grid", "tiny"), "2 of 2"),
        (("etc", "--json", "nowhere", "--grid", "tiny"), "there is nothing at nowhere"),
        (("etc", "--json", "bad", "--grid", "tiny"), "1 of 1"),
        (("etc", "--json", "etc", "--seds", "sed"), "try --grid demo."),
        (("generative", "--design", "nowhere.csv", "--grid", "tiny"), "there is no design"),
        (("generative", "--design", "generative/design.csv", "--grid", "tiny"), "ingest it first"),
    ],
)
def test_a_failed_first_ingest_leaves_no_archive(spectra, tiny_demo, tmp_path, arguments, said):
    files, bad = tmp_path / "files", tmp_path / "files/bad"
    bad.mkdir()
    for name in ("one.fits", "two.fits", "three.json"):
        (bad / name).write_text("nothing of the kind")
    for name in ("etc", "sed", "generative"):
        (files / name).symlink_to(tiny_demo / "files" / name)
    printed = run(command(PREPROCESSING, *arguments, "--archive", tmp_path / "a.zarr"), files, expect=1)
    assert said in printed
    assert {path.name for path in tmp_path.iterdir()} <= {"files", "a.zarr.quarantine.csv"}


def test_an_archive_that_a_killed_ingest_left_empty_fixes_no_grid(spectra, tmp_path):
    Archive._create(tmp_path / "a.zarr", named_grid("harps"))
    ingest = command(PREPROCESSING, "ingest", "--spectra", spectra, "--archive", tmp_path / "a.zarr", "--grid", "tiny")
    assert "added 6" in run(ingest, tmp_path)
    assert Archive(tmp_path / "a.zarr").grid.name == "tiny"


def test_a_file_of_someone_else_in_a_blank_archive_stays(tmp_path):
    Archive._create(tmp_path / "a.zarr", named_grid("tiny"))
    (tmp_path / "a.zarr/notes.txt").write_text("mine")
    with Archive.writing(tmp_path / "a.zarr", named_grid("tiny")):
        pass
    assert (tmp_path / "a.zarr/notes.txt").read_text() == "mine"


def test_one_line_a_reason():
    refused = [Refusal(f"{n}.fits", Reason.NOT_FITS, f"no SIMPLE card in {n}") for n in range(3)]
    refused.append(Refusal("w.fits", Reason.COVERAGE, "coverage 1.0 % of grid harps, expected 98 %", (5987.1, 6321.2)))
    lines = refusal_lines(refused, 10, made=True)
    assert lines == [
        "3 of 10: no SIMPLE card in 0 (not_fits; 0.fits and 2 more).",
        "1 of 10: coverage 1.0 % of grid harps, expected 98 % (coverage; w.fits). These files span 5987-6321 Å: try "
        "--grid demo and another --archive.",
    ]


@pytest.mark.parametrize(
    ("span", "name"),
    [((3781, 6912), "harps"), ((5987, 6321), "demo"), ((6090, 6140), "tiny"), ((4000, 4001), None)],
)
def test_the_longest_named_grid_within_a_span(span, name):
    found = grid_within(*span, 0.98)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo-cnn-mix", "--data.release", "nowhere"),
        ("demo-cnn-mixx",),
        ("demo-cnn-mix", "--training.epoch", "3"),
        ("demo-cnn-mix", "--data.release", "RELEASE", "--parent", "None", "--training.batch-size", "1",
         "--training.accumulate", "2"),
        ("demo-cnn-mix", "--data.release", "RELEASE", "--start-from", "nowhere", "--training.steps", "2"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_train_leave_nothing(tiny_release, tmp_path, arguments):
    given = [tiny_release if word == "RELEASE" else word for word in arguments]
    done = subprocess.run(
        command("launch/train.py", *given, "--out", "runs/x"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
