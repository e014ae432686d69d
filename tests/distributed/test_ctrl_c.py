"""Ctrl-C in a training saves, alone and under torchrun; a second one ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harps_dist.ranks.preemption import StopRequest
from harps_dist.runs.checkpoint import newest_checkpoint
from harps_dist.runs.log import read_log
from tests.commands import TINY, command, environment, run


def begin(release: Path, steps: int, ranks: int) -> list[str]:
    arguments = ("demo-cnn-mix", "--data.release", release, "--out", "run", "--training.steps", steps, *TINY)
    return command("launch/train.py", *arguments, ranks=ranks)


def started(arguments: list[str], folder: Path) -> subprocess.Popen:
    """The command once it has taken a few steps; what it prints goes into folder/printed."""
    with (folder / "printed").open("w") as printed:
        process = subprocess.Popen(
            arguments, cwd=folder, env=environment(), stdout=printed, stderr=printed,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(read_log(folder / "run")) < 3:
        assert process.poll() is None, (folder / "printed").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_saves_and_the_same_command_goes_on(tiny_release, tmp_path, ranks):
    process = started(begin(tiny_release, 100_000, ranks), tmp_path)
    process.send_signal(signal.SIGINT)
    code = process.wait(60)
    said = (tmp_path / "printed").read_text()
    assert code == (75 if ranks == 1 else 1), said  # torchrun has codes of its own
    saved, passed_over = newest_checkpoint(tmp_path / "run/checkpoints")
    assert saved is not None, said
    assert passed_over == []
    sentence = "stopped by Ctrl-C. Give the same command again to go on. "
    sentence += f"(run at step {saved.step} of 100000, saved)"
    assert [line for line in said.splitlines() if line.startswith("stopped by")] == [sentence], said
    assert "terminate called" not in said
    assert "KeyboardInterrupt" not in said
    if ranks == 1:
        assert "Traceback" not in said
        again = [*begin(tiny_release, 100_000, ranks), "--max-minutes", "0.01"]
        assert "resuming run" in run(again, tmp_path, expect=75)


def test_a_second_ctrl_c_ends_at_once():
    code = """import os, signal
from harps_dist.ranks.preemption import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
with (stop := StopRequest()).at_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    print(stop.reason, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still there", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "Ctrl-C\n"), done.stderr


def test_ctrl_c_is_an_interrupt_again_after_the_training():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest().at_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is not before or before is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before
