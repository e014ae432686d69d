"""Figures of an evaluation drawn anew: without model, release or torch, the same to the byte, and from whole tables."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.evaluation.drawing import INTERVENTIONS, redraw
from harps_dist.evaluation.evaluate import evaluate_run
from harps_dist.ranks.world import World
from tests.commands import ROOT, environment


@pytest.fixture(scope="module")
def evaluated(tiny_runs, tiny_release, tmp_path_factory) -> Path:
    """Evaluations, one a run: of an autoencoder, and of an encoder with uncertainties. Read only."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name in ("demo-ae-mix", "demo-cnn-mix-laplace"):
        release, world = Release(tiny_release), World.alone()
        evaluate_run(tiny_runs / name, release, "all", folder / name, world, Console(quiet=True))
    return folder


def figures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_figures_are_drawn_anew_without_model_release_or_torch(evaluated, tmp_path):
    folder = shutil.copytree(evaluated, tmp_path / "copy")
    before = figures(folder)
    names = {Path(name).name for name in before}
    assert {"calibration.png", "residuals.png", "spectrum.png", "rv_intervention.png", "teff_intervention.png"} <= names
    for name in before:
        (folder / name).unlink()
    for name in ("demo-ae-mix", "demo-cnn-mix-laplace"):
        code = (
            "import sys; from harps_dist.commands.evaluate import main; "
            f"sys.argv = ['evaluate.py', 'nowhere', '--out', {str(folder / name)!r}, '--redraw']; main(); "
            "print([name for name in ('torch', 'zarr', 'wandb') if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"
        assert str(folder / name / "all-real/residuals.png") in done.stdout.replace("\n", "")
    assert figures(folder) == before


@pytest.mark.parametrize("table", ["predictions.parquet", "spectrum.parquet", "rv_intervention.parquet"])
def test_a_table_that_is_not_the_evaluations_is_refused(evaluated, tmp_path, table):
    folder = shutil.copytree(evaluated / "demo-ae-mix", tmp_path / "copy")
    path = folder / "all-real" / table
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ConfigError, match=rf"{table} is damaged.*Evaluate the run again"):
        redraw(folder)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"{table} is missing.*Evaluate the run again"):
        redraw(folder)


def test_what_an_older_version_did_not_keep_is_left_and_said(evaluated, tmp_path):
    """Evaluations of version 0.1 have neither tables of interventions nor digests."""
    folder = shutil.copytree(evaluated / "demo-ae-mix", tmp_path / "copy")
    for report in folder.glob("*/scores.json"):
        scores = json.loads(report.read_text())
        for name in ("format", "digest", "sha256"):
            del scores[name]
        report.write_text(json.dumps(scores))
        for table in INTERVENTIONS:
            (report.parent / table).unlink(missing_ok=True)
    before = figures(folder)
    lines = redraw(folder)
    assert (
        "Intervention on the radial velocity: as it was, for its table was not kept. Evaluate the run again." in lines
    )
    assert any(line.startswith("Residuals by label: ") and "test" not in line.split(": ")[0] for line in lines)
    assert figures(folder) == before


def test_where_nothing_was_evaluated_nothing_is_drawn(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no evaluation.*Evaluate the run first"):
        redraw(tmp_path)
