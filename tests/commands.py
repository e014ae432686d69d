"""Run the launch scripts as a user does, from tests."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.starting import Started, Starter, can_start

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--parent", "None", "--model.width", "0.25", "--training.batch-size", "12", "--log.every", "1")


def command(script: str, *arguments: object, ranks: int = 1) -> list[str]:
    """The command line of a script of the launch room, or of a test's worker, on so many ranks."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, str(ROOT / script), *map(str, arguments)]


def environment(gpu: bool = False) -> dict[str, str]:
    """Of a command; without `gpu` it takes the CPU, on which runs are compared bit by bit and ranks share cores."""
    seen = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"} | seen


@functools.cache
def _starter() -> Starter:
    return Starter(environment())


def run(arguments: Sequence[str], cwd: Path, expect: int | None = 0, gpu: bool = False, fresh: bool = False) -> str:
    """Run a command; returns what it printed, and fails with it where the exit code is not the expected one.

    fresh: whether Python, and torchrun, are started for it.
    """
    with tempfile.TemporaryFile() as output:
        if can_start(arguments) and not (gpu or fresh):
            code = _starter().start(arguments, cwd, environment(), output.fileno()).wait()
        else:
            done = subprocess.run(
                arguments, cwd=cwd, env=environment(gpu), stdout=output, stderr=subprocess.STDOUT, check=False
            )
            code = done.returncode
        output.seek(0)
        printed = output.read().decode()
    assert expect is None or code == expect, f"exit code {code}:\n{printed[-6000:]}"
    return printed


def kill_when(
    arguments: Sequence[str],
    cwd: Path,
    ready: Callable[[], bool],
    patience_s: float = 120,
    gpu: bool = False,
    fresh: bool = False,
) -> int:
    """Start a command and kill -9 it with all its descendants as soon as `ready()`; returns its exit code.

    fresh: whether Python, and torchrun, are started for it, so that it may be killed while it imports.
    """
    process: Started | subprocess.Popen[bytes]
    with open(os.devnull, "wb") as nothing:
        if can_start(arguments) and not (gpu or fresh):
            process = _starter().start(arguments, cwd, environment(), nothing.fileno())
        else:
            process = subprocess.Popen(arguments, cwd=cwd, env=environment(gpu), stdout=nothing, stderr=nothing)
    deadline = time.monotonic() + patience_s
    while process.poll() is None and not ready():
        assert time.monotonic() < deadline, "the command was not ready to be killed in time"
        time.sleep(0.01)
    if process.poll() is None:
        for pid in _with_descendants(process.pid):  # torchrun's workers are in sessions of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return process.wait()


def _with_descendants(pid: int) -> list[int]:
    children: list[str] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            children += thread.read_text().split()
    return [pid, *(inner for child in children for inner in _with_descendants(int(child)))]
