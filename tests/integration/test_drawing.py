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
from harps_dist.sealed import sha256_of
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
    """Figures and page."""
    found = [path for path in folder.rglob("*") if path.suffix in (".png", ".pdf", ".html")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


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
        *said, heavy = done.stdout.splitlines()
        assert (said[-1], heavy) == (f"Page: {folder / name / 'index.html'}", "[]")
        assert str(folder / name / "all-real/residuals.png") in done.stdout.replace("\n", "")
    assert figures(folder) == before


@pytest.mark.parametrize("table", ["predictions.parquet", "spectrum.parquet", "rv_intervention.parquet"])
def test_a_table_that_is_not_the_evaluations_is_refused_before_anything_is_drawn(evaluated, tmp_path, table):
    folder = shutil.copytree(evaluated / "demo-ae-mix", tmp_path / "copy")
    for name in figures(folder):
        (folder / name).unlink()
    path = folder / "all-simulated" / table  # of the last report
    content, expected = path.read_bytes(), sha256_of(path)
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    told = rf"expects sha256 {expected[:12]}, it has {sha256_of(path)[:12]}. Evaluate the run again"
    with pytest.raises(ConfigError, match=rf"{table} is damaged: .*{told}"):
        redraw(folder)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"{table} is missing: .*sha256 {expected[:12]}. Evaluate the run again"):
        redraw(folder)
    assert not figures(folder)


def test_a_table_of_another_evaluation_is_refused(evaluated, tmp_path):
    folder = shutil.copytree(evaluated / "demo-cnn-mix-laplace", tmp_path / "copy")
    shutil.copy(evaluated / "demo-ae-mix/all-real/spectrum.parquet", folder / "all-real")
    with pytest.raises(ConfigError, match=r"spectrum.parquet is not part of this evaluation.*Evaluate the run again"):
        redraw(folder)


@pytest.fixture
def of_version_0_1(evaluated, tmp_path) -> Path:
    """An evaluation as version 0.1 wrote it, with neither tables of interventions nor digests."""
    folder = shutil.copytree(evaluated / "demo-ae-mix", tmp_path / "copy")
    for report in folder.glob("*/scores.json"):
        scores = json.loads(report.read_text())
        for name in ("format", "digest", "sha256"):
            del scores[name]
        report.write_text(json.dumps(scores))
        for table in INTERVENTIONS:
            (report.parent / table).unlink(missing_ok=True)
    return folder


def test_what_an_older_version_did_not_keep_is_left_and_said_in_one_line(of_version_0_1):
    before = figures(of_version_0_1)
    lines = redraw(of_version_0_1)
    left = [line for line in lines if "Evaluate the run again" in line]
    assert left == [lines[-2]]
    interventions = [f"Interventions on {name} (all-generative)" for name in ("teff", "mh", "logg")]
    interventions += [f"Intervention on the radial velocity (all-{kind})" for kind in ("real", "simulated")]
    assert all(caption in lines[-2] for caption in interventions)
    assert any(line.startswith("Residuals by label: ") for line in lines)
    assert figures(of_version_0_1) == before


def test_a_table_of_an_older_version_that_is_gone_or_cannot_be_read_is_refused(of_version_0_1):
    path = of_version_0_1 / "all-simulated/predictions.parquet"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match=r"predictions.parquet is damaged: .*Evaluate the run again"):
        redraw(of_version_0_1)
    path.unlink()
    with pytest.raises(ConfigError, match=r"predictions.parquet is missing: .*Evaluate the run again"):
        redraw(of_version_0_1)


def test_an_evaluation_that_version_0_1_wrote_is_drawn(formats_0_1):
    lines = redraw(formats_0_1 / "run/evaluation")
    assert {line.split(": ")[0] for line in lines} == {"Residuals by label", "Page"}  # an encoder without uncertainties
    page = (formats_0_1 / "run/evaluation/index.html").read_text()
    assert "The log of the training was not at hand." in page  # older evaluations keep none


def test_where_nothing_was_evaluated_nothing_is_drawn(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no evaluation.*Evaluate the run first"):
        redraw(tmp_path)
