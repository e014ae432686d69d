"""From a release to a report: train briefly, evaluate, whatever the number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from harps_dist.training.log import read_log
from tests.commands import TINY, command, environment, run

MEASURES = {"MAE'", "MAE' (paper-comparable)", "RVIS"}


@pytest.fixture(scope="module")
def trained(tiny_release, tmp_path_factory) -> Path:
    """An autoencoder of a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "ae", "--training.steps", 8, *TINY)
    run(command("launch/train.py", *arguments), folder)
    return folder / "ae"


def test_a_run_says_what_it_was(trained, tiny_release):
    saved = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert saved["name"] == "demo-ae-mix"
    assert saved["recipe"]["training"]["batch_size"] == 12
    assert saved["release_digest"] == json.loads((tiny_release / "manifest.json").read_text())["digest"]
    assert saved["versions"]["torch"]
    lines = read_log(trained)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["samples"] == 96
    assert {"loss_label", "loss_reconstruction", "loss_unknown", "spectra_per_s", "data_wait"} <= lines[0].keys()
    assert lines[-1]["validation_reconstruction"] > 0


def test_evaluation_is_the_same_on_any_number_of_ranks(trained, tmp_path):
    for ranks in (1, 2):
        arguments = (trained, "--split", "all", "--out", tmp_path / f"{ranks}")
        run(command("launch/evaluate.py", *arguments, ranks=ranks), tmp_path)
    for kind, count in (("real", None), ("simulated", 40)):
        one, two = (pq.read_table(tmp_path / ranks / f"all-{kind}/predictions.parquet") for ranks in "12")
        assert one["key"].to_pylist() == two["key"].to_pylist()
        assert len(set(one["key"].to_pylist())) == len(one)
        assert count in (None, len(one))
        for name in ("teff", "rv", "MAE'", "RVIS"):
            np.testing.assert_allclose(one[name].to_numpy(), two[name].to_numpy(), rtol=1e-4, err_msg=name)
        folder = tmp_path / "1" / f"all-{kind}"
        scores = json.loads((folder / "scores.json").read_text())
        measured = {measure["name"] for measure in scores["measures"]}
        assert measured == (MEASURES if kind == "real" else MEASURES | {"RVIS-true", "RV sensitivity"})
        report = (folder / "report.md").read_text()
        assert "simulated" in report.splitlines()[2]  # the demo's stars are never passed off as observed
        for figure in ("residuals.png", "spectrum.png", "rv_intervention.png"):
            assert (folder / figure).stat().st_size > 10_000
            assert figure in report


def test_a_decoder_is_evaluated_on_simulated_spectra(tiny_release, tmp_path):
    arguments = (
        "demo-resnet-etc",
        "--data.release",
        tiny_release,
        "--out",
        "r",
        "--training.steps",
        2,
        *TINY,
    )
    run(command("launch/train.py", *arguments), tmp_path)
    printed = run(command("launch/evaluate.py", "r"), tmp_path)
    assert "MAE'" in printed
    assert not (tmp_path / "r/evaluation/test-real").exists()


def test_a_run_starts_from_the_weights_of_another(trained, tiny_release, tmp_path):
    """An encoder goes on inside an autoencoder; the learning rate is too small to change a weight."""
    encoder = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "cnn", "--training.steps", 3, *TINY)
    run(command("launch/train.py", *encoder), tmp_path)
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "ae", "--training.steps", 1, *TINY)
    frozen = ("--training.learning-rate", 1e-30, "--start-from", "cnn")
    assert "starting from" in run(command("launch/train.py", *arguments, *frozen), tmp_path)
    parent = load_file(tmp_path / "cnn/checkpoints/step-00000003/model.safetensors")
    child = load_file(tmp_path / "ae/checkpoints/step-00000001/model.safetensors")
    for name, value in parent.items():
        if name.startswith("network.encoder."):
            np.testing.assert_array_equal(child[name], value, err_msg=name)
    assert yaml.safe_load((tmp_path / "ae/recipe.yaml").read_text())["start_from"] == "cnn"
    printed = run(command("launch/train.py", *arguments, "--start-from", "nowhere", "--out", "x"), tmp_path, expect=1)
    assert "Train it first" in printed


def test_weights_and_biases_offline_and_bf16(tiny_release, tmp_path):
    arguments = (
        "demo-cnn-mix", "--data.release", tiny_release, "--out", "w", "--training.steps", 3, "--log.wandb", "offline",
        "--training.precision", "bf16", *TINY,
    )  # fmt: skip
    run(command("launch/train.py", *arguments), tmp_path)
    assert list((tmp_path / "w/wandb").glob("offline-run-*/*.wandb"))
    assert np.isfinite([line["loss_label"] for line in read_log(tmp_path / "w")]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-recipe",), "there is no recipe 'no-such-recipe'"),
        (("cnn-mix", "--data.release", "nowhere"), "is not a release"),
        (("cnn-mix", "--training.batch-size", "0"), "greater than or equal to 1"),
        (("cnn-mix", "--no-such-option", "1"), "Unrecognized"),
    ],
)
def test_wrong_commands_say_what_is_wrong(tmp_path, arguments, message):
    printed = run(command("launch/train.py", *arguments), tmp_path, expect=None)
    assert message in printed
    assert "Traceback" not in printed


def test_no_argument_builds_the_demo_once_and_trains_the_default(tmp_path, monkeypatch):
    """As documented, on four ranks; only shortened. The first rank builds, the others wait."""
    monkeypatch.setenv("HARPS_DIST_DEMO", str(tmp_path / "demo"))
    assert environment()["HARPS_DIST_DEMO"] == str(tmp_path / "demo")
    run(command("launch/train.py", "--training.steps", 2, "--log.every", 1, ranks=4), tmp_path)
    assert (tmp_path / "demo/release/manifest.json").exists()
    assert [line["step"] for line in read_log(tmp_path / "runs/demo-cnn-mix")] == [1, 2]
    assert not list((tmp_path / "demo").glob(".*.tmp"))
