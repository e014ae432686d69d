"""From a release to a report: train briefly, evaluate, whatever the number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.numpy import load_file

from harps_dist.config import Recipe
from harps_dist.data.batches import EvaluationBatches
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.evaluation.evaluate import evaluate, evaluate_run
from harps_dist.evaluation.predicting import Evaluator
from harps_dist.ranks.world import World
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.runs.log import read_log
from harps_dist.runs.run import Run, initial_model, read_run
from harps_dist.spectra.labels import INTRINSIC, NAMES
from harps_dist.training.loop import train_run
from harps_dist.training.precision import autocast
from tests.commands import TINY, command, environment, run

ALONE = World.alone()
MODEL = "checkpoints/step-00000003/model.safetensors"
MEASURES = {"MAE'", "MAE' (paper-comparable)", "RVIS"}
AGAINST_THE_SIMULATOR = {"RVIS-true", "RV sensitivity"} | {
    f"do({velocity}) {what}" for velocity in ("rv", "berv") for what in ("response", "leakage")
}
EXPECTED = {
    "real": MEASURES,
    "simulated": MEASURES | AGAINST_THE_SIMULATOR,
    "generative": {"MAE'", "MAE' (paper-comparable)"}
    | {f"{name} {label}" for name in ("GIS", "GIS-true", "sensitivity", "response") for label in INTRINSIC},
}


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


def test_the_log_has_the_label_errors_of_the_validation(trained, tiny_release, tmp_path):
    last = read_log(trained)[-1]
    reports = evaluate_run(trained, Release(tiny_release), "validation", tmp_path / "out", ALONE, Console(quiet=True))
    for folder, report in reports.items():
        kind = folder.name.removeprefix("validation-")
        errors = {f"mae_{kind}_{score.name}": score.mae for score in report.labels if score.count}
        logged = {key: value for key, value in last.items() if key.startswith(f"mae_{kind}_")}
        assert kind == "generative" or logged == pytest.approx(errors, rel=1e-4)
    assert last["mae_real_teff"] != last["mae_simulated_teff"]


def test_the_log_says_what_trained(trained):
    devices = [line.get("device") for line in read_log(trained)]
    assert devices == [f"1 × {ALONE.device_name}", *[None] * 7]


def test_evaluation_is_the_same_on_any_number_of_ranks(trained, tmp_path):
    for ranks in (1, 2):
        arguments = (trained, "--split", "all", "--out", tmp_path / f"{ranks}")
        run(command("launch/evaluate.py", *arguments, ranks=ranks), tmp_path)
    for kind, count in (("real", None), ("simulated", 40), ("generative", 84)):
        one, two = (pq.read_table(tmp_path / ranks / f"all-{kind}/predictions.parquet") for ranks in "12")
        assert one["key"].to_pylist() == two["key"].to_pylist()
        assert len(set(one["key"].to_pylist())) == len(one)
        assert count in (None, len(one))
        for name in ("teff", "rv", "MAE'", *(("GIS", "GIS-true") if kind == "generative" else ("RVIS",))):
            values = one[name].to_numpy()  # in float32, of batches put together otherwise: 1e-6 of their spread
            np.testing.assert_allclose(two[name].to_numpy(), values, rtol=1e-4, atol=1e-4 * values.std(), err_msg=name)
        folder = tmp_path / "1" / f"all-{kind}"
        scores = json.loads((folder / "scores.json").read_text())
        measured = {measure["name"] for measure in scores["measures"]}
        assert measured == EXPECTED[kind]
        report = (folder / "report.md").read_text()
        assert "simulated" in report.splitlines()[2].lower()  # the demo's stars are never passed off as observed
        drawn = ("spectrum", "rv_intervention") if kind != "generative" else ("teff_intervention", "logg_intervention")
        for figure in ("residuals.png", *(f"{name}.png" for name in drawn)):
            assert (folder / figure).stat().st_size > 10_000
            assert figure in report


def test_loader_processes_change_nothing(trained, tiny_release, tmp_path):
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "w", "--training.steps", 8, *TINY)
    run(command("launch/train.py", *arguments, "--data.workers", 2), tmp_path)
    name = "checkpoints/step-00000008/model.safetensors"
    assert (tmp_path / "w" / name).read_bytes() == (trained / name).read_bytes()


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


def test_a_parent_is_trained_where_it_is_missing_and_found_where_it_is_not(tiny_release, tmp_path):
    recipe = at_tiny_scale(find_recipe("demo-cnn-mix"))
    release, world = Release(tiny_release), World.alone()
    child = recipe.model_copy(update={"parent": "parent", "training": recipe.training.model_copy(update={"seed": 1})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "parent", recipe)
        for name in ("child", "sibling"):
            train_run(child, name, release, tmp_path / name, world)
    assert len(read_log(tmp_path / "parent")) == recipe.training.steps
    assert read_run(tmp_path / "child").recipe.parent == "parent"
    begun_with = (tmp_path / "child/recipe.yaml").read_text()
    assert f"start_from: {tmp_path / 'parent'}" in begun_with
    with pytest.MonkeyPatch.context() as patch:  # gone on with later, it still says what it began with
        patch.setitem(RECIPES, "parent", recipe)
        train_run(child, "child", release, tmp_path / "child", world)
    assert (tmp_path / "child/recipe.yaml").read_text() == begun_with
    encoder = [load_file(tmp_path / run / MODEL)["network.encoder.layers.0.weight"] for run in ("child", "sibling")]
    np.testing.assert_array_equal(*encoder)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("demo-")])
def test_every_recipe_trains(name, tiny_release, tmp_path):
    """A few steps of every row, narrow: losses are finite, weights move, and the run can be loaded again."""
    recipe, release = at_tiny_scale(find_recipe(name)), Release(tiny_release)
    before = initial_model(recipe, release.manifest).state_dict()
    train_run(recipe, name, release, tmp_path / "run", World.alone())
    line = read_log(tmp_path / "run")[-1]
    losses = {key for key in line if key.startswith("loss_")}
    assert losses == expected_losses(recipe)
    assert all(np.isfinite(line[key]) for key in losses)
    opened = Run(tmp_path / "run")
    model, step = opened.model(on=release.manifest), opened.checkpoint().step
    assert step == recipe.training.steps
    variational = getattr(recipe.model, "variational", False)
    nodes = [len(line[moment]) for moment in ("node_mean", "node_deviation") if moment in line]
    assert nodes == ([recipe.model.bottleneck] * 2 if variational else [])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all((model.state_dict()[name] != before[name]).any() for name in trained if name.endswith("weight"))


def test_a_decoder_that_ignores_its_input_comes_out_worst(trained, tiny_release):
    """It agrees with itself perfectly under RVIS; every measure against the simulator exposes it. A decoder that is the
    simulator comes out best in all."""
    release = Release(tiny_release)
    opened = Run(trained)
    recipe, model = opened.recipe, opened.model(on=release.manifest)
    interventions = Evaluator(model, recipe, release, World.alone()).interventions
    rows = release.index.rows("simulated")[:6]
    raw = EvaluationBatches(release, [rows], recipe.data.augment, recipe.training.seed)[0]
    unmoved = interventions.simulate_at(raw, 0.0)
    nodes = torch.zeros(len(rows), recipe.model.bottleneck)

    def dead(_, dv_kms, velocity="rv"):
        return np.ones(unmoved.shape)

    def perfect(_, dv_kms, velocity="rv"):
        return interventions.simulate_at(raw, dv_kms, velocity)

    found = {}
    for name, decode_at in (("dead", dead), ("perfect", perfect)):
        interventions.decode_at = decode_at
        base = torch.from_numpy(decode_at(nodes, 0.0)).float()
        found[name] = interventions.rv_scores(raw, nodes, base)
    assert found["dead"]["RVIS"].max() < 1e-3 < found["dead"]["RVIS-true"].min()
    assert found["perfect"]["RVIS-true"].max() < 1e-6
    for measure in ("RV sensitivity", "do(rv) response", "do(berv) response"):
        assert np.abs(found["dead"][measure]).max() < 1e-6
        np.testing.assert_allclose(found["perfect"][measure], 1.0, atol=1e-3)
    for leakage in ("do(rv) leakage", "do(berv) leakage"):
        assert np.abs(found["perfect"][leakage]).max() < 1e-3


@pytest.mark.parametrize("label", ["teff", "mh", "logg"])
def test_gis_exposes_a_decoder_that_ignores_its_input(label, trained, tiny_release):
    """GIS as printed does not, which it scores a perfect 0; the measures against the simulator do. A decoder that draws
    what the simulator does for the values it is asked for comes out best in all."""
    release = Release(tiny_release)
    opened = Run(trained)
    recipe, model = opened.recipe, opened.model(on=release.manifest)
    interventions = Evaluator(model, recipe, release, World.alone()).interventions
    rows, index = release.index.rows("generative", "test"), release.index
    subset = rows[(index["star"][rows] == index["star"][rows[0]]) & (index["varied"][rows] == label)]
    raw = EvaluationBatches(release, [subset], recipe.data.augment, recipe.training.seed)[0]
    assert len(subset) == 7
    fixed = [name for name in NAMES if name != label]
    values = raw.labels[:, NAMES.index(label)].numpy()
    for name in fixed:
        assert len(set(raw.labels[:, NAMES.index(name)].tolist())) == 1, name
    assert len(set(values)) == 7
    assert len(set(raw.key.tolist())) == 1  # the same noise
    truth = interventions.simulate_at(raw, 0.0)
    nodes = torch.zeros(len(subset), recipe.model.bottleneck)
    nodes[:, 0] = torch.arange(len(subset))

    def dead(nodes, change, label):
        return np.ones((len(nodes), release.grid.length))

    def perfect(nodes, change, label):
        wanted = values[nodes[:, 0].long().numpy()] + change
        return truth[np.abs(values[:, None] - wanted).argmin(axis=0)]

    interventions.decode_at = dead
    found = interventions.label_scores(raw, nodes, label)
    assert found["GIS"].max() == 0
    off = np.abs(1.0 - truth[:, release.grid.valid].astype(np.float64)).mean(axis=1)
    np.testing.assert_allclose(found["GIS-true"], (off.sum() - off) / 6, rtol=1e-9)
    assert np.abs([found["sensitivity"], found["response"]]).max() == 0
    interventions.decode_at = perfect
    found = interventions.label_scores(raw, nodes, label)
    assert np.abs([found["GIS"], found["GIS-true"]]).max() == 0
    np.testing.assert_allclose([found["sensitivity"], found["response"]], 1.0, rtol=1e-12)


def test_moments_of_the_nodes_are_those_of_the_validation_split(tiny_release, tmp_path):
    recipe, release = at_tiny_scale(find_recipe("demo-infovae-mix")), Release(tiny_release)
    world = World.alone()
    train_run(recipe, "infovae", release, tmp_path / "run", world)
    line = read_log(tmp_path / "run")[-1]
    opened = Run(tmp_path / "run")
    recipe, model = opened.recipe, opened.model(on=release.manifest)
    rows = np.concatenate([release.index.rows(kind, "validation") for kind in ("real", "simulated")])
    nodes = Evaluator(model, recipe, release, world).predict(rows).nodes
    np.testing.assert_allclose(line["node_mean"], nodes.mean(0), atol=1e-5)
    assert (np.array(line["node_deviation"]) > nodes.std(0)).all()  # what is drawn around each mean comes on top


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2e-3), ("fp16", 4e-4)])
def test_half_precision_stays_near_fp32_on_trained_weights(precision, bound, tiny_release, tmp_path):
    """Trained in that precision, then run in it and in fp32: mean difference in medians of the flux (photon noise at
    S/N 100 is 1e-2), and in ten times as many standard deviations of a label."""
    recipe, release = at_tiny_scale(find_recipe("demo-ae-mix")), Release(tiny_release)
    training = recipe.training.model_copy(update={"steps": 30, "precision": precision})
    cpu = torch.device("cpu")
    train_run(recipe.model_copy(update={"training": training}), "half", release, tmp_path / "r", World(0, 1, cpu))
    opened = Run(tmp_path / "r")
    recipe, model = opened.recipe, opened.model(on=release.manifest)
    raw = EvaluationBatches(release, [release.index.rows("simulated")[:24]], recipe.data.augment, 0)[0]
    batch = Observer(release.decoding, recipe.data.augment, cpu)(raw)
    with torch.no_grad():
        full = model(batch)
        with autocast(precision, cpu):
            half = model(batch)
    for exact, rounded, limit in (
        (full.labels, half.labels, 10 * bound),
        (full.reconstruction, half.reconstruction, bound),
    ):
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().mean() < limit


def test_a_heteroscedastic_encoder_reports_its_uncertainties(tiny_release, tmp_path):
    recipe, release = at_tiny_scale(find_recipe("demo-cnn-mix")), Release(tiny_release)
    model = recipe.model.model_copy(update={"uncertainty": "laplace"})
    world = World.alone()
    train_run(recipe.model_copy(update={"model": model}), "demo-cnn-mix", release, tmp_path / "h", world)
    opened = Run(tmp_path / "h")
    name, recipe, model, step = opened.name, opened.recipe, opened.model(on=release.manifest), opened.checkpoint().step
    evaluate(Evaluator(model, recipe, release, world), name, step, "simulated", "all", tmp_path / "out")
    table = pq.read_table(tmp_path / "out/predictions.parquet")
    teff_std = model.label_std[model.labels.index("teff")].item()
    sigma = table["teff_sigma"].to_numpy()
    assert ((sigma > 0.1 * teff_std) & (sigma < 10 * teff_std)).all()  # after three steps: of the labels' own spread


def test_an_unsupervised_model_is_scored_by_regression_on_its_latent_means(tiny_release, tmp_path):
    recipe, release = at_tiny_scale(find_recipe("demo-infovae-mix-u")), Release(tiny_release)
    narrow = recipe.model.model_copy(update={"bottleneck": 4})
    world = World.alone()
    train_run(recipe.model_copy(update={"model": narrow}), "demo-infovae-mix-u", release, tmp_path / "u", world)
    opened = Run(tmp_path / "u")
    name, recipe, model, step = opened.name, opened.recipe, opened.model(on=release.manifest), opened.checkpoint().step
    report = evaluate(Evaluator(model, recipe, release, world), name, step, "simulated", "train", tmp_path / "out")
    assert "least squares" in (tmp_path / "out/report.md").read_text()
    scored = {score.name: score for score in report.labels}
    assert {"teff", "rv", "pwv"} <= scored.keys()
    truth = release.index.labels[release.index.rows("simulated", "train"), NAMES.index("teff")]
    assert scored["teff"].bias == pytest.approx(0, abs=1e-6)  # on its own training rows least squares has no bias
    assert scored["teff"].scatter <= truth.std(ddof=1)


def at_tiny_scale(recipe: Recipe) -> Recipe:
    narrow = {"width": 0.125} | ({"decoder_width": 0.125} if recipe.model.kind == "autoencoder" else {})
    return recipe.model_copy(
        update={
            "parent": None,
            "model": recipe.model.model_copy(update=narrow),
            "data": recipe.data.model_copy(update={"label_fraction": max(0.5, recipe.data.label_fraction)}),
            "training": recipe.training.model_copy(update={"steps": 3, "batch_size": 8, "warmup_steps": 0}),
            "log": recipe.log.model_copy(update={"every": 1}),
        }
    )


def expected_losses(recipe: Recipe) -> set[str]:
    model, losses = recipe.model, set()
    if model.labels and model.kind != "decoder":
        losses.add("loss_label")
    if model.kind != "encoder":
        losses.add("loss_reconstruction")
    if model.kind in ("autoencoder", "physical-autoencoder"):
        unknown = recipe.loss.unknown_penalty and model.bottleneck > len(model.labels)
        losses |= {"loss_unknown"} if unknown else set()
        losses |= {f"loss_{part}" for part in ("kl", "mmd") if getattr(recipe.loss, part)}
    return losses


def test_weights_and_biases_offline_and_bf16(tiny_release, tmp_path):
    arguments = (
        "demo-cnn-mix", "--data.release", tiny_release, "--out", "w", "--training.steps", 3, "--log.wandb", "offline",
        "--training.precision", "bf16", *TINY,
    )  # fmt: skip
    run(command("launch/train.py", *arguments), tmp_path)
    assert list((tmp_path / "w/wandb").glob("offline-run-*/*.wandb"))
    assert np.isfinite([line["loss_label"] for line in read_log(tmp_path / "w")]).all()
    run(command("launch/evaluate.py", "w"), tmp_path)
    first, second = sorted((tmp_path / "w/wandb").glob("offline-run-*/*.wandb"))
    assert first.stem == second.stem  # one run, of one id
    assert b"mae_real_teff" in first.read_bytes()
    assert b"test-real/MAE teff [K]" in second.read_bytes()
    assert list(second.parent.glob("files/media/images/test-real/residuals*.png"))


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


@pytest.mark.slow
def test_no_argument_builds_the_demo_once_and_trains_the_default(tmp_path, monkeypatch):
    """As documented, on four ranks; only shortened. The first rank builds, the others wait."""
    monkeypatch.setenv("HARPS_DIST_DEMO", str(tmp_path / "demo"))
    assert environment()["HARPS_DIST_DEMO"] == str(tmp_path / "demo")
    run(command("launch/train.py", "--training.steps", 2, "--log.every", 1, ranks=4), tmp_path)
    assert (tmp_path / "demo/release/manifest.json").exists()
    assert [line["step"] for line in read_log(tmp_path / "runs/demo-cnn-mix")] == [1, 2]
    assert not list((tmp_path / "demo").glob(".*.tmp"))
