"""Strategies, ranks and parts of a batch change nothing of what is learned; what is not finite is skipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from harps_dist.config import Engine
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, OutputError, TrainingError
from harps_dist.models.build import build_model
from harps_dist.models.losses import loss_parts, part_names, part_terms
from harps_dist.ranks.world import World
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.runs.log import read_log
from harps_dist.training.loop import Trainer, train_run
from tests.commands import TINY, command, run

RECIPE = "demo-infovae-mix"  # every part of the loss, and draws of its own
# In float32 Adam enlarges the rounding of gradients near zero, and losses of one and two ranks differ by up to 290 %
# in a step: ranks and parts are compared in float64, where they agree to 1e-13.
EXACT = ("--training.precision", "fp64")
SETTINGS = ("--training.warmup-steps", 0, *TINY)


def train(release: Path, folder: Path, out: str, *more: object, ranks: int = 2, steps: int = 6) -> Path:
    arguments = (
        RECIPE, "--data.release", release, "--out", out, "--training.steps", steps, *SETTINGS, *more,
    )  # fmt: skip
    run(command("launch/train.py", *arguments, ranks=ranks), folder)
    return folder / out


def losses(path: Path) -> np.ndarray:
    return np.array([[value for key, value in line.items() if key.startswith("loss_")] for line in read_log(path)])


def last_weights(path: Path) -> dict[str, np.ndarray]:
    return load_file(sorted(path.glob("checkpoints/step-*"))[-1] / "model.safetensors")


def test_parts_of_a_batch_learn_what_the_whole_learns(tiny_release, tmp_path):
    """Gradients clipped, MMD and KL of the whole global batch; each rank's five samples in parts of two and one."""
    exact = (*EXACT, "--training.batch-size", 10, "--training.clip-norm", 0.05)
    whole = train(tiny_release, tmp_path, "whole", *exact, ranks=1)
    parts = train(tiny_release, tmp_path, "parts", *exact, "--training.accumulate", 3, ranks=2)
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-9)
    for name, value in last_weights(whole).items():
        np.testing.assert_allclose(last_weights(parts)[name], value, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_four_two_three_ranks_in_float64(tiny_release, tmp_path):
    """The curve of one rank within 1e-6, the ledger exact, the number of ranks changed twice on the way."""
    uneven = ("--training.batch-size", 10)  # 2 or 3 spectra of a rank of four, 3 or 4 of three
    exact = (*EXACT, *uneven, "--training.learning-rate", 1e-3, "--log.ledger", "--log.save-every", 1)
    undisturbed = train(tiny_release, tmp_path, "one", *exact, ranks=1, steps=12)
    for ranks, minutes in ((4, 4), (2, 8)):
        stop_at(tiny_release, tmp_path, minutes, ranks, *exact)
    changed = train(tiny_release, tmp_path, "changed", *exact, ranks=3, steps=12)
    np.testing.assert_allclose(losses(changed), losses(undisturbed), rtol=1e-6)
    rows = [
        [(line["step"], sorted(line["rows"])) for line in map(json.loads, (path / "ledger.jsonl").open())]
        for path in (undisturbed, changed)
    ]
    assert rows[0] == rows[1]


def stop_at(release: Path, folder: Path, step: int, ranks: int, *more: object) -> None:
    """Train into folder/changed as far as a step, as if stopped by a signal there."""
    arguments = (
        RECIPE, "--data.release", release, "--out", "changed", "--training.steps", 12, *SETTINGS, *more,
    )  # fmt: skip
    printed = run(
        command("tests/distributed/worker_stopping.py", step, *arguments, ranks=ranks),
        folder,
        expect=75 if ranks == 1 else 1,
    )
    assert f"at step {step + (ranks > 1)} of 12" in printed  # several ranks hear of it a step later


GENTLE = ("--training.clip-norm", 0.5, "--training.learning-rate", 1e-5)


@pytest.fixture(scope="module")
def undisturbed(tiny_release, tmp_path_factory) -> Path:
    """Twelve gentle steps of one rank in float64."""
    return train(tiny_release, tmp_path_factory.mktemp("gentle"), "one", *GENTLE, *EXACT, ranks=1, steps=12)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_deepspeed_learns_what_ddp_learns_and_they_load_each_other(undisturbed, tiny_release, tmp_path, zero):
    """DDP on 2 ranks, DeepSpeed on 3, DDP on 1: what an undisturbed run in float64 learns, to the noise of float32.

    DeepSpeed has no float64. At a rate that keeps weights close, losses measured 4e-6 off, the moments 2e-4 and what
    the weights gained 0.05 of their norm (Adam enlarges gradients that are nothing but rounding); moments or steps that
    were lost on the way, or gradients not averaged, are 0.3 and more.
    """
    settings = (*GENTLE, "--log.save-every", 1)
    stop_at(tiny_release, tmp_path, 4, 2, *settings)
    before = last_weights(tmp_path / "changed")
    stop_at(tiny_release, tmp_path, 8, 3, *settings, "--strategy", "deepspeed", "--zero", zero)
    changed = train(tiny_release, tmp_path, "changed", *settings, ranks=1, steps=12)
    np.testing.assert_allclose(losses(changed), losses(undisturbed), rtol=1e-4)
    expected, found = (
        load_file(path / "checkpoints/step-00000012/optimizer.safetensors") for path in (undisturbed, changed)
    )
    assert expected.keys() == found.keys()
    assert {float(value) for name, value in found.items() if name.endswith("/step")} == {12.0}
    for moment in ("exp_avg", "exp_avg_sq"):
        assert apart(found, {name: value for name, value in expected.items() if name.endswith(f"/{moment}")}) < 0.01
    gained, expected = (
        {name: value - before[name] for name, value in last_weights(path).items()} for path in (changed, undisturbed)
    )
    assert apart(gained, expected) < 0.2


def apart(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The norm of the difference over the norm of what is expected, all tensors together."""
    difference = sum(float(np.square(found[name] - value).sum()) for name, value in expected.items())
    return (difference / sum(float(np.square(value, dtype=np.float64).sum()) for value in expected.values())) ** 0.5


def test_a_users_deepspeed_configuration_is_merged_over_ours(tiny_release, tmp_path):
    from harps_dist.training.strategies.deepspeed import deepspeed_config

    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "wall_clock_breakdown": True}))
    recipe, world = find_recipe(RECIPE), World.alone()
    model = build_model(recipe.model, Release(tiny_release).grid)
    config = deepspeed_config(model, recipe.training, Engine(deepspeed_config=str(path)), world)
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["reduce_bucket_size"] > 0
    assert config["wall_clock_breakdown"]
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        deepspeed_config(model, recipe.training, Engine(deepspeed_config=str(path)), world)
    with pytest.raises(ConfigError, match="nowhere is missing"):
        deepspeed_config(model, recipe.training, Engine(deepspeed_config="nowhere"), world)


@pytest.mark.parametrize(
    "engine", [Engine(), Engine(strategy="deepspeed", zero=0), Engine(strategy="deepspeed", zero=2)]
)
def test_steps_that_are_not_finite_are_skipped_counted_and_diagnosed(tiny_release, tmp_path, engine):
    """A few poisoned batches cost their steps and nothing else; poison without end is an error that names spectra."""
    trainer = tiny_trainer(tiny_release, tmp_path / "run", engine)
    observe, poisoned = trainer.learner.observer.__call__, {2, 3, 5}
    calls = iter(range(100))

    class Poisoning(type(trainer.learner.observer)):
        def __call__(self, raw):
            batch = observe(raw)
            if next(calls) in poisoned:
                batch.flux[0, 100] = float("inf")
            return batch

    trainer.learner.observer.__class__ = Poisoning
    before = None

    def learn(raw, rate, original=trainer.learner.learn):
        nonlocal before
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        skipped = trainer.learner.skipped
        figures = original(raw, rate)
        changed = any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
        assert changed == (trainer.learner.skipped == skipped)
        return figures

    trainer.learner.learn = learn
    trainer.train()
    assert read_log(tmp_path / "run")[-1]["skipped"] == 3
    assert all(np.isfinite(value).all() for value in last_weights(tmp_path / "run").values())
    state = json.loads((tmp_path / "run/checkpoints/step-00000008/state.json").read_text())
    assert (state["skipped"], state["skipped_in_a_row"]) == (3, 0)
    poisoned |= set(range(100))
    trainer = tiny_trainer(tiny_release, tmp_path / "lost", engine)
    observe = trainer.learner.observer.__call__
    trainer.learner.observer.__class__ = Poisoning
    with pytest.raises(TrainingError, match=r"5 steps in a row.*hold values that are not finite"):
        trainer.train()


def tiny_trainer(release: Path, folder: Path, engine: Engine, **training: object) -> Trainer:
    recipe = find_recipe("demo-cnn-mix").changed(
        model={"width": 0.25}, training={"steps": 8, "batch_size": 6, "warmup_steps": 0, **training}, log={"every": 1}
    )
    folder.mkdir()
    return Trainer(recipe, "demo-cnn-mix", Release(release), folder, World.alone(), None, engine)


def test_float16_halves_its_loss_scale_and_goes_on(tiny_release, tmp_path):
    trainer = tiny_trainer(tiny_release, tmp_path / "run", Engine(), precision="fp16")
    trainer.learner.loss_scale.value.fill_(2.0**120)
    trainer.train()
    assert trainer.learner.skipped == 8  # in a row, but a smaller scale may help
    assert trainer.learner.loss_scale.value == 2.0**112


def test_parts_and_their_terms_are_known_before_the_model_has_seen_a_batch(tiny_release):
    release = Release(tiny_release)
    from harps_dist.data.batches import EvaluationBatches
    from harps_dist.data.observer import Observer

    rows = np.concatenate([release.index.rows("real")[:3], release.index.rows("simulated")[:2]])
    valid = torch.arange(0, 50)
    tried = set()
    for name, recipe in RECIPES.items():
        if not name.startswith("demo-") or "fig" in name:
            continue
        kind = recipe.model.kind
        model = build_model(recipe.changed(model={"width": 0.125}).model, release.grid)
        chosen = rows[3:] if kind == "decoder" else rows
        raw = EvaluationBatches(release, [chosen], recipe.data.augment, 0)[0]
        batch = Observer(release.decoding, recipe.data.augment, torch.device("cpu"))(raw)
        parts = loss_parts(model, model(batch), batch, valid, recipe.loss)
        assert tuple(parts) == part_names(recipe.model, recipe.loss), name
        for part, found in parts.items():
            assert part_terms(part, model, batch, valid) == found.terms, (name, part)
        tried |= set(parts)
    assert tried == {"label", "reconstruction", "found", "unknown", "kl", "mmd"}


def test_batches_that_ranks_and_parts_cannot_share_are_refused(tiny_release, tmp_path):
    with pytest.raises(ConfigError, match="accumulate 7 parts"):
        tiny_trainer(tiny_release, tmp_path / "run", Engine(), accumulate=7)
    with pytest.raises(ConfigError, match="--strategy ddp"):
        tiny_trainer(tiny_release, tmp_path / "other", Engine(strategy="deepspeed"), precision="fp64")


def test_a_folder_is_trained_into_by_one_process_at_a_time(tiny_release, tmp_path):
    from harps_dist.files import exclusive
    from harps_dist.ownership import LOCK

    (tmp_path / "run").mkdir()
    recipe = find_recipe("demo-cnn-mix").changed(model={"width": 0.25}, training={"steps": 1, "batch_size": 4})
    world, release = World.alone(), Release(tiny_release)
    with exclusive(tmp_path / "run" / LOCK), pytest.raises(OutputError, match="another process is writing"):
        train_run(recipe, "x", release, tmp_path / "run", world)
    train_run(recipe, "x", release, tmp_path / "run", world)
    with pytest.raises(Exception, match="holds step-00000001"):
        train_run(recipe, "x", release, tmp_path / "run", world, engine=Engine(resume="never"))
