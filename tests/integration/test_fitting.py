"""The command `fit`: files in, one table out, again after a kill; genuine stars where they are there."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.table import QTable

from harps_dist.errors import ConfigError, Interrupted, OutputError
from harps_dist.fitting import files
from harps_dist.fitting.files import check_outputs, fit_files
from harps_dist.fitting.fitter import Fitter
from harps_dist.fitting.lines import learn_from_files
from harps_dist.fitting.stellar import with_lines
from harps_dist.fitting.table import FLAGS, NAMES, fields_of
from harps_dist.formats.sed import MODEL_ERRORS
from harps_dist.inference import blocks


@pytest.fixture(scope="module")
def fitter() -> Fitter:
    return Fitter()


@pytest.fixture(scope="module")
def spectra(tiny_demo, tmp_path_factory) -> Path:
    """Spectra of three stars whose labels the catalogue knows, and a file that is none."""
    folder = tmp_path_factory.mktemp("spectra")
    for name in sorted(known(tiny_demo))[:3]:
        shutil.copy(tiny_demo / "files/spectra" / f"{name}.fits", folder)
    (folder / "z_text.fits").write_text("no FITS at all")
    return folder


def known(demo: Path) -> dict[str, dict[str, float]]:
    """Labels of the demo's spectra by data product, of Sun-like stars that have all four."""
    from harps_dist.formats.archive import Archive

    rows = Archive(demo / "archive.zarr").rows("real")
    inside = [row for row in rows if 4600 < row["teff"] < 6800 and row["logg"] < 4.8 and -0.8 < row["mh"] < 0.3]
    return {row["key"]: {name: row[name] for name in ("teff", "logg", "mh", "rv", "berv")} for row in inside}


@pytest.fixture(scope="module")
def fitted(spectra, fitter, tmp_path_factory) -> Path:
    table = tmp_path_factory.mktemp("fitted") / "fits.ecsv"
    report = fit_files(fitter, [spectra], table, figures=table.parent / "figures")
    assert (report.predicted, report.already, len(report.failed)) == (3, 0, 1)
    return table


def test_the_table_says_what_the_demo_holds(fitted, tiny_demo):
    table, truth = QTable.read(fitted), known(tiny_demo)
    assert table.colnames == list(fields_of())
    for row in table:
        expected = truth[row["dp_id"]]
        assert row["rv"].value == pytest.approx(expected["rv"], abs=0.5)
        assert row["berv"].value == expected["berv"]
        assert row["teff"].value == pytest.approx(expected["teff"], abs=400)  # the demo's line list is wrong on purpose
        assert row["mh"].value == pytest.approx(expected["mh"], abs=0.4)
        assert row["airmass"] == pytest.approx(row["airmass_header"], abs=0.3)
        assert row["chi2"] < row["chi2_start"]
        assert 0 < row["teff_sigma"].value < row["teff_error"].value  # the model is wrong by more than the noise
        assert row["teff_model_error"].value == MODEL_ERRORS["teff"]
        assert np.isnan(row["berv_sigma"].value)
    assert {f"flag_{name}" for name in FLAGS} < set(table.colnames)
    assert table["broadening"].unit == "km/s"
    assert table.meta["stellar_model"] == "PackagedModel"
    with (fitted.parent / "fits.ecsv.failed.csv").open(newline="") as file:
        assert [row["file"].rsplit("/", 1)[-1] for row in csv.DictReader(file)] == ["z_text.fits"]


def test_every_spectrum_has_a_figure(fitted):
    pictures = {path.stem for path in (fitted.parent / "figures").glob("*.png")}
    assert pictures == {name.replace(":", "_") for name in QTable.read(fitted)["dp_id"]}


@pytest.mark.parametrize("ending", ["fits", "csv", "parquet"])
def test_every_form_of_the_table_holds_the_same(ending, fitted, spectra, fitter):
    """Without a second fit: the rows are kept beside another table."""
    other = fitted.with_name(f"fits.{ending}")
    shutil.copytree(fitted.with_name("fits.ecsv.parts"), other.with_name(f"{other.name}.parts"))
    for _ in range(2):  # over what it wrote itself
        report = fit_files(fitter, [spectra], other)
        assert (report.predicted, report.already) == (0, 3)
    first, second = (
        QTable.read(fitted),
        QTable.read(other) if ending != "csv" else QTable.read(other, format="ascii.csv"),
    )
    for name in NAMES:
        np.testing.assert_allclose(
            *(np.asarray(getattr(table[name], "value", table[name]), float) for table in (first, second)), rtol=1e-12
        )


def test_a_table_of_predictions_is_not_replaced(tmp_path):
    QTable({"teff": [5000.0]}).write(tmp_path / "t.ecsv", format="ascii.ecsv")
    with pytest.raises(OutputError):
        check_outputs(tmp_path / "t.ecsv", None)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/mine.png").write_text("a figure of a user")
    with pytest.raises(OutputError):
        check_outputs(tmp_path / "t2.ecsv", tmp_path / "figures")


def test_interrupted_it_goes_on_where_it_was(spectra, fitter, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1)
    write_part, written = files.write_part, []

    def until_the_second(parts, columns):
        if written:
            raise Interrupted("stopped by a test. ")
        written.append(columns["identity"])
        write_part(parts, columns)

    monkeypatch.setattr(files, "write_part", until_the_second)
    with pytest.raises(Interrupted) as stopped:
        fit_files(fitter, [spectra], tmp_path / "t.csv")
    assert stopped.value.progress == "1 of 4 spectra are done"
    assert not (tmp_path / "t.csv").exists()
    monkeypatch.setattr(files, "write_part", write_part)
    report = fit_files(fitter, [spectra], tmp_path / "t.csv")
    assert (report.predicted, report.already) == (2, 1)
    assert len(QTable.read(tmp_path / "t.csv", format="ascii.csv")) == 3


