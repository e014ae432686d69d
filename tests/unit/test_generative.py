"""The generative set: what its design must say, and what of it is refused."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import Archive
from harps_dist.formats.records import Reason
from harps_dist.spectra.labels import INTRINSIC
from preprocessing.generative import ingest_generative
from preprocessing.simulator.design import DESIGN


@pytest.fixture
def design(tiny_demo, tmp_path):
    """A copy of the demo's generative files with an archive that has its ETC runs but not yet the set."""
    shutil.copytree(tiny_demo / "files/generative", tmp_path / "generative")
    from preprocessing.etc import ingest_etc

    grid = Archive(tiny_demo / "archive.zarr").grid
    ingest_etc(tiny_demo / "files/etc", tmp_path / "a.zarr", grid, tiny_demo / "files/sed")
    return tmp_path / "generative" / DESIGN


def rewrite(design, change) -> None:
    with design.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with design.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_every_subset_varies_one_label_and_keeps_the_rest(tiny_demo):
    release = Release(tiny_demo / "release")
    index = release.index
    rows = index.rows("generative")
    assert len(rows) == 4 * 3 * 7
    assert len(index.rows("generative", "test")) == len(index.rows("generative", "validation")) == 2 * 3 * 7
    for core in set(index["star"][rows]):
        of_core = rows[index["star"][rows] == core]
        assert len(set(index["split"][of_core])) == len(set(index["response"][of_core])) == 1
        for label in INTRINSIC:
            subset = of_core[index["varied"][of_core] == label]
            assert len(set(index[label][subset])) == 7
            assert all(len(set(index[other][subset])) == 1 for other in INTRINSIC if other != label)
    assert not set(index["object"][rows]) & set(index["object"][index.rows("simulated")])


def test_a_second_ingest_adds_nothing(design):
    archive = design.parents[1] / "a.zarr"
    grid = Archive(archive).grid
    assert ingest_generative(design, archive, grid).added == 84
    again = ingest_generative(design, archive, grid)
    assert (again.added, again.already) == (0, 84)
    assert np.isfinite(Archive(archive).data("generative", 83)).all()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("etc_run", "no-such-run", "ETC run 'no-such-run' is not in the archive"),
        ("varied", "colour", "expected a core, a label"),
        ("split", "train", "a split of validation, test"),
        ("sed", "no-such-file.fits", "no SED file"),
    ],
)
def test_bad_entries_are_quarantined_and_the_rest_comes_in(field, value, reason, design):
    rewrite(design, lambda rows: rows[0].update({field: value}))
    archive = design.parents[1] / "a.zarr"
    report = ingest_generative(design, archive, Archive(archive).grid)
    assert report.added == 83
    assert reason in str(report.refused[0])


def test_two_files_of_one_name_are_not_both_taken(design):
    def elsewhere(rows):
        (design.parent / "copy").mkdir()
        shutil.copy(design.parent / rows[0]["sed"], design.parent / "copy")
        rows.append(rows[0] | {"sed": f"copy/{rows[0]['sed']}"})

    rewrite(design, elsewhere)
    archive = design.parents[1] / "a.zarr"
    report = ingest_generative(design, archive, Archive(archive).grid)
    assert (report.added, [refusal.reason for refusal in report.refused]) == (84, [Reason.DUPLICATE])


def test_a_design_without_a_column_is_refused(design):
    rewrite(design, lambda rows: [row.pop("core") for row in rows])
    with pytest.raises(ArchiveError, match="lacks columns \\['core'\\]"):
        ingest_generative(design, design.parents[1] / "a.zarr", Archive(design.parents[1] / "a.zarr").grid)
