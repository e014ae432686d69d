"""Nothing in a folder is passed over unsaid."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from harps_dist.errors import ConfigError
from harps_dist.formats.folders import passed_over, passed_over_line
from harps_dist.formats.readers import find_spectra
from harps_dist.inference.sources import find_items, not_looked_at
from harps_dist.spectra.grid import named_grid
from preprocessing.etc import ingest_etc
from preprocessing.ingest import ingest_spectra

NAMES = (
    "one.fits", "sub/two.fits.gz", "._one.fits", "sub/.DS_Store", ".parts/x.part", "a.rar", "b.RAR", "notes.txt",
    "README", "ADP.2018-01-01T01:04:41.632.zip", "ADP.2018-01-01T01:04:41.633", "sub/x.csv.xz",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_text("x")
    os.symlink(tmp_path / "s", tmp_path / "s/sub/up")
    return tmp_path / "s"


def test_files_that_were_not_looked_at_are_counted_by_ending(folder):
    found = find_spectra(folder)
    assert [path.name for path in found] == ["one.fits", "two.fits.gz"]
    counts = passed_over(folder, found)
    expected = {".rar": 1, ".RAR": 1, ".txt": 1, ".csv.xz": 1, ".zip": 1, "of macOS (._)": 1, "without an ending": 2}
    assert counts == expected
    assert passed_over(folder, [*found, folder / "a.rar/member.fits"])[".rar"] == 0
    assert passed_over(folder / "a.rar", []) == Counter()


def test_one_line_even_for_many_endings():
    assert passed_over_line(Counter()) == ""
    assert passed_over_line(Counter({".tar": 2, ".x": 1})) == "not looked at: 2 .tar, 1 .x"
    many = passed_over_line(Counter({f".e{number}": 2 for number in range(20)}))
    assert many.endswith("16 with other endings")
    assert "\n" not in many


def test_ingest_etc_and_predict_say_it(folder, tmp_path, monkeypatch):
    grid = named_grid("tiny")
    assert ingest_spectra(folder, tmp_path / "a.zarr", grid).passed_over == passed_over(folder, find_spectra(folder))
    (folder / "run.json").write_text("x")
    (folder / "._run.json").write_text("x")
    report = ingest_etc(folder, tmp_path / "b.zarr", grid)
    assert [refusal.source for refusal in report.refused] == ["run.json"]
    assert (report.passed_over["of macOS (._)"], report.passed_over[".fits"]) == (2, 1)
    (tmp_path / "seds").mkdir()
    (tmp_path / "seds/notes.txt").write_text("x")
    assert ingest_etc(folder, tmp_path / "b.zarr", grid, tmp_path / "seds").passed_over[".txt"] == 2
    assert ingest_etc(folder / "sub", tmp_path / "b.zarr", grid, folder).passed_over[".txt"] == 1
    items, _ = find_items([folder])
    assert "1 .rar" in not_looked_at([folder], items)
    for inputs in ([folder, folder / "sub"], [folder / "sub", folder], [str(folder), f"{folder}/sub/.."]):
        items, _ = find_items(inputs)
        assert not_looked_at(inputs, items) == not_looked_at([folder], find_items([folder])[0])
    monkeypatch.chdir(tmp_path)
    inputs = [folder / "sub", "s"]  # the same folder by two names
    assert not_looked_at(inputs, find_items(inputs)[0]) == not_looked_at([folder], find_items([folder])[0])
    (tmp_path / "t").mkdir()
    (tmp_path / "t/x.rar").write_text("x")
    with pytest.raises(ConfigError, match=r"holds no spectrum.*\(not looked at: 1 \.rar\)"):
        find_items([tmp_path / "t"])
