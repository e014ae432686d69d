"""What version 0.1 wrote opens: runs, exports, registries. Archives and releases: test_old_archives.py."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from harps_dist.data.ledger import read_ledger
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.inference.export import export_run
from harps_dist.inference.model import load
from harps_dist.paper.evaluations import Evaluations
from harps_dist.promotion.comparison import read_comparison
from harps_dist.promotion.registry import CURRENT, Registry
from harps_dist.runs.log import read_log
from harps_dist.runs.run import RECIPE, Run, read_run
from tests.commands import ROOT, command, run

NAME = "demo-cnn-mix"
TRAINING = (
    *(NAME, "--parent", "None", "--data.release", "release", "--out", "run", "--model.width", 0.0625),
    *("--training.steps", 6, "--training.batch-size", 4, "--training.warmup-steps", 0, "--log.keep", 1),
    *("--log.every", 1, "--log.save-every", 3, "--log.validate-every", 3, "--log.ledger"),
)


@pytest.fixture
def old(tmp_path) -> Path:
    with tarfile.open(ROOT / "tests/data/formats-0.1.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


def test_a_run_opens_and_goes_on(old):
    saved, checkpoint = read_run(old / "run"), Run(old / "run").checkpoint()
    assert (saved.name, saved.grid.name, checkpoint.step) == (NAME, "tiny", 6)
    assert saved.recipe_digest == saved.recipe.digest == checkpoint.state["recipe_digest"]
    model = Run(old / "run").model("best")
    assert torch.equal(model.state_dict()["label_mean"], load_file(checkpoint.path / "model.safetensors")["label_mean"])
    assert [line["step"] for line in read_log(old / "run")] == [1, 2, 3, 4, 5, 6]
    ledger = read_ledger(old / "run/ledger.jsonl", len(Release(old / "release").index))
    assert sum(int(seen.sum()) for seen in ledger._seen.values()) == 24
    assert "is trained already: 6 of 6" in run(command("launch/train.py", *TRAINING), old)


def test_an_evaluation_is_read(old, tmp_path):
    shutil.move(old / "run", tmp_path / "runs" / NAME)
    found = Evaluations(tmp_path / "runs", demo=True)
    scores = found.scores("cnn-mix", "real")
    assert scores["spectra"] == len(found.column("cnn-mix", "real", "teff"))


def test_an_export_predicts_as_it_did(old, tmp_path):
    import pyarrow.parquet as pq

    exported = load(old / "export")
    written = pq.read_table(old / "labels.parquet")
    run(command("launch/predict.py", old / "export", old / "archive.zarr", "-o", tmp_path / "now.parquet"), tmp_path)
    now = pq.read_table(tmp_path / "now.parquet")
    assert now["dp_id"].to_pylist() == written["dp_id"].to_pylist()
    for name in exported.labels:
        np.testing.assert_allclose(now[name].to_numpy(), written[name].to_numpy(), rtol=1e-4)
    assert json.loads((old / "export/config.json").read_text())["format"] == 1
    again = load(export_run(old / "run", tmp_path / "again", Release(old / "release")))
    assert again.description.format == 2
    for now, before in zip(again.description.labels, exported.description.labels, strict=True):
        assert replace(now, scale=0.0, factors=()) == replace(before, scale=0.0, factors=())
        assert now.scale == pytest.approx(before.scale, rel=1e-5)
        assert now.factors == pytest.approx(before.factors, rel=1e-5)


def test_a_registry_goes_on(old):
    registry = Registry(old / "models")
    (event,) = registry.events()
    assert Run(old / "models" / CURRENT).identity().id == event.model.id == read_comparison(old / "comparison").new.id
    assert registry.settle() == [event]


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("model.width", lambda content: content["recipe"]["model"].update(width=0.125), ConfigError),
        ("recipe_digest", lambda content: content.update(recipe_digest="0" * 64), ConfigError),
        ("release_digest", lambda content: content.update(release_digest="0" * 64), ResumeError),
    ],
)
def test_an_old_recipe_that_was_edited_is_noticed(old, name, change, error):
    content = yaml.safe_load((old / "run" / RECIPE).read_text())
    change(content)
    (old / "run" / RECIPE).write_text(yaml.safe_dump(content))
    with pytest.raises(error):
        Run(old / "run").model()


def test_an_old_position_that_was_edited_is_noticed(old):
    path = old / "run/checkpoints/step-00000006/state.json"
    content = json.loads(path.read_text())
    content["order"]["sample"] -= 4
    path.write_text(json.dumps(content))
    said = run(command("launch/train.py", *TRAINING), old, expect=1)
    assert "it is behind 20 samples of the order, expected 6 batches of 4" in said
