"""Training of a model with physics: any number of ranks, gone on with to the bit, under any strategy; and its use."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from harps_dist.formats.sed import MODEL_ERRORS
from tests.commands import TINY, command, run
from tests.distributed.test_strategies import EXACT, last_weights, losses

SETTINGS = ("--training.warmup-steps", 0, "--training.batch-size", 8, "--model.width", 0.125, "--log.every", 1)


def train(release, folder, out, *more, recipe="demo-ae-phys", ranks=1, steps=6):
    cnn = folder / "cnn"
    if not cnn.exists():
        arguments = ("demo-cnn-mix", "--data.release", release, "--out", "cnn", "--training.steps", 2, *TINY)
        run(command("launch/train.py", *arguments), folder)
    arguments = (
        recipe, "--data.release", release, "--out", out, "--start-from", "cnn", "--training.steps", steps, *SETTINGS,
        *more,
    )  # fmt: skip
    run(command("launch/train.py", *arguments, ranks=ranks), folder)
    return folder / out


@pytest.fixture(scope="module")
def trained(tiny_release, tmp_path_factory):
    return train(tiny_release, tmp_path_factory.mktemp("phys"), "run", steps=12)


def test_two_ranks_learn_what_one_learns(tiny_release, tmp_path):
    one, two = (
        train(tiny_release, tmp_path, f"{ranks}", *EXACT, "--training.learning-rate", 1e-4, ranks=ranks)
        for ranks in (1, 2)
    )
    assert {"loss_label", "loss_reconstruction", "loss_unknown"} <= set(
        json.loads((one / "log.jsonl").open().readline())
    )
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-8)


def test_a_stopped_training_ends_as_if_nothing_had_been(tiny_release, tmp_path):
    whole = train(tiny_release, tmp_path, "whole", recipe="demo-infovae-phys")
    arguments = (
        "demo-infovae-phys", "--data.release", tiny_release, "--out", "stopped", "--start-from", "cnn",
        "--training.steps", 6, *SETTINGS,
    )  # fmt: skip
    run(command("tests/distributed/worker_stopping.py", 3, *arguments), tmp_path, expect=75)
    stopped = train(tiny_release, tmp_path, "stopped", recipe="demo-infovae-phys")
    expected, found = last_weights(whole), last_weights(stopped)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_deepspeed_shares_it_out(tiny_release, tmp_path):
    out = train(tiny_release, tmp_path, "zero3", "--strategy", "deepspeed", "--zero", 3, ranks=2, steps=3)
    plain = train(tiny_release, tmp_path, "ddp", ranks=2, steps=3)
    np.testing.assert_allclose(losses(out)[0], losses(plain)[0], rtol=1e-4)
    assert last_weights(out).keys() == last_weights(plain).keys()
    basis = "network.decoder.emulator.basis"
    np.testing.assert_array_equal(last_weights(out)[basis], last_weights(plain)[basis])


def test_velocities_are_refined_where_it_is_asked_for(trained, tiny_demo, tmp_path):
    """Evaluation, predictions and simulations of the run, as users ask for them."""
    run(command("launch/evaluate.py", trained, "--refine", "velocities", "--out", "refined"), tmp_path)
    run(command("launch/evaluate.py", trained, "--out", "plain"), tmp_path)
    plain, refined = (
        pq.read_table(tmp_path / name / "test-simulated/predictions.parquet") for name in ("plain", "refined")
    )
    for label, changes in (("rv", True), ("berv", True), ("teff", False), ("airmass", False)):
        same = np.allclose(plain[label].to_numpy(), refined[label].to_numpy(), rtol=1e-6)
        assert same != changes, label
    errors = [np.abs(one["rv"].to_numpy() - one["rv_true"].to_numpy()).mean() for one in (plain, refined)]
    assert errors[1] < errors[0]
    report = (tmp_path / "refined/test-simulated/report.md").read_text()
    assert "refined by Gauss-Newton steps" in report
    assert "MAE'-true" in report
    assert "SED error" in report
    assert "Gauss-Newton" not in (tmp_path / "plain/test-simulated/report.md").read_text()
    for name in ("parts.png", "parts.pdf", "parts.parquet"):
        assert (tmp_path / "plain/test-real" / name).stat().st_size > 5_000

    files = tiny_demo / "files/spectra"
    for what in ("nothing", "velocities", "labels"):
        arguments = (trained, files, "-o", f"{what}.ecsv", "--checkpoint", "newest", "--refine", what)
        run(command("launch/predict.py", *arguments), tmp_path)
    plain, refined, everything = (Table.read(tmp_path / f"{name}.ecsv") for name in ("nothing", "velocities", "labels"))
    np.testing.assert_array_equal(plain["teff"], refined["teff"])
    assert (np.asarray(plain["rv"]) != np.asarray(refined["rv"])).all()
    assert refined.meta["refined"] == "rv, berv"
    assert everything.meta["refined"].startswith("rv, berv, teff")
    assert (np.asarray(everything["teff"]) != np.asarray(plain["teff"])).all()
    assert (np.asarray(everything["teff_sigma"]) > MODEL_ERRORS["teff"]).all()
    for column in ("rv", "rv_sigma", "anomaly"):
        np.testing.assert_array_equal(refined[column], everything[column])
    np.testing.assert_array_equal(plain["anomaly"], everything["anomaly"])  # a better fit makes no star usual
    half = (np.asarray(refined["rv_hi68"]) - np.asarray(refined["rv_lo68"])) / 2
    np.testing.assert_allclose(half, np.asarray(refined["rv_sigma"]) * 0.994458, rtol=1e-3)

    run(command("launch/simulate.py", trained, "--rv", 30, "--part", "star", "-o", "star.csv"), tmp_path)
    run(command("launch/simulate.py", trained, "--rv", -30, "--part", "star", "-o", "still.csv"), tmp_path)
    stars = [
        np.genfromtxt(tmp_path / name, delimiter=",", names=True, comments="#")["flux"]
        for name in ("star.csv", "still.csv")
    ]
    np.testing.assert_array_equal(*stars)
    printed = run(command("launch/simulate.py", "cnn", "--part", "star"), trained.parent, expect=None)
    assert "draws none" in printed
    printed = run(command("launch/simulate.py", trained, "--rv", 300, "--extrapolate"), tmp_path, expect=None)
    assert "rv = 300 km/s lies outside -200..200 km/s" in printed
    printed = run(command("launch/simulate.py", trained, "--teff", 9000, "--extrapolate", "-o", "hot.csv"), tmp_path)
    assert "which the model spectra hold that are drawn from" in printed
