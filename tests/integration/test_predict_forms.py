"""An exposure that a folder holds in several forms has one row, whenever its forms come."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import harps_dist
from harps_dist.errors import Interrupted
from harps_dist.inference import predict, predict_files
from harps_dist.inference.forms import forms
from tests.integration.conftest import STEPS
from tests.integration.test_exposures import another_form, as_image
from tests.integration.test_predict_files import failures, rows
from tests.unit.test_rewritten import rewritten

NEWER = "ADP.2030-01-01T00:00:00.001"
SECOND = 1 / 86_400


@pytest.fixture(scope="module")
def cnn(tiny_exports):
    return harps_dist.load(tiny_exports / next(iter(STEPS)))


@pytest.fixture
def folder(tiny_demo, tmp_path) -> Path:
    """A folder with copies of three Phase 3 files, all of one star or not."""
    made = tmp_path / "spectra"
    made.mkdir()
    for path in sorted((tiny_demo / "files/spectra").rglob("*.fits"))[:3]:
        shutil.copy(path, made)
    return made


def columns(*spectra: tuple[str, str, float, float, float, str, str]) -> dict[str, np.ndarray]:
    names = ("dp_id", "object", "ra", "dec", "mjd", "pipeline", "product")
    kinds = dict.fromkeys(("ra", "dec", "mjd"), float)
    return {
        name: np.array(values, kinds.get(name, object))
        for name, values in zip(names, zip(*spectra, strict=True), strict=True)
    }


def test_one_row_for_a_product_and_one_for_an_exposure():
    found = forms(
        columns(
            ("image", "HD 1", 10.0, -5.0, 55000.0, "HARPS_3.5", "s1d"),
            ("product", "HD 1", 10.0, -5.0, 55000 + 0.4 * SECOND, "HARPS_3.5", "ADP"),
            ("product", "HD 1", 10.0, -5.0, 55000.0, "HARPS_3.8", "ADP"),
            ("newer", "hd1", 10.01, -5.01, 55000.0, "espdr/3.0.0", "S1D_A"),
            ("later", "HD 1", 10.0, -5.0, 55000 + 30 * SECOND, "HARPS_3.5", "ADP"),
            ("elsewhere", "HD 9", 200.0, 5.0, 55000.0, "HARPS_3.5", "ADP"),
            ("undated", "HD 1", 10.0, -5.0, np.nan, "HARPS_3.5", "ADP"),
            ("undated too", "HD 1", 10.0, -5.0, np.nan, "HARPS_3.5", "ADP"),
            ("unplaced", "", np.nan, np.nan, 55100.0, "HARPS_3.5", "s1d"),
            ("unplaced, newer", "HD 2", np.nan, np.nan, 55100.0, "HARPS_3.8", "s1d"),
        )
    )
    assert found.duplicate_of == {1: 2}
    assert found.form_of == {0: 3, 2: 3, 8: 9}


def test_of_an_exposure_in_three_forms_one_has_the_row_and_names_the_others(folder, cnn, tmp_path):
    table, first, *_ = tmp_path / "labels.parquet", *sorted(folder.glob("*.fits"))
    image = as_image(first, folder)
    report = predict_files(cnn, [folder], table)
    assert (report.predicted, report.already, report.other_forms, report.failed) == (3, 0, 1, [])
    found = rows(table)
    assert dict(zip(found["dp_id"], found["other_forms"], strict=True))[first.stem] == image
    assert sorted(found["other_forms"]) == ["", "", image]
    assert set(found["product"]) == {"ADP"}
    another_form(first, folder, NEWER, "HARPS_3.10")
    report = predict_files(cnn, [folder], table)
    assert (report.predicted, report.already, report.other_forms, report.failed) == (1, 2, 2, [])
    found = rows(table)
    assert first.stem not in found["dp_id"]
    others = dict(zip(found["dp_id"], found["other_forms"], strict=True))[NEWER]
    assert sorted(others.split(";")) == sorted([first.stem, image])
    report = predict_files(cnn, [folder], table)
    assert (report.predicted, report.already, report.other_forms) == (0, 3, 2)


def test_stopped_between_two_forms_the_table_is_the_same(folder, cnn, tmp_path, monkeypatch):
    for path in sorted(folder.glob("*.fits")):
        as_image(path, folder)
    whole, table = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
    monkeypatch.setattr("harps_dist.inference.blocks.BLOCK", 2)
    predict_files(cnn, [folder], whole)
    write = predict._write_part
    written: list[object] = []

    def stopping(*arguments):
        if len(written) == 2:
            raise Interrupted("stop")
        written.append(write(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(predict, "_write_part", stopping)
        with pytest.raises(Interrupted):
            predict_files(cnn, [folder], table)
    report = predict_files(cnn, [folder], table)
    assert report.other_forms == 3
    assert table.read_bytes() == whole.read_bytes()


def test_an_image_that_iraf_rewrote_is_flagged(folder, cnn, tmp_path):
    table = tmp_path / "labels.parquet"
    rewritten(folder / "x.fits")
    predict_files(cnn, [folder], table)
    found = rows(table)
    flags = dict(zip(found["dp_id"], found["flags"], strict=True))
    assert [dp_id for dp_id, flag in flags.items() if "processed" in flag] == ["x"]
    assert found["flag_processed"].sum() == 1


def test_a_copy_has_no_row_but_a_newer_version_of_it_has(folder, cnn, tmp_path):
    table, first = tmp_path / "labels.parquet", min(folder.glob("*.fits"))
    another_form(first, tmp_path / "later", first.stem, "HARPS_3.10")
    report = predict_files(cnn, [folder, tmp_path / "later"], table)
    assert [refusal.reason for refusal in report.failed] == ["duplicate"]
    assert set(failures(table)) == {first.name}
    found = rows(table)
    assert dict(zip(found["dp_id"], found["pipeline"], strict=True))[first.stem] == "HARPS_3.10"
    report = predict_files(cnn, [folder, tmp_path / "later"], table)
    assert (report.predicted, report.already) == (0, 3)
