"""Trained and exported models that several files of tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from harps_dist.data.reader import Release
from harps_dist.inference.export import export_run
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.training.loop import train_run

STEPS = {
    "demo-cnn-mix-laplace": 60,
    "demo-ae-mix": 40,
    "demo-infovae-mix": 3,
    "demo-cnn-dec-etc": 3,
    "demo-ae-phys": 20,
}


@pytest.fixture(scope="session")
def tiny_runs(tiny_release, tmp_path_factory) -> Path:
    """A folder of runs, one a kind of model, narrow and trained for moments. Read only."""
    folder, release = tmp_path_factory.mktemp("tiny-runs"), Release(tiny_release)
    for name, steps in STEPS.items():
        recipe = find_recipe(name).model_copy(update={"parent": None})
        width = {"width": 0.125} | ({"decoder_width": 0.125} if recipe.model.kind == "autoencoder" else {})
        training = {"steps": steps, "batch_size": 8, "warmup_steps": 0}
        recipe = recipe.changed(model=width, training=training, data={"release": str(tiny_release)})
        train_run(recipe, name, release, folder / name, World.alone())
    return folder


@pytest.fixture(scope="session")
def tiny_exports(tiny_runs, tiny_release, tmp_path_factory) -> Path:
    """The exports of `tiny_runs`, each in a folder of the run's name. Read only."""
    folder = tmp_path_factory.mktemp("tiny-exports")
    for name in STEPS:
        export_run(tiny_runs / name, folder / name, Release(tiny_release))
    return folder
