"""The full 327,680-pixel grid: from genuine spectra and full-range ETC output to a training step."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from harps_dist.data.augment import Augment
from harps_dist.data.batches import EvaluationBatches
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.formats.sed import read_sed
from harps_dist.runs.log import read_log
from harps_dist.spectra.grid import HARPS
from preprocessing.catalog import Catalog
from preprocessing.etc import ingest_etc
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import Settings, pack
from preprocessing.simulator.atmosphere import Atmosphere
from preprocessing.simulator.etc_files import EtcSettings, write_etc
from preprocessing.simulator.instrument import observe
from tests.commands import command, run

NODES = ("t5000_g4.25_m-0.4", "t6000_g4.25_m+0.4")


@pytest.fixture(scope="module")
def release(genuine_data, tmp_path_factory):
    """A few genuine spectra and two full-range ETC runs, one of each generation, on the full grid."""
    folder = tmp_path_factory.mktemp("full")
    for name in ("spectra", "sed", "etc"):
        (folder / name).mkdir()
    for path in sorted((genuine_data / "harps").glob("HARPS.2012-0[34]*"))[:3]:
        shutil.copy(path, folder / "spectra")
    telluric = genuine_data / "telluric"
    atmosphere = Atmosphere.from_line_lists(
        telluric / "hitran2020_H2O_espresso_lines.fits", telluric / "hitran2020_O2_espresso_lines.fits", 6860.0, 6960.0
    )
    for node, generation in zip(NODES, ("2023", "2026"), strict=True):
        shutil.copy(genuine_data / "sed_full" / f"{node}.npz", folder / "sed")
        sed = read_sed(folder / "sed" / f"{node}.npz")
        orders = observe(sed.wave_aa, sed.flux, 1.3, 5.0, 7.0, 300.0, atmosphere=atmosphere)
        settings = EtcSettings(f"{node}.npz", 1.3, 5.0, 7.0, 300.0)
        write_etc(folder / "etc" / f"run_{generation}.json", orders, settings, generation)
    archive = folder / "archive.zarr"
    catalog = Catalog.read(genuine_data / "labels.csv")
    assert ingest_spectra(folder / "spectra", archive, HARPS, catalog).added == 3
    report = ingest_etc(folder / "etc", archive, HARPS, folder / "sed")
    assert report.refused == []
    pack(archive, folder / "release", Settings((1.0, 0.0, 0.0)))
    return Release(folder / "release")


def test_simulated_spectra_fill_the_full_grid(release):
    rows = release.index.rows("simulated")
    assert sorted(release.index["object"][rows]) == list(NODES)
    augment = Augment(rv_kms=100, berv_kms=30)
    raw = EvaluationBatches(release, [rows], augment, 0)[0]
    observer = Observer(release.decoding, augment, raw.flux.device)
    flux = observer(raw).flux.numpy()
    assert flux.shape == (2, 327_680)
    assert np.isfinite(flux).all()
    np.testing.assert_allclose(np.median(flux[:, HARPS.valid], axis=1), 1.0, atol=1e-3)
    gap = flux[:, HARPS.instrument.gap[0] - HARPS.start : HARPS.instrument.gap[1] - HARPS.start]
    assert np.abs(np.diff(gap, n=2)).max() < 1e-5  # a straight line across the CCD gap
    oxygen = HARPS.wave_slice(6867.0, 6880.0)  # the head of the O2 B band
    assert flux[:, oxygen].min() < 0.5
    quiet = Observer(release.decoding, augment.model_copy(update={"noise": False}), raw.flux.device)
    assert 0.001 < np.abs(flux - quiet(raw).flux.numpy())[:, HARPS.valid].mean() < 0.05


def test_encoder_and_autoencoder_take_a_step_on_the_full_grid(release, tmp_path):
    narrow = {"cnn-mix": (), "ae-mix": ("--model.decoder-width", 0.125)}
    for recipe, width in narrow.items():
        arguments = (
            recipe, "--data.release", release.location, "--out", recipe, "--parent", "None", "--training.steps", 2,
            "--training.batch-size", 2, "--log.every", 1, "--model.width", 0.25, *width,
        )  # fmt: skip
        run(command("launch/train.py", *arguments), tmp_path)
        lines = read_log(tmp_path / recipe)
        assert [line["step"] for line in lines] == [1, 2]
        assert np.isfinite([line["loss_label"] for line in lines]).all()
