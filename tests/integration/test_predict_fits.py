"""Predictions beside fits of the same spectra: a flag says where the two disagree beyond their errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.table import QTable

import harps_dist
from harps_dist.formats.fit_tables import FitLabels, read_fits
from harps_dist.inference import predict_files
from tests.integration.conftest import STEPS
from tests.made_up_fits import write_fits

CNN, *_ = STEPS


@pytest.fixture(scope="module")
def cnn(tiny_exports):
    return harps_dist.load(tiny_exports / CNN)


@pytest.fixture
def folder(tiny_demo, tmp_path) -> Path:
    made = tmp_path / "spectra"
    made.mkdir()
    for path in sorted((tiny_demo / "files/spectra").rglob("*.fits"))[:4]:
        shutil.copy(path, made)
    return made


def rows(table: Path) -> QTable:
    found = QTable.read(table, format="ascii.csv" if table.suffix == ".csv" else None)
    found.convert_bytestring_to_unicode()
    return found


def fits_of(table: Path, off_by: list[float], path: Path) -> FitLabels:
    """Fits that are off from a table of predictions by so many times 5 K and the network's standard deviation."""
    found, half = rows(table), 5.0
    teff, low, high, own = (
        np.asarray(getattr(found[f"teff{end}"], "value", found[f"teff{end}"]), float)
        for end in ("", "_lo68", "_hi68", "_sigma")
    )
    sigma = np.hypot(np.where(np.isfinite(high), (high - low) / 2, own), half)
    said = zip(found["dp_id"], teff + np.array(off_by) * sigma, strict=False)
    return read_fits(write_fits(path, {str(product): {"teff": (value, half)} for product, value in said}))


@pytest.mark.parametrize("ending", ["fits", "ecsv", "csv", "parquet"])
def test_what_disagrees_with_its_fit_is_flagged_and_nothing_predicted_anew(ending, folder, cnn, tmp_path, monkeypatch):
    table = tmp_path / f"labels.{ending}"
    predict_files(cnn, [folder], table)
    if ending == "parquet":
        predict_files(cnn, [folder], tmp_path / "labels.ecsv")
    plain = table.with_suffix(".ecsv") if ending == "parquet" else table
    assert "flag_fit_disagrees" not in rows(plain).colnames
    fits = fits_of(plain, [2.9, -3.1, 0.0, 9.0], tmp_path / "fitted.ecsv")
    fits = FitLabels(fits.products[:3], fits.values[:3], fits.errors[:3], {}, {})
    monkeypatch.setattr(type(cnn), "predict_flux", lambda *_, **__: pytest.fail("predicted again"))
    report = predict_files(cnn, [folder], table, fits=fits)
    told = "3 of 4 were compared with fits; 1 disagree by more than 3 standard deviations, in teff"
    assert told in list(report.lines("predicted"))
    if ending == "parquet":
        import pyarrow.parquet as pq

        found = pq.read_table(table).to_pydict()
        assert pq.read_schema(table).metadata[b"fits"].decode() == fits.digest
    else:
        found = rows(table)
    assert [bool(flag in (True, "True", "true")) for flag in found["flag_fit_disagrees"]] == [False, True, False, False]
    assert ["fit_disagrees" in str(flags).split(",") for flags in found["flags"]] == [False, True, False, False]
    np.testing.assert_allclose(np.asarray(found["fit_deviation"], float), [2.9, 3.1, 0.0, np.nan], atol=1e-6)
    assert predict_files(cnn, [folder], table).compared == ""  # the table with a flag more is known, and replaced