def test_errors_of_the_file_are_the_noise_where_they_are_finite(spectra, tmp_path):
    from astropy.io import fits

    from harps_dist.fitting.fitter import GRID
    from harps_dist.inference.sources import find_items, read_item
    from harps_dist.spectra.noise import photon_sigma

    path = sorted(spectra.glob("ADP*.fits"))[0]
    with fits.open(path) as hdus:
        wave, flux = (np.ravel(hdus[1].data[name]).astype(float) for name in ("WAVE", "FLUX"))
        hdus[1].data["ERR"] = np.where(wave < 6150, 0.02 * np.median(flux), np.nan)
        hdus.writeto(tmp_path / path.name, checksum=True)
    (item,), _ = find_items([tmp_path])
    found = read_item(item, GRID, errors=True)
    stated = GRID.wave_aa < 6149
    level = np.median(flux[(wave > 5989.995) & (wave < GRID.wave_aa[-1] + 0.005)])
    np.testing.assert_allclose(found.sigma[stated], 0.02 * np.median(flux) / level, rtol=0.01)
    own = GRID.wave_aa > 6151
    np.testing.assert_allclose(found.sigma[own], photon_sigma(found.flux)[own], rtol=1e-5)
    assert read_item(item, GRID).sigma is None


def test_other_settings_are_other_fits(fitter):
    from harps_dist.fitting.files import parts_key
    from harps_dist.fitting.fitter import Held, Settings

    keys = {
        parts_key(fitter, None),
        parts_key(Fitter(held=Held({"vmic": 1.0})), None),
        parts_key(Fitter(held=Held(berv=False)), None),
        parts_key(Fitter(settings=Settings(continuum=8)), None),
    }
    assert len(keys) == 4


def test_an_export_says_where_to_begin(tiny_exports, spectra, fitted, tmp_path):
    """On the export's grid, of which the model fills all."""
    from harps_dist.fitting.fitter import fitting_grid
    from harps_dist.inference.model import load

    network = load(next(path for path in tiny_exports.iterdir() if "cnn" in path.name and "dec" not in path.name))
    assert network.grid.name == "tiny"
    one = sorted(spectra.glob("*.fits"))[:1]
    report = fit_files(Fitter(fitting_grid(network.grid)), one, tmp_path / "t.ecsv", network)
    assert report.predicted == 1
    table = QTable.read(tmp_path / "t.ecsv")
    assert table["start"][0] == network.description.id
    assert table.meta["grid"] == "tiny"
    assert table["rv"][0].value == pytest.approx(QTable.read(fitted)["rv"][0].value, abs=1.0)


def test_genuine_dwarfs_are_read_and_others_flagged(genuine_data, fitter, tmp_path):
    report = fit_files(fitter, [genuine_data / "harps"], tmp_path / "t.ecsv")
    assert not report.failed
    table = QTable.read(tmp_path / "t.ecsv")
    star = np.char.replace(np.char.replace(np.asarray(table["object"], str), " ", ""), "-", "")
    alpha, transiting = (table[np.char.startswith(star, name)] for name in ("HD128621", "HD189733"))
    assert (len(alpha), len(transiting)) == (8, 4)
    for of_star, teff, logg, mh, rv in ((alpha, 5207, 4.53, 0.24, -23.0), (transiting, 5074, 4.53, 0.02, -2.3)):
        assert abs(of_star["teff"].value.mean() - teff) < 180
        assert abs(of_star["logg"].value.mean() - logg) < 0.3
        assert abs(of_star["mh"].value.mean() - mh) < 0.2
        assert abs(of_star["rv"].value.mean() - rv) < 0.6
        assert np.abs(of_star["airmass"] / of_star["airmass_header"] - 1).max() < 0.15
    assert alpha["teff"].value.std() < 12
    assert alpha["logg"].value.std() < 0.02
    ordered = alpha[np.argsort(alpha["mjd"].value)]
    days, velocity = ordered["mjd"].value, ordered["rv"].value
    about = velocity - np.polyval(np.polyfit(days - days[0], velocity, 1), days - days[0])
    assert about.std() < 0.015  # km/s
    others = table[np.isin(star, ["IC4651No9122", "Gl273", "Gl581"])]
    assert len(others) == 3
    assert all(others["flags"] != "")
    assert np.isnan(others["teff"].value).all()


def test_corrections_of_several_names_and_what_is_no_spectrum_are_told_of(spectra, tmp_path, fitter):
    path = tmp_path / "lines.npz"
    report = learn_from_files([spectra], {"teff": 5500.0, "logg": 4.4, "mh": 0.0, "vmic": 1.0}, path)
    assert len(report.objects) == 3
    assert [refusal.source.rsplit("/", 1)[-1] for refusal in report.failed] == ["z_text.fits"]
    first, names, refused = report.lines()
    assert first.startswith(f"lines of {report.objects[0]} from 3 spectra, microturbulence 1.00 km/s")
    assert "all were taken for one" in names
    assert "z_text.fits" in refused
    corrected = Fitter(model=with_lines(None, path))
    assert files.parts_key(corrected, None) != files.parts_key(fitter, None)
    fit_files(corrected, [spectra], tmp_path / "t.fits")
    assert f"{report.learned.corrections.id}: {report.objects[0]}" in QTable.read(tmp_path / "t.fits").meta["LINES"]
    with pytest.raises(ConfigError, match="none of 1 spectra can be used"):
        learn_from_files([spectra / "z_text.fits"], {"teff": 5500.0, "logg": 4.4, "mh": 0.0}, path)
