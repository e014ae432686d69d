"""A folder of FITS in, a table out: every row once, whatever is killed, hostile or damaged."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

import harps_dist
from harps_dist.data.reader import Release
from harps_dist.errors import HarpsDistError
from harps_dist.runs.run import Run
from tests.commands import ROOT, TINY, command, environment, kill_when, run


@pytest.fixture(scope="module")
def exported(tiny_release, tmp_path_factory) -> Path:
    """Folder of `run`, an autoencoder of a few steps, and `model`, its export."""
    folder = tmp_path_factory.mktemp("exported")
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 8, *TINY)
    run(command("launch/train.py", *arguments), folder)
    run(command("launch/export.py", "run", "model", "--checkpoint", "newest"), folder)
    return folder


@pytest.fixture
def spectra(tiny_demo, tmp_path) -> Path:
    """Six good files."""
    folder = tmp_path / "spectra"
    folder.mkdir()
    for path in sorted((tiny_demo / "files/spectra").glob("*.fits"))[:6]:
        shutil.copy2(path, folder)
    return folder


def predict(exported: Path, *arguments: object, ranks: int = 1) -> list[str]:
    return command("launch/predict.py", exported / "model", *arguments, ranks=ranks)


def failures(table: Path) -> dict[str, str]:
    with table.with_name(f"{table.name}.failed.csv").open(newline="") as file:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}


def test_an_export_predicts_what_the_run_predicts(exported, tiny_release):
    release = Release(tiny_release)
    flux = np.stack([release.array(int(row)) for row in release.index.rows("real")[:5]])
    opened = Run(exported / "run")
    model = opened.model(on=release.manifest)
    with torch.no_grad():
        nodes = model.encode(torch.from_numpy(flux)).mean
    opened = harps_dist.load(exported / "model")
    found = opened.predict_flux(flux)
    np.testing.assert_allclose(found.labels, model.physical(nodes[:, :7]).numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.nodes, nodes.numpy(), rtol=1e-5, atol=1e-6)
    card = (exported / "model/README.md").read_text()
    assert "harps_dist.load" in card
    assert json.loads((exported / "model/config.json").read_text())


def test_loading_takes_torch_and_numpy_alone(exported):
    code = (
        "import sys\n"
        "class Deny:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'pydantic','safetensors','astropy','scipy','pyarrow','yaml','rich','tyro',\n"
        "            'zarr','numcodecs','google_crc32c','webdataset','matplotlib','wandb','deepspeed','pickle5'}:\n"
        "            raise ImportError(name + ' is denied')\n"
        "sys.meta_path.insert(0, Deny())\n"
        "import harps_dist, numpy as np\n"
        f"model = harps_dist.load({str(exported / 'model')!r})\n"
        "found = model.predict_flux(np.ones((2, model.grid.length), np.float32))\n"
        "print(found.labels.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 7)", done.stderr


@pytest.mark.parametrize("damage", ["flip", "cut", "pickle", "config"])
def test_a_tampered_export_is_refused_and_nothing_is_executed(exported, tmp_path, damage):
    model, trap = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(exported / "model", model)
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "pickle":

        class Trap:
            def __reduce__(self):
                return (os.system, (f"touch {trap}",))

        torch.save(Trap(), weights)
    else:
        config = model / "config.json"
        config.write_text(config.read_text().replace('"teff"', '"teff_"', 1))
    with pytest.raises(HarpsDistError, match=r"(sha256|damaged|label|not)"):
        harps_dist.load(model)
    assert not trap.exists()


def test_the_command_writes_a_table_with_latents_on_request(exported, spectra, tmp_path):
    table = tmp_path / "labels.ecsv"
    assert "6 spectra predicted" in run(predict(exported, spectra, "-o", table, "--latents"), tmp_path)
    found = Table.read(table)
    assert [str(value) for value in found["dp_id"]] == sorted(path.stem for path in spectra.iterdir())
    assert str(found["teff"].unit) == "K"
    assert found["latent"].shape[0] == 6


def test_hostile_files_end_in_a_list_and_the_rest_goes_on(exported, spectra, tmp_path):
    good = sorted(spectra.iterdir())
    (spectra / "empty.fits").touch()
    (spectra / "folder.fits").mkdir()
    (spectra / "text.fits").write_text("no FITS")
    (spectra / "cut.fits").write_bytes(good[0].read_bytes()[:30_000])
    with gzip.open(spectra / "bomb.fits.gz", "wb", compresslevel=9) as file:
        file.write(b"SIMPLE  =                    T".ljust(80))
        for _ in range(300):
            file.write(b"\0" * 2**20)
    (spectra / "loop.fits").symlink_to("loop.fits")
    (spectra / "up").symlink_to(spectra, target_is_directory=True)
    with fits.open(good[1]) as hdus:
        hdus[0].header["ARCFILE"] = "ADP.2020-01-01T00:00:00.000.fits"
        hdus[0].header["MJD-OBS"] += 1.0  # an exposure of its own
        hdus.writeto(spectra / "unicode.fits")
    raw = (spectra / "unicode.fits").read_bytes()
    place = raw.index(b"OBJECT  = '") + 11
    (spectra / "unicode.fits").write_bytes(raw[:place] + "α Cën".encode()[:6] + raw[place + 6 :])
    table = tmp_path / "labels.csv"
    said = run(predict(exported, spectra, "-o", table), tmp_path, expect=1)
    assert "failed.csv says why" in said
    reasons = failures(table)
    assert {"empty.fits", "folder.fits", "text.fits", "cut.fits", "bomb.fits.gz", "loop.fits"} <= set(reasons)
    assert reasons["bomb.fits.gz"] in ("too_large", "truncated")
    rows = Table.read(table, format="ascii.csv")
    assert {path.stem for path in good} <= {str(value) for value in rows["dp_id"]}
    assert len(rows) + len(reasons) == 6 + 7


def test_killed_and_run_again_no_row_is_lost_or_doubled(exported, tiny_demo, tmp_path):
    """Killed once before any part, once after the first; two ranks go on. New files are predicted alone."""
    files = sorted((tiny_demo / "files/spectra").glob("*.fits"))
    folder, whole, table = tmp_path / "in", tmp_path / "whole.csv", tmp_path / "t.csv"
    folder.mkdir()
    for path in files[:-1]:
        shutil.copy2(path, folder)
    run(predict(exported, folder, "-o", whole), tmp_path)
    kill_when(predict(exported, folder, "-o", table), tmp_path, lambda: (tmp_path / "t.csv.parts").exists())
    kill_when(predict(exported, folder, "-o", table), tmp_path, lambda: bool(list(tmp_path.glob("t.csv.parts/*/*"))))
    run(predict(exported, folder, "-o", table, ranks=2), tmp_path)
    assert table.read_bytes() == whole.read_bytes()
    shutil.copy2(files[-1], folder)
    said = run(predict(exported, folder, "-o", table), tmp_path)
    assert f"1 spectra predicted, {len(files) - 1} before" in said
    before = table.read_bytes()
    assert f"0 spectra predicted, {len(files)} before" in run(predict(exported, folder, "-o", table), tmp_path)
    assert table.read_bytes() == before


def test_an_archive_and_a_release_are_inputs_too(exported, tiny_demo, tmp_path):
    labels = {}
    for name in ("files/spectra", "archive.zarr", "release"):
        table = tmp_path / f"{Path(name).stem}.csv"
        run(predict(exported, tiny_demo / name, "-o", table), tmp_path)
        rows = Table.read(table, format="ascii.csv")
        labels[name] = {str(row["dp_id"]): float(row["teff"]) for row in rows}
    files, archive, release = labels.values()
    assert files.keys() == archive.keys()
    assert release.keys() <= files.keys()
    for key, teff in files.items():
        assert archive[key] == pytest.approx(teff, abs=0.5)
    for key, teff in release.items():
        assert teff == pytest.approx(files[key], abs=10)  # quantised


def test_from_python_a_spectrum_gives_a_row(exported, spectra):
    from specutils import Spectrum

    path = sorted(spectra.iterdir())[0]
    model = harps_dist.load(exported / "model")
    spectrum = Spectrum.read(path)
    table = model.predict(spectrum)
    again = model.predict((spectrum.spectral_axis.to_value("AA"), spectrum.flux.value))
    assert table["teff"].unit == "K"
    assert float(table["teff"][0].value) == pytest.approx(float(again["teff"][0].value))


def test_speed_is_measured_beside_the_network_alone(exported, spectra, tmp_path):
    words = ("predict", exported / "model", spectra, "--json", tmp_path / "speed.json")
    assert "files a second and core" in run(command("launch/benchmark.py", *words), tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["files"] == 6
    assert min(found["network_ms"], found["predict_ms"], found["read_ms"]) > 0  # how long is the machine's affair
    assert found["files_per_s"] == pytest.approx(1e3 / (found["read_ms"] + found["predict_ms"]))


def test_wrong_calls_say_what_to_do(exported, tmp_path):
    for words, message in (
        (("nowhere", "-o", "t.csv"), "there is nothing at nowhere"),
        ((ROOT / "tests", "-o", "t.txt"), ".parquet"),
    ):
        assert message in run(predict(exported, *words), tmp_path, expect=1)
    assert "neither a run nor an export" in run(command("launch/predict.py", tmp_path, ".", "-o", "t.csv"), tmp_path, 1)
