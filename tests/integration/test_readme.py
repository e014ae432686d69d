"""The README's three ways in, followed from top to bottom, command by command, on a small archive."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from harps_dist.data.reader import Release
from harps_dist.progress import silent
from harps_dist.promotion.registry import Registry
from preprocessing.demo import DemoSize, build_delivery, build_demo
from tests.commands import ROOT, TINY, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = ("--training.steps", "3")
MORE = {  # what makes a command small, by its first words
    "ingest --spectra spectra": ("--grid", "tiny"),
    "pack --archive A.zarr --release R1": ("--split", "0.5", "0.2", "0.3"),
    "train": (*STEPS, *TINY),
    "retrain": (*STEPS, "--training.batch-size", "12"),
    "reproduce": ("--train", "none", "--scale", "demo"),  # tests/integration/test_reproduce.py trains
}


def chapter() -> str:
    """The three ways in."""
    text = (ROOT / "README.md").read_text()
    return text[text.index("## Three ways in\n") : text.index("## How it fits together\n")]


def commands() -> list[str]:
    """Every command of the shell blocks."""
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", chapter(), re.DOTALL)).splitlines()
    return [line for line in lines if line and not line.startswith((". .venv", "#"))]


def as_run_here(line: str) -> list[str]:
    """The command with this interpreter, two ranks for four, and options that make it small."""
    words = shlex.split(line, comments=True)
    launcher = [sys.executable]
    if words[0] == "torchrun":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        assert words[1:4] == ["--nproc_per_node=4", "-m", "harps_dist"], line
        words = words[4:]
    elif words[0] == "sbatch":  # tests/slurm submits it
        return ["bash", str(ROOT / words[1]), *words[2:], "--dry-run"]
    else:
        assert words[0] == "harps-dist", line
        words = words[1:]
    known = " ".join(words) + " "
    more = [word for start, added in MORE.items() if known.startswith(f"{start} ") for word in added]
    words = ["demo-" + word if word in ("cnn-mix", "ae-mix") else word for word in words]
    return [*launcher, "-m", "harps_dist", *words, *more]


def test_every_command_does_what_the_page_says(tmp_path, monkeypatch):
    size = DemoSize(stars=60, visits=1.5, seds=80, etc_runs=4, cores=4, grid="tiny", split=(0.5, 0.2, 0.3), seed=3)
    build_demo(tmp_path / "d", size, silent)
    delivery = build_delivery(tmp_path / "d", size, 1, silent)
    files = tmp_path / "d/files"
    for source, name in ((files / "spectra", "spectra"), (files / "etc", "etc"), (files / "sed", "sed")):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(delivery / "spectra", tmp_path / "night")
    shutil.copy(delivery / "catalog.csv", tmp_path / "labels.csv")
    (gate,) = re.findall(r"```yaml\n(.*?)```", chapter(), re.DOTALL)
    (tmp_path / "gate.yaml").write_text(gate)
    (tmp_path / "stars.csv").write_text("teff,logg,mh\n5500,4.4,0.0\n6000,4.2,-0.3\n")
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.setenv("PYTHON", sys.executable)
    found = commands()
    assert len(found) > 20
    for line in found:
        run(as_run_here(line), tmp_path)
    assert Release(tmp_path / "R2").manifest.parent == Release(tmp_path / "R1").digest
    assert [event.event for event in Registry(tmp_path / "models").events()] == ["promoted", "promoted", "rolled back"]
    for name in (
        "labels.fits",
        "star.fits",
        "stars.parquet",
        "teff.png",
        "runs/cnn-mix/evaluation/test-real/report.md",
        "runs/cnn-mix/evaluation/index.html",
    ):
        assert Path(tmp_path / name).stat().st_size > 0, name
