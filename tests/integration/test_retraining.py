"""A run's successor on a release that has grown: warm, with replay, from scratch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from harps_dist.data.order import Mix, Order
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.formats.archive import Archive
from harps_dist.promotion.retrain import Retraining, retraining_recipe
from harps_dist.runs.run import Run
from harps_dist.spectra.grid import named_grid
from preprocessing.growth import grow
from preprocessing.pack import Settings, pack
from tests.commands import TINY, command, kill_when, run


@pytest.fixture(scope="module")
def before(tiny_release, tmp_path_factory) -> Path:
    """An encoder of eight steps on the tiny release."""
    folder = tmp_path_factory.mktemp("before")
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 8, *TINY)
    run(command("launch/train.py", *arguments), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def grown(tiny_demo, tmp_path_factory) -> Path:
    """The tiny release grown by 20 spectra of four training stars, 14 of the first, as hot as the range allows."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(tiny_demo / "archive.zarr", folder / "a.zarr")
    with Archive.writing(folder / "a.zarr", named_grid("tiny")) as writer:
        flux, stars = writer.data("real", 0), [f"star {max(0, k // 2 - 6)}" for k in range(20)]
        there = writer.rows("real")[0]
        writer.append("real", [
            (there | {"key": f"new{k}", "source": f"new{k}", "target": star, "teff": 10_900.0}, flux)
            for k, star in enumerate(stars)
        ])  # fmt: skip
    grow(folder / "a.zarr", tiny_demo / "release", folder / "release", genuine=False)
    return folder / "release"


def retrain(before: Path, grown: Path, out: Path, *more: object) -> list[str]:
    return command(
        "launch/retrain.py", "--from", before, "--release", grown, "--out", out, "--training.batch-size", 12, *more
    )


def test_a_warm_start_predicts_what_its_parent_did_before_it_learns(before, grown, tmp_path):
    """In the parent's label scale, and in that of the release, where the head is expressed in it."""
    release, old_release = Release(grown), Release(_release_of(before))
    opened = Run(before)
    old = opened.model(on=old_release.manifest)
    flux = torch.from_numpy(np.stack([release.array(int(row)) for row in release.index.rows("real")[:5]]))
    scales = {}
    for scale in ("kept", "release"):
        out = tmp_path / scale
        said = run(
            retrain(
                before, grown, out, "--label-scale", scale, "--training.steps", 1, "--training.learning-rate", 1e-30
            ),
            tmp_path,
        )
        assert "starting from" in said
        opened = Run(out)
        new, step = opened.model(on=release.manifest), opened.checkpoint().step
        assert step == 1
        with torch.no_grad():
            expected, found = (model.physical(model.network(flux)) for model in (old, new))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        scales[scale] = new.label_std
    torch.testing.assert_close(scales["kept"], old.label_std, rtol=0, atol=0)
    teff = new.labels.index("teff")
    assert scales["release"][teff] > 1.2 * scales["kept"][teff]  # the new stars are hot


def _release_of(path: Path) -> str:
    return yaml.safe_load((path / "recipe.yaml").read_text())["recipe"]["data"]["release"]


def test_policies_say_what_is_trained(before, grown):
    manifest = Release(grown).manifest
    old = yaml.safe_load((before / "recipe.yaml").read_text())["recipe"]["training"]
    name, warm = retraining_recipe(before, str(grown), manifest, Retraining(length=0.5))
    assert name == "demo-cnn-mix"
    assert (warm.training.steps, warm.training.warmup_steps, warm.training.schedule) == (4, 1, "cosine")
    assert warm.training.learning_rate == pytest.approx(0.3 * old["learning_rate"])
    assert warm.data.mix.replay is None
    _, replay = retraining_recipe(before, str(grown), manifest, Retraining(policy="replay", replay=0.7))
    assert (replay.data.mix.replay, replay.data.mix.known) == (0.7, 0)
    _, scratch = retraining_recipe(before, str(grown), manifest, Retraining(policy="scratch"))
    assert scratch.training.model_dump(mode="json") == old
    assert scratch.data.release == str(grown)


def test_replay_draws_the_share_that_it_says(grown):
    """Within 5.5 deviations of what is drawn 60 times over: chance fails one in 1e6, whatever the release's digest."""
    release = Release(grown)
    for share in (0.2, 0.9):
        order = Order(release.index, Mix(simulated=0, replay=share), 0, release.digest)
        drawn = np.concatenate([order.epoch(epoch) for epoch in range(60)])
        known = release.index["generation"][drawn] == 0
        assert known.mean() == pytest.approx(share, abs=5.5 * (share * (1 - share) / len(drawn)) ** 0.5)
        _, count = np.unique(release.index["star"][drawn[~known]].astype(str), return_counts=True)
        assert len(count) == 4
        # Stars weigh the same within their generation, however often they were observed.
        assert count == pytest.approx(count.sum() / 4, abs=5.5 * (count.sum() * 3 / 16) ** 0.5)
    with pytest.raises(ConfigError, match="grew since"):
        Order(release.index, Mix(simulated=0, replay=0.5, known=1), 0, release.digest)


def test_what_cannot_be_retrained_is_refused(before, grown, tiny_demo, tmp_path):
    pack(tiny_demo / "archive.zarr", tmp_path / "other", Settings((0.5, 0.25, 0.25), genuine=False))
    with pytest.raises(ConfigError, match="stars that it was trained on would be tested on"):
        retraining_recipe(before, "", Release(tmp_path / "other").manifest, Retraining())
    pack(tiny_demo / "archive.zarr", tmp_path / "again", Settings((0.6, 0.2, 0.2), description="another"))
    with pytest.raises(ConfigError, match="did not grow from"):
        retraining_recipe(before, "", Release(tmp_path / "again").manifest, Retraining(policy="replay"))
    retraining_recipe(before, "", Release(tmp_path / "again").manifest, Retraining(policy="warm"))


@pytest.mark.slow
def test_a_killed_retraining_ends_with_the_same_bits(before, grown, tmp_path):
    more = ("--policy", "replay", "--training.steps", 6, "--log.save-every", 2, "--log.every", 2)
    run(retrain(before, grown, tmp_path / "whole", *more), tmp_path)
    arguments = retrain(before, grown, tmp_path / "killed", *more)
    kill_when(arguments, tmp_path, lambda: (tmp_path / "killed/checkpoints/step-00000002").exists())
    run(arguments, tmp_path)
    weights = [
        load_file(tmp_path / name / "checkpoints/step-00000006/model.safetensors") for name in ("whole", "killed")
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
    assert "is trained already" in run(arguments, tmp_path)


def test_scratch_is_a_training_of_its_own(before, grown, tmp_path):
    said = run(retrain(before, grown, tmp_path / "scratch", "--policy", "scratch", "--training.steps", 2), tmp_path)
    assert "starting from" not in said
    saved = yaml.safe_load((tmp_path / "scratch/recipe.yaml").read_text())
    assert saved["start_from"] is None
