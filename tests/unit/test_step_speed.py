"""What `benchmark step` measures: the very steps of training, and their parts."""

from __future__ import annotations

import json

import pytest
import torch

from harps_dist.benchmarks import step_speed
from harps_dist.benchmarks.step_speed import distinct_recipes, step_speeds, wanted_device
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.training.learner import Learner
from harps_dist.training.loop import Trainer
from tests.commands import command, run

PARTS = ["training", "step", "observer", "loader", "plain PyTorch"]


def test_every_part_is_measured_beside_its_floor(tiny_release):
    recipes = ["demo-cnn-mix", "demo-resnet-etc", "demo-infovae-mix"]
    found = step_speeds(Release(tiny_release), recipes, batches=(3,), seconds=0.03)
    assert [one.part for one in found] == PARTS * 3
    assert {one.batch for one in found} == {3}
    for one in found:
        assert one.ms > 0
        assert one.floor_ms > 0
        assert one.precision == ("tf32" if one.part == "plain PyTorch" else "fp32")
    assert {"cnn-mix", "ae-real", "infovae-mix", "beta-vae-mix", "resnet-etc", "cnn-dec-etc"} <= set(distinct_recipes())


def test_what_is_timed_are_the_steps_of_training(tiny_release, tmp_path, monkeypatch):
    """The same batches, rates and settings go through the same method, in the same order, to the same weights."""
    seen: dict[str, list] = {}
    learn, kept = Learner.learn, {}

    def noted(self, raw, rate):
        figures = learn(self, raw, rate)
        seen.setdefault(current, []).append((raw.rows.tolist(), rate, figures.tolist()))
        kept[current] = self
        return figures

    monkeypatch.setattr(Learner, "learn", noted)
    monkeypatch.setattr(step_speed, "find_recipe", lambda name: find_recipe(name).changed(training=constant))
    constant = {"warmup_steps": 0, "schedule": "constant", "lr_scaling": "none", "steps": 6}
    release = Release(tiny_release)
    current = "benchmark"
    step_speeds(release, ["demo-ae-mix"], batches=(4,), seconds=0.01, precisions=("bf16",), workers=1)
    current = "training"
    recipe = find_recipe("demo-ae-mix").changed(
        training={"batch_size": 4, "precision": "bf16", **constant}, data={"workers": 1}, log={"every": 2}
    )
    (tmp_path / "run").mkdir()
    Trainer(recipe, "demo-ae-mix", release, tmp_path / "run", World.alone()).train()
    assert len(seen["training"]) == 6
    assert seen["benchmark"][:6] == seen["training"]
    assert kept["benchmark"].model.state_dict().keys() == kept["training"].model.state_dict().keys()


def test_the_command_prints_a_table_and_keeps_every_figure(tiny_release, tmp_path):
    arguments = ("demo-cnn-mix", "--release", tiny_release, "--batches", 2, "--seconds", 0.05, "--json", "speeds.json")
    printed = run(command("launch/benchmark.py", "step", *arguments), tmp_path)
    assert "precision fp32" in printed
    for part in PARTS:
        assert part in printed
    kept = json.loads((tmp_path / "speeds.json").read_text())
    assert [step["part"] for step in kept["steps"]] == PARTS
    assert kept["convention"] == step_speed.CONVENTION


def test_a_gpu_that_is_asked_for_must_be_there():
    if torch.cuda.is_available():
        assert wanted_device("auto").type == "cuda"
        return
    assert wanted_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="no GPU"):
        wanted_device("cuda")
