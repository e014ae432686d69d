"""No warning that a user can do nothing about: training, alone and on two ranks, and evaluation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.commands import TINY, command, environment


def warned(arguments: list[str], folder: Path) -> list[str]:
    """Lines of warnings that a command prints, with all of Python's turned on."""
    done = subprocess.run(
        arguments, cwd=folder, env=environment() | {"PYTHONWARNINGS": "default"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "Warning" in line]


@pytest.mark.slow
def test_training_and_evaluating_warn_of_nothing(tiny_release, tmp_path):
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--training.steps", 2, *TINY)
    for ranks in (1, 2):
        train = command("launch/train.py", *arguments, "--out", f"run{ranks}", ranks=ranks)
        assert warned(train, tmp_path) == []
    assert warned(command("launch/evaluate.py", "run1"), tmp_path) == []
