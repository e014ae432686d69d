"""launch/simulate.py with trained models: as a run and as an export, killed, on two ranks, asked for what cannot be."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits

from harps_dist.data.reader import Release
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import SpectrumRecord
from harps_dist.inference.export import export_run
from harps_dist.inference.simulators import open_simulator
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.run import read_run
from harps_dist.spectra.labels import NAMES
from harps_dist.training.loop import train_run
from tests.commands import command, kill_when, run
from tests.integration.test_runs import at_tiny_scale

SIMULATE = "launch/simulate.py"
COMMAS = "object,teff,rv,snr\n"


@pytest.fixture(scope="module")
def runs(tiny_release, tmp_path_factory):
    """An autoencoder, a variational one, a decoder alone and an encoder, of three steps each."""
    folder, release = tmp_path_factory.mktemp("runs"), Release(tiny_release)
    for name in ("demo-ae-mix", "demo-infovae-mix", "demo-resnet-etc", "demo-cnn-mix"):
        train_run(at_tiny_scale(find_recipe(name)), name, release, folder / name, World.alone())
    return folder


def write_labels(path, rows: int) -> None:
    lines = [f"α {row},{4500 + row % 2000},{row % 60 - 30},{50 + row % 7}\n" for row in range(rows)]
    path.write_text(COMMAS + "".join(lines), encoding="utf-8")


def test_a_run_notes_the_range_of_its_labels(runs, tiny_release):
    index, saved = Release(tiny_release).index, read_run(runs / "demo-ae-mix")
    rows = np.concatenate([index.rows(kind, "train") for kind in ("real", "simulated")])
    teff = index.labels[rows, NAMES.index("teff")]
    assert saved.label_ranges["teff"] == (np.nanmin(teff), np.nanmax(teff))
    reach = saved.recipe.data.augment.rv_kms
    assert saved.label_ranges["rv"][0] <= -reach
    assert saved.label_ranges["rv"][1] >= reach
    assert set(saved.label_ranges) == set(saved.recipe.model.labels)


@pytest.mark.parametrize("name", ["demo-ae-mix", "demo-infovae-mix", "demo-resnet-etc"])
def test_spectra_are_what_the_decoder_makes_of_the_labels(name, runs, tiny_release, tmp_path):
    """The decoder fed by hand; and an export draws the same to the bit as the run that it is of."""
    simulator = open_simulator(runs / name)
    found = simulator.simulate({"teff": 5800.0, "rv": -12.0})
    labels = torch.tensor([[dict(simulator.mean, teff=5800.0, rv=-12.0)[label] for label in simulator.labels]])
    normalised = (labels - simulator.model.label_mean) / simulator.model.label_std
    nodes = torch.cat([normalised, torch.zeros(1, simulator.unknown)], dim=1).float()
    with torch.no_grad():
        np.testing.assert_allclose(found.flux, simulator.model.decode(nodes).numpy(), atol=1e-6)
    assert simulator.unknown == {"demo-ae-mix": 2, "demo-infovae-mix": 25, "demo-resnet-etc": 0}[name]
    export_run(runs / name, tmp_path / "export", Release(tiny_release), spectra=16)
    exported = open_simulator(tmp_path / "export")
    assert (exported.id, exported.name) == (simulator.id, name)
    assert exported.ranges == simulator.ranges
    again = exported.simulate({"teff": 5800.0, "rv": -12.0})
    np.testing.assert_array_equal(again.flux, found.flux)


def test_the_command_writes_a_spectrum_and_says_what_it_assumed(runs, tmp_path):
    arguments = ("--teff", 5800, "--rv", -12, "--snr", 60, "--u", "prior", "--seed", 4, "--name", "α", "-o", "a.fits")
    printed = run(command(SIMULATE, runs / "demo-infovae-mix", *arguments), tmp_path)
    assert "the training mean is taken: berv" in printed
    record = read_spectrum(tmp_path / "a.fits")
    assert isinstance(record, SpectrumRecord)
    found = open_simulator(runs / "demo-infovae-mix").simulate(
        {"teff": 5800.0, "rv": -12.0}, snr=60, unknown="prior", seed=4
    )
    median = fits.getheader(tmp_path / "a.fits")["SIM MEDIAN"]
    np.testing.assert_allclose(record.flux / median, found.flux[0], rtol=1e-5)
    assert (record.object, record.snr) == ("alpha", 60.0)


def test_killed_on_two_ranks_and_started_again_on_one_no_row_is_lost_or_doubled(runs, tmp_path):
    write_labels(tmp_path / "t.csv", 6000)
    arguments = (runs / "demo-ae-mix", "--labels", "t.csv", "-o")
    parts = tmp_path / "s.parquet.parts"
    code = kill_when(
        command(SIMULATE, *arguments, "s.parquet", ranks=2), tmp_path, lambda: len(list(parts.glob("0*.parquet"))) >= 2
    )
    assert code != 0
    assert not (tmp_path / "s.parquet").exists()
    assert 2 <= len(list(parts.glob("0*.parquet"))) < 6
    printed = run(command(SIMULATE, *arguments, "s.parquet"), tmp_path)
    assert "6000 spectra are in s.parquet" in printed
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["object"].to_pylist() == [f"α {row}" for row in range(6000)]
    simulator = open_simulator(runs / "demo-ae-mix")
    rows = np.array([0, 1023, 1024, 5000, 5999])
    labels = {"teff": 4500.0 + rows % 2000, "rv": rows % 60 - 30.0}
    expected = simulator.simulate(labels, snr=50.0 + rows % 7, seed=rows).flux
    found = np.stack([table["flux"][int(row)].as_py() for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_time_that_is_up_ends_it_to_be_continued(runs, tmp_path):
    write_labels(tmp_path / "t.csv", 3000)
    arguments = (runs / "demo-ae-mix", "--labels", "t.csv", "-o", "s.zarr")
    printed = run(command(SIMULATE, *arguments, "--max-minutes", 1e-6), tmp_path, expect=75)
    assert "s.zarr: 0 of 3000 spectra are there" in printed


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("demo-cnn-mix", (), "demo-cnn-mix is an encoder"),
        ("demo-ae-mix", ("--u", "prior"), "has no prior"),
        ("demo-ae-mix", ("--teff", 90_000), "lies outside"),
        ("nowhere", (), "is not a run"),
        ("demo-ae-mix", ("--labels", "t.csv", "-o", "s.hdf5"), "expected a name that ends in"),
        ("demo-ae-mix", ("--traverse", "u9"), "has no node 'u9'"),
    ],
)
def test_what_cannot_be_ends_in_a_message(name, arguments, message, runs, tmp_path, monkeypatch, capsys):
    """In this process, as `end_with` would print it."""
    from harps_dist.commands import simulate
    from harps_dist.errors import HarpsDistError

    write_labels(tmp_path / "t.csv", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["simulate.py", str(runs / name), *map(str, arguments)])
    with pytest.raises(HarpsDistError, match=message):
        simulate.main()
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_traversal_of_a_run_draws_a_figure_and_a_table(runs, tmp_path, monkeypatch, tiny_demo):
    from harps_dist.commands import simulate

    observed = sorted((tiny_demo / "files/spectra").glob("*.fits"))[0]
    monkeypatch.chdir(tmp_path)
    for arguments in (("--traverse", "rv", "--points", "3"), ("--traverse", "u1", "--spectrum", str(observed))):
        monkeypatch.setattr("sys.argv", ["simulate.py", str(runs / "demo-ae-mix"), *arguments])
        assert simulate.main() == 0
    assert (tmp_path / "traverse-rv.png").stat().st_size > 10_000
    header = (tmp_path / "traverse-rv.csv").read_text().splitlines()[0]
    assert header.count("expected rv=") == 3
    assert (tmp_path / "traverse-u1.csv").exists()
