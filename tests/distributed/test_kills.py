"""kill -9 of both ranks at twenty random instants: the run that is started again ends with the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harps_dist.runs.log import lasting, read_log
from tests.commands import TINY, command, kill_when, run

STEPS = 150


def anywhere(out: Path, rng: np.random.Generator) -> Callable[[], bool]:
    """Between the first import and some steps after the start."""
    instant = time.monotonic() + rng.uniform(0.2, 8)
    return lambda: time.monotonic() > instant


def starting(out: Path, rng: np.random.Generator) -> Callable[[], bool]:
    instant = time.monotonic() + rng.uniform(0.2, 4)
    return lambda: time.monotonic() > instant


def training(out: Path, rng: np.random.Generator) -> Callable[[], bool]:
    lines, delay = len(read_log(out)) + int(rng.integers(1, 8)), rng.uniform(0, 0.05)
    return lambda: len(read_log(out)) >= lines and not time.sleep(delay)


def validating(out: Path, rng: np.random.Generator) -> Callable[[], bool]:
    """Just after the step before the one that is validated was logged."""
    begun, delay = len(read_log(out)), rng.uniform(0, 0.06)
    return lambda: len(read_log(out)) > begun and len(read_log(out)) % 3 == 2 and not time.sleep(delay)


def saving(out: Path, rng: np.random.Generator) -> Callable[[], bool]:
    """While a checkpoint is being written aside, or renamed, or older ones are dropped."""
    begun, delay = time.time(), rng.uniform(0, 0.02)

    def ready() -> bool:
        aside = list((out / "checkpoints").glob(".step-*.tmp"))
        return any(path.exists() and path.stat().st_mtime > begun for path in aside) and not time.sleep(delay)

    return ready


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tiny_release, tmp_path):
    arguments = (
        "demo-ae-mix", "--data.release", tiny_release, "--training.steps", STEPS, "--log.save-every", 2,
        "--log.validate-every", 3, "--log.ledger", *TINY,
    )  # fmt: skip
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run(command("launch/train.py", *arguments, "--out", undisturbed, ranks=2), tmp_path)
    started, rng = command("launch/train.py", *arguments, "--out", disturbed, ranks=2), np.random.default_rng(6)
    phases = [starting, training, validating, saving, anywhere] * 4
    rng.shuffle(phases)
    reached = []
    for number, phase in enumerate(phases):
        fresh = phase in (starting, anywhere)
        code = kill_when(started, tmp_path, phase(disturbed, rng), fresh=fresh)
        assert code == -9, f"the run ended before its kill number {number}, in {phase.__name__}"
        reached.append(len(read_log(disturbed)))
    assert reached[-1] > 20, "the kills came too early to mean much"
    printed = run(started, tmp_path)
    assert "each seen exactly as often as the order says" in printed
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (undisturbed / last / name).read_bytes() == (disturbed / last / name).read_bytes()
    assert lasting(undisturbed) == lasting(disturbed)
    assert (undisturbed / "ledger.jsonl").read_bytes() == (disturbed / "ledger.jsonl").read_bytes()
    kept = [sorted(path.name for path in (out / "checkpoints").iterdir()) for out in (undisturbed, disturbed)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_kills_in_an_evaluation_change_no_bit(tiny_release, tmp_path):
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 4, *TINY)
    run(command("launch/train.py", *arguments), tmp_path)
    for out, kills in (("whole", 0), ("killed", 4)):
        evaluate = command("launch/evaluate.py", "run", "--split", "all", "--out", out, ranks=2)
        rng = np.random.default_rng(7)
        for _ in range(kills):
            instant = time.monotonic() + rng.uniform(1, 10)
            kill_when(evaluate, tmp_path, lambda instant=instant: time.monotonic() > instant)
        run(evaluate, tmp_path)
    for path in (tmp_path / "whole").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()
    names = [
        {str(path.relative_to(tmp_path / out)) for path in (tmp_path / out).rglob("*")} for out in ("whole", "killed")
    ]
    assert {name for name in names[1] if ".tmp" not in name} == names[0]
