"""A release, an archive and a model from Python, as harps_dist/README.md shows it."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch

import harps_dist
from harps_dist.errors import ConfigError, SpectrumError
from harps_dist.spectra.labels import NAMES
from tests.commands import ROOT, TINY, command, run

ID = "ADP.2014-09-16T11:04:45.123"


@pytest.fixture(scope="module")
def folder(tiny_demo, tmp_path_factory):
    """What the page names: R1, A.zarr, model, night."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "R1").symlink_to(tiny_demo / "release")
    (folder / "A.zarr").symlink_to(tiny_demo / "archive.zarr")
    arguments = ("demo-ae-mix", "--data.release", tiny_demo / "release", "--out", "run", "--training.steps", 2, *TINY)
    run(command("launch/train.py", *arguments), folder)
    run(command("launch/export.py", "run", "model"), folder)
    (folder / "night").mkdir()
    shutil.copy(sorted((tiny_demo / "files/spectra").glob("ADP*.fits"))[0], folder / "night")
    return folder


def test_the_page_runs(folder, monkeypatch, capsys):
    text = (ROOT / "harps_dist/README.md").read_text()
    (block,) = re.findall(r"## From Python\n.*?```python\n(.*?)```", text, re.DOTALL)
    key = harps_dist.Archive(folder / "A.zarr").keys()[0]
    (file,) = (folder / "night").iterdir()
    block = block.replace(f"night/{ID}.fits", f"night/{file.name}").replace(ID, key)
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(compile(block, "README", "exec"), names)
    assert "torch.Size" in capsys.readouterr().out
    assert len(names["table"]) == 1
    assert names["spectrum"].meta["key"] == key
    assert names["star"].spectral_axis.unit == "Angstrom"
    for name in ("release", "model"):
        assert repr(names[name]).startswith("<")
    assert {"load", "open_release", "Archive"} <= set(dir(harps_dist))


def test_batches_hold_every_sample_once_with_labels_in_their_units(folder):
    release = harps_dist.open_release(folder / "R1")
    seen: dict[str, list] = {}
    for split in ("train", "validation", "test"):
        seen[split] = [key for batch in release.batches(split, 7) for key in batch.keys]
    everything = [key for keys in seen.values() for key in keys]
    assert len(everything) == len(set(everything)) == len(release)
    (whole,) = release.batches("train", 10_000, kind="real")
    index = release.release.index
    teff = dict(zip(index["key"], index.labels[:, NAMES.index("teff")], strict=True))
    np.testing.assert_array_equal(whole.labels["teff"].numpy(), [teff[key] for key in whole.keys])
    assert not whole.simulated.any()
    first, again, other = (next(release.batches("train", 8, epoch=epoch)) for epoch in (0, 0, 1))
    assert first.keys == again.keys != other.keys
    assert torch.equal(first.flux, again.flux)
    with pytest.raises(ConfigError, match="no split 'tests'"):
        next(release.batches("tests"))


def test_a_file_an_array_and_a_spectrum_give_the_same_labels(folder):
    model, (file,) = harps_dist.load(folder / "model"), (folder / "night").iterdir()
    from harps_dist.formats.readers import read_spectrum

    record = read_spectrum(file)
    by_file, by_array = model.predict(file), model.predict(record.wave_aa, record.flux)
    assert by_file["teff"] == by_array["teff"]
    (folder / "no.fits").write_text("none")
    with pytest.raises(SpectrumError, match=r"no\.fits"):
        model.predict(str(folder / "no.fits"))


def test_labels_go_in_in_their_units(folder):
    model = harps_dist.load(folder / "model")
    two = model.simulate(teff=[5000, 5800], rv=20)
    assert two.flux.shape == (2, model.grid.length)
    with pytest.raises(ConfigError, match=r"decodes normalised labels.*simulate"):
        model.decode(np.full((1, model.nodes), 5800.0))
    with pytest.raises(KeyError, match="holds no spectrum 'x'"):
        harps_dist.Archive(folder / "A.zarr")["x"]
