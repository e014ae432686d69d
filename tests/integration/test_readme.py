"""The README's three ways in, followed from top to bottom, command by command, on a small archive."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from harps_dist.data.reader import Release
from harps_dist.promotion.registry import Registry
from preprocessing.demo import DemoSize, build_delivery
from tests.commands import ROOT, TINY, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = ("--training.steps", "3")
GATE = "least_stars: 1\nslower: null\nlines:\n- {measure: labels, relative: 9.0, least_stars: 1, judge_by: mean}\n"
MORE = {  # what makes a command small, by its first words
    "preprocessing ingest --spectra spectra": ("--grid", "tiny"),
    "preprocessing pack --archive A.zarr --release R1": ("--split", "0.6", "0.2", "0.2", "--no-genuine"),
    "preprocessing pack --archive A.zarr --release R2": ("--no-genuine",),
    "launch/train.py": (*STEPS, *TINY),
    "launch/retrain.py": (*STEPS, "--training.batch-size", "12"),
    "launch/promote.py promote": ("--gate", "gate.yaml"),
    "launch/reproduce.py": ("--train", "none", "--scale", "demo"),  # tests/integration/test_reproduce.py trains
}


def commands() -> list[str]:
    """Every command of the shell blocks between the heading and the next of its level."""
    text = (ROOT / "README.md").read_text()
    chapter = text[text.index("## Three ways in\n") : text.index("## Every command in short\n")]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)).splitlines()
    return [line for line in lines if line and not line.startswith((". .venv", "#"))]


def as_run_here(line: str) -> list[str]:
    """The command with this interpreter, two ranks for four, and options that make it small."""
    words = shlex.split(line, comments=True)
    launcher = [sys.executable]
    if words[0] == "torchrun":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        words = words[2:]
    elif words[0] == "sbatch":  # tests/slurm submits it
        return ["bash", str(ROOT / words[1]), *words[2:], "--dry-run"]
    else:
        assert words[0] == "python", line
        words = words[1:]
    known = " ".join(words).removeprefix("-m ")
    more = [word for start, added in MORE.items() if known.startswith(start) for word in added]
    words = ["demo-" + word if word in ("cnn-mix", "ae-mix") else word for word in words]
    script = [str(ROOT / words[0]) if words[0].startswith("launch/") else words[0]]
    return [*launcher, *script, *words[1:], *more]


def test_every_command_does_what_the_page_says(tiny_demo, tmp_path, monkeypatch):
    files = tiny_demo / "files"
    size = DemoSize(stars=16, visits=2.0, seds=40, etc_runs=4, cores=4, grid="tiny", split=(0.6, 0.2, 0.2), seed=3)
    delivery = build_delivery(tmp_path / "d", size, 1, lambda *_: None)
    for source, name in ((files / "spectra", "spectra"), (files / "etc", "etc"), (files / "sed", "sed")):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(delivery / "spectra", tmp_path / "night")
    shutil.copy(delivery / "catalog.csv", tmp_path / "labels.csv")
    (tmp_path / "gate.yaml").write_text(GATE)
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
