"""Ranks as each launcher starts and stops them; srun is tested with SLURM."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harps_dist.runs.checkpoint import newest_checkpoint
from harps_dist.runs.log import read_log
from tests.commands import ROOT, TINY, command, environment, run


def test_torchrun_hands_sigusr1_on_and_all_ranks_save(tiny_release, tmp_path):
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 100_000, *TINY)
    launched = command("launch/train.py", *arguments, ranks=2)
    script = launched.index(str(ROOT / "launch/train.py"))
    handed_on = ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout=60"]
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [*launched[:script], *handed_on, *launched[script:]],
            cwd=tmp_path, env=environment(), stdout=printed, stderr=printed,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while len(read_log(tmp_path / "run")) < 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 1
    said = (tmp_path / "printed").read_text()
    sentence = "stopped by SIGUSR1. Give the same command again to go on. (run at step"
    assert sum(line.startswith(sentence) for line in said.splitlines()) == 1, said
    saved, passed_over = newest_checkpoint(tmp_path / "run/checkpoints")
    assert saved is not None
    assert passed_over == []
    assert saved.step == read_log(tmp_path / "run")[-1]["step"]


@pytest.mark.slow
def test_the_deepspeed_launcher(tiny_release, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    launcher = [sys.executable, str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2"]
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--training.steps", 2, *TINY)
    chosen = ("--strategy", "deepspeed", "--zero", 2)
    started = command("launch/train.py", *arguments, *chosen, "--out", "launched")
    run([*launcher, *started[1:]], tmp_path)
    run(command("launch/train.py", *arguments, *chosen, "--out", "run", ranks=2), tmp_path, fresh=True)
    weights = [tmp_path / out / "checkpoints/step-00000002/model.safetensors" for out in ("launched", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_mistake_under_torchrun_is_told_once_and_again_at_the_end(tmp_path):
    wrong = command("launch/train.py", "demo-cnn-mix", "--data.release", "nowhere", ranks=2)
    printed = run(wrong, tmp_path, expect=1, fresh=True)
    sentences = [line for line in printed.splitlines() if "ReleaseError: " in line]
    assert sum(line.startswith("ReleaseError: ") for line in sentences) == 1, printed
    assert any(line.startswith("  traceback : ReleaseError: ") for line in sentences), printed  # torchrun's summary
    assert "To enable traceback see" not in printed
    assert "terminate called" not in printed
