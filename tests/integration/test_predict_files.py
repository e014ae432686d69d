"""A folder of FITS in, a table out: nothing lost, nothing doubled, whatever the files are and whenever it is killed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import QTable

import harps_dist
from harps_dist.errors import ConfigError, Interrupted, OutputError
from harps_dist.files import exclusive
from harps_dist.formats.archive import Archive
from harps_dist.formats.readers import read_spectrum
from harps_dist.inference import predict_files
from harps_dist.inference.predict import parts_key
from harps_dist.ranks.world import World
from tests.integration.conftest import STEPS

CNN, AE, VAE, DECODER, _ = STEPS


@pytest.fixture(scope="module")
def cnn(tiny_exports):
    return harps_dist.load(tiny_exports / CNN)


@pytest.fixture
def folder(tiny_demo, tmp_path) -> Path:
    """A folder with copies of ten good files."""
    made = tmp_path / "spectra"
    made.mkdir()
    for path in sorted((tiny_demo / "files/spectra").rglob("*.fits"))[:10]:
        shutil.copy(path, made)
    return made


def rows(table: Path) -> dict[str, np.ndarray]:
    found = pq.read_table(table)
    return {name: found[name].to_numpy(zero_copy_only=False) for name in found.column_names}


def failures(table: Path) -> dict[str, tuple[str, str]]:
    with table.with_name(f"{table.name}.failed.csv").open(newline="", encoding="utf-8") as file:
        return {Path(row["file"]).name: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("ending", ["fits", "ecsv", "csv", "parquet"])
def test_every_format_holds_the_same_rows_with_units_and_metadata(ending, folder, cnn, tmp_path):
    table = tmp_path / f"labels.{ending}"
    report = predict_files(cnn, [folder], table, latents=True)
    assert (report.predicted, report.already, report.failed) == (10, 0, [])
    if ending == "parquet":
        found, schema = rows(table), pq.read_schema(table)
        unit = {name: schema.field(name).metadata[b"unit"].decode() for name in schema.names}
        metadata, latent = {k.decode(): v.decode() for k, v in schema.metadata.items()}, np.stack(found["latent"])
    elif ending == "csv":
        with table.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        found = {name: np.array([line[name] for line in lines]) for name in lines[0]}
        notes = json.loads((tmp_path / "labels.csv.json").read_text())
        unit = {name: column["unit"] for name, column in notes["columns"].items()}
        metadata, latent = notes["metadata"], np.stack([found[f"latent_{n:02d}"] for n in range(16)], axis=1)
    else:
        read = QTable.read(table, format="fits" if ending == "fits" else "ascii.ecsv")
        read.convert_bytestring_to_unicode()
        found = {name: np.asarray(getattr(read[name], "value", read[name])) for name in read.colnames}
        unit = {name: str(getattr(read[name], "unit", None) or "") for name in read.colnames}
        metadata, latent = {key.lower(): value for key, value in read.meta.items()}, found["latent"]
    assert metadata["model_id"] == cnn.id
    assert metadata["harps_dist"] == harps_dist.__version__
    assert [units.Unit(unit[name]) for name in ("teff", "teff_sigma", "rv_lo68", "ra", "mjd")] == [
        units.K, units.K, units.km / units.s, units.deg, units.d,
    ]  # fmt: skip
    assert latent.shape == (10, min(16, cnn.model.network.encoder.channels))
    paths = sorted(folder.glob("*.fits"))
    records = [read_spectrum(path) for path in paths]
    assert list(found["file"]) == list(map(str, paths))
    assert list(found["dp_id"]) == [record.dp_id for record in records]
    assert list(found["object"]) == [record.object for record in records]
    for name, attribute in (("ra", "ra_deg"), ("mjd", "mjd_obs"), ("snr", "snr"), ("berv_header", "berv_kms")):
        expected = [getattr(record, attribute) for record in records]
        np.testing.assert_allclose(np.asarray(found[name], float), expected, rtol=1e-12, err_msg=name)
    assert list(found["sha256"]) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    exact = [cnn.predict(record.wave_aa, record.flux)["teff"].value[0] for record in records]
    np.testing.assert_allclose(np.asarray(found["teff"], float), exact, rtol=1e-4)
    low, value, high = (np.asarray(found[f"teff{end}"], float) for end in ("_lo68", "", "_hi68"))
    assert ((low <= value) & (value <= high) | np.isnan(low)).all()


def test_run_again_it_predicts_what_is_new_alone(folder, cnn, tiny_demo, tmp_path, monkeypatch):
    table = tmp_path / "labels.parquet"
    predict_files(cnn, [folder], table)
    first = table.read_bytes()
    with monkeypatch.context() as patch:  # nothing is left to be predicted
        patch.setattr(type(cnn), "predict_flux", lambda *_: pytest.fail("predicted again"))
        report = predict_files(cnn, [folder], table)
    assert (report.predicted, report.already) == (0, 10)
    assert table.read_bytes() == first
    more = sorted((tiny_demo / "files/spectra").rglob("*.fits"))[10:12]
    for path in more:
        shutil.copy(path, folder / f"a-{path.name}")  # sorts before all others
    report = predict_files(cnn, [folder], table)
    assert (report.predicted, report.already) == (2, 10)
    assert len(set(rows(table)["dp_id"])) == 12
    shutil.copy(more[0], sorted(folder.glob("ADP*"))[0])  # another content under an old name
    report = predict_files(cnn, [folder], table)
    assert (report.predicted, report.already) == (0, 11)
    assert [refusal.reason for refusal in report.failed] == ["duplicate"]
    assert len(rows(table)["dp_id"]) == 11


def test_a_file_named_twice_has_one_row(folder, cnn, tmp_path):
    first = sorted(folder.glob("*.fits"))[0]
    (tmp_path / "link").symlink_to(folder)
    inputs = [first, folder, folder / "*.fits", tmp_path / "link"]
    report = predict_files(cnn, inputs, tmp_path / "t.parquet")
    assert (report.predicted, report.failed) == (10, [])
    assert len(set(rows(tmp_path / "t.parquet")["dp_id"])) == 10


def test_parts_of_another_model_are_not_taken_for_its_own(folder, cnn, tiny_exports, tmp_path):
    table = tmp_path / "labels.parquet"
    predict_files(cnn, [folder], table)
    other = harps_dist.load(tiny_exports / AE)
    assert predict_files(other, [folder], table).predicted == 10
    assert set(rows(table)["model_id"]) == {other.id}
    assert parts_key(other) != parts_key(cnn)
    again = predict_files(cnn, [folder], table)
    assert (again.predicted, again.already) == (0, 10)
    assert set(rows(table)["model_id"]) == {cnn.id}


def test_parts_in_another_precision_are_not_taken_either(folder, cnn, tiny_exports, tmp_path):
    table = tmp_path / "labels.parquet"
    predict_files(cnn, [folder], table)
    assert predict_files(harps_dist.load(tiny_exports / CNN, precision="bf16"), [folder], table).predicted == 10
    assert pq.read_schema(table).metadata[b"precision"] == b"bf16"
    assert predict_files(harps_dist.load(tiny_exports / CNN, precision="fp32"), [folder], table).already == 10


def test_a_damaged_part_is_made_again(folder, cnn, tmp_path):
    table = tmp_path / "labels.parquet"
    predict_files(cnn, [folder], table)
    first = table.read_bytes()
    (part,) = (tmp_path / "labels.parquet.parts" / parts_key(cnn)).glob("*.parquet")
    part.write_bytes(part.read_bytes()[:1000])
    assert predict_files(cnn, [folder], table).predicted == 10
    assert table.read_bytes() == first


def test_names_that_are_not_ascii_survive_in_every_format(folder, cnn, tmp_path):
    first = sorted(folder.glob("*.fits"))[0]
    content = first.read_bytes()
    place = content.index(b"OBJECT  =")
    name = "Šárka β".encode()
    card = b"OBJECT  = '" + name + b"'"
    first.unlink()
    strange = folder / "Příliš-žluťoučký.fits"
    strange.write_bytes(content[:place] + card.ljust(80) + content[place + 80 :])
    undecodable = os.path.join(os.fsencode(folder), b"\xff\xfe.fits")
    shutil.copy(sorted(folder.glob("ADP*"))[0], undecodable)
    for ending in ("parquet", "csv", "ecsv", "fits"):
        report = predict_files(cnn, [folder], tmp_path / f"t.{ending}")
        assert report.predicted == 10
        assert [refusal.reason for refusal in report.failed] == ["duplicate"]  # the undecodable copy
    found = rows(tmp_path / "t.parquet")
    assert str(strange) in set(found["file"])
    assert "\\xff\\xfe.fits" in (tmp_path / "t.parquet.failed.csv").read_text(encoding="utf-8")
    table = QTable.read(tmp_path / "t.fits")
    table.convert_bytestring_to_unicode()
    assert any("P\\u0159\\xedli\\u0161" in str(file) for file in table["file"])


def test_asked_to_stop_it_says_how_far_it_is_and_goes_on(folder, cnn, tmp_path, monkeypatch):
    monkeypatch.setattr("harps_dist.inference.blocks.BLOCK", 4)
    world, table = World(0, 1, cnn.device), tmp_path / "t.parquet"

    def stop(what: str, done: int, total: int) -> None:
        if done == 8:
            world.stop._received = "SIGTERM"

    with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
        predict_files(cnn, [folder], table, world=world, progress=stop)
    assert caught.value.progress == "8 of 10 spectra are done"
    report = predict_files(cnn, [folder], table)
    assert (report.predicted, report.already) == (2, 8)
    assert len(set(rows(table)["dp_id"])) == 10


def test_withdrawn_and_superseded_spectra_have_no_row(tiny_demo, cnn, tmp_path):
    from preprocessing.withdraw import withdraw_spectra

    archive = Path(shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "archive.zarr"))
    gone = str(Archive(archive).column("real", "key")[0])
    withdraw_spectra(archive, [gone], "lamp left on")
    predict_files(cnn, [archive], tmp_path / "t.parquet")
    found = list(rows(tmp_path / "t.parquet")["dp_id"])
    assert gone not in found
    assert len(found) == Archive(archive).count("real") - 1


def test_flags_say_what_is_wrong_with_a_spectrum(folder, cnn, tmp_path):
    """Files that are damaged each in one way; the others keep the flags they had."""
    paths, step = sorted(folder.glob("*.fits")), slice(None)
    predict_files(cnn, [folder], tmp_path / "before.parquet")
    before = rows(tmp_path / "before.parquet")

    def change(path: Path, function) -> None:
        with fits.open(path, mode="update") as hdus:
            wave, flux = hdus[1].data["WAVE"][0], hdus[1].data["FLUX"][0]
            function(wave, flux)
            hdus[1].data["FLUX"][0][step] = flux
            hdus[1].add_datasum()

    def gap(wave, flux):
        flux[(wave > 6110) & (wave < 6113)] = np.nan

    def noise(wave, flux):
        flux += np.random.default_rng(0).normal(0, 0.5 * np.nanmedian(flux), len(flux)).astype(flux.dtype)

    def diverged(wave, flux):
        flux[(wave > 6110) & (wave < 6111)] = 1e20

    for path, function in zip(paths, (gap, noise, diverged), strict=False):
        change(path, function)
    predict_files(cnn, [folder], tmp_path / "after.parquet")
    after = rows(tmp_path / "after.parquet")
    assert list(after["flag_coverage"]) == [True, False, True] + [False] * 7  # a diverged pixel counts as missing
    assert after["flag_low_snr"][1]
    assert not before["flag_low_snr"][1]
    assert list(after["flag_broken"]) == [False, False, True] + [False] * 7
    assert after["flags"][2] == "coverage,broken"
    assert np.isnan(after["teff"][2])
    assert list(before["flags"][3:]) == list(after["flags"][3:])
    assert after["snr_measured"][1] < 3 < before["snr_measured"][1]


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["nowhere"], "t.csv", "there is nothing at nowhere"),
        (["*.none"], "t.csv", "no file or folder matches"),
        (["empty"], "t.csv", "holds no spectrum"),
        (["spectra"], "t.xlsx", "says no format"),
    ],
)
def test_wrong_commands_say_what_is_wrong(inputs, output, message, folder, cnn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        predict_files(cnn, inputs, output)


def test_a_decoder_and_a_second_job_are_told_at_once(folder, cnn, tiny_exports, tmp_path):
    with pytest.raises(ConfigError, match="reads none"):
        predict_files(harps_dist.load(tiny_exports / DECODER), [folder], tmp_path / "t.csv")
    with exclusive(tmp_path / ".t.csv.lock") as free:
        assert free
        with pytest.raises(OutputError, match=r"another process is writing .*t\.csv"):
            predict_files(cnn, [folder], tmp_path / "t.csv")


def test_genuine_files_have_rows_with_their_true_headers(genuine_data, cnn, tmp_path):
    """A model of moments, trained on simulated spectra: nothing is said of its labels, all of the rest."""
    table = tmp_path / "genuine.fits"
    report = predict_files(cnn, [genuine_data / "harps"], table)
    assert (report.predicted, report.failed) == (15, [])
    found = QTable.read(table)
    found.convert_bytestring_to_unicode()
    by_file = {Path(str(row["file"])).name: row for row in found}
    row = by_file["ADP.2014-09-16T11:04:45.123.fits.gz"]
    assert row["dp_id"] == "ADP.2014-09-16T11:04:45.123"
    assert row["object"] == "IC4651No9122"
    assert abs(row["mjd"].to_value(units.d) - 53921.1615749) < 1e-6
    assert abs(row["ra"].to_value(units.deg) - 261.2087) < 1e-3
    assert (
        row["sha256"] == hashlib.sha256((genuine_data / "harps" / Path(str(row["file"])).name).read_bytes()).hexdigest()
    )
    assert sum(found["object"] == "HD128621") == 8 or sum(["128621" in str(name) for name in found["object"]]) == 8
    broken = found["flag_broken"]
    assert np.isfinite(found["teff"][~broken]).all()
    ratio = np.asarray(found["snr_measured"] / found["snr"])[~broken]
    assert ((ratio > 0.5) & (ratio < 2)).all()
