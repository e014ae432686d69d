"""What `pack` says of splits: spectra, stars, and stars by label."""

from __future__ import annotations

import math
import re
import sys

from harps_dist.console import console_for
from harps_dist.data.reader import Release
from harps_dist.spectra.labels import CATALOGUED, NAMES
from preprocessing import __main__ as preprocessing
from preprocessing.splits import Split, shortages, split_table, splits_of


def test_stars_are_counted_once_and_by_label(tiny_release):
    index = Release(tiny_release).index
    for split in splits_of(index):
        stars, labelled, spectra = set(), {name: set() for name in CATALOGUED}, 0
        for row in range(len(index)):
            if (index["kind"][row], index["split"][row]) == ("real", split.name):
                spectra += 1
                stars.add(index["star"][row])
                for name in CATALOGUED:
                    if not math.isnan(index.labels[row, NAMES.index(name)]):
                        labelled[name].add(index["star"][row])
        assert (split.spectra, split.stars) == (spectra, len(stars))
        assert split.labelled == {name: len(there) for name, there in labelled.items()}
    assert sum(split.spectra for split in splits_of(index)) > len(stars) > 0


def test_a_held_out_split_with_few_stars_is_said():
    train, validation, test = (
        Split("train", 900, 300, {"rv": 300, "teff": 200, "mh": 0}),
        Split("validation", 50, 17, {"rv": 17, "teff": 5, "mh": 0}),
        Split("test", 50, 17, {"rv": 17, "teff": 4, "mh": 0}),
    )
    (sentence,) = shortages([train, validation, test])
    assert sentence.startswith("few stars in the test split: teff 4. ")
    assert shortages([train, validation, validation]) == []
    assert len(shortages([train, Split("validation", 0, 0, {"rv": 0, "teff": 0, "mh": 0}), test])) == 2


def test_pack_prints_the_splits_in_80_columns(tiny_demo, tmp_path, monkeypatch, capsys):
    command = [
        "pack",
        "--archive",
        tiny_demo / "archive.zarr",
        "--release",
        tmp_path / "R",
        "--split",
        0.98,
        0.01,
        0.01,
    ]
    monkeypatch.setattr(sys, "argv", ["preprocessing", *map(str, command)])
    assert preprocessing.main() == 0
    printed = capsys.readouterr().out
    (train, *_) = splits_of(Release(tmp_path / "R").index)
    assert re.search(rf"train +│ +{train.spectra} +│ +{train.stars} ", printed), printed
    assert "few stars in the test split: " in printed


def test_a_terminal_has_room_for_an_archive(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    many = Split("validation", 300_000, 300_000, dict.fromkeys(CATALOGUED, 300_000))
    console_for().print(split_table([many]))
    printed = capsys.readouterr().out
    assert printed.count("300,000") == 2 + len(CATALOGUED)
    assert max(map(len, printed.splitlines())) <= 80
