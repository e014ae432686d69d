"""Everything that a GPU can tell, in one run and one JSON file: `make gpu`, or `python -m tests.gpu.measure --out OUT`.

Tests of tests/gpu; `benchmark step` of an encoder, a ResNet decoder and two autoencoders on the full grid, beside what
training reports in a minute of each; reading, inference; which kernels a step is made of. It runs the commands that
users run, fetches nothing, and makes its release itself. What fails is noted, and the rest goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from harps_dist.console import EXIT_INTERRUPTED
from harps_dist.runs.log import read_log
from preprocessing.demo import DemoSize
from tests.gpu.full_grid import build_full_grid

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("cnn-etc", "resnet-etc", "ae-mix", "ae-phys")
_TOP = 20  # kernels of a profile
_TAIL = 2000  # characters of what a command printed


class Session:
    """Commands that run one after the other, and what they found. seconds: until when new ones are begun."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.found = folder, {}
        self._started, self._seconds = time.monotonic(), seconds

    def run(self, name: str, *arguments: object, limit_s: float = 240, fine: tuple[int, ...] = (0,)) -> bool:
        """Run Python with arguments in the folder; False where it failed or there was no time left.

        fine: exit codes that are no failure.
        """
        left = self._seconds - (time.monotonic() - self._started)
        if left < 20:
            self.found[name] = {"left_out": "no time was left"}
            return False
        started = time.monotonic()
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        log = self.folder / f"{name}.log"
        try:
            with log.open("w") as printed:
                code = subprocess.run(
                    [sys.executable, *map(str, arguments)],
                    cwd=self.folder,
                    env=os.environ | {"PYTHONPATH": paths},
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    timeout=min(limit_s, left),
                    check=False,
                ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        taken = round(time.monotonic() - started, 1)
        print(f"{name}: {'done' if code in fine else f'failed ({code})'} in {taken} s", flush=True)
        self.found[name] = {"seconds": taken}
        if code not in fine:
            self.found[name] |= {"failed": code, "tail": log.read_text(errors="replace")[-_TAIL:]}
        return code in fine

    def keep(self, name: str, **content: object) -> None:
        self.found[name] |= content

    def printed(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def json(self, file: str) -> Any:
        return json.loads((self.folder / file).read_text())


def measure(
    out: Path,
    seconds: float = 520,
    rehearse: Annotated[bool, tyro.conf.arg(help="On the CPU, as small as can be.")] = False,
) -> None:
    """Measure, and write everything to a JSON file.

    Args:
        out: The file, or a folder, in which it is named after the device.
        seconds: After which nothing new is begun.
    """
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use. --rehearse runs all of it, as small as can be, on a CPU.")
    device = "cpu" if rehearse else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(Path(scratch), seconds)
        _run_all(session, rehearse)
    if out.is_dir():
        out /= f"gpu-{re.sub('[^a-z0-9]+', '-', device.lower())}.json"
    content = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, **session.found}
    out.write_text(json.dumps(content, indent=1) + "\n")
    failed = [name for name, part in session.found.items() if {"failed", "left_out"} & part.keys()]
    print(f"{out}: {len(session.found)} parts" + (f", of which failed or were left out: {failed}" if failed else ""))


def _run_all(session: Session, rehearse: bool) -> None:
    size = DemoSize(stars=40, visits=2, seds=160, etc_runs=8, cores=0, grid="tiny", split=(0.7, 0.15, 0.15))
    grid, part_s, small = "harps", 1.5, ()
    if rehearse:
        size, grid, part_s = size.model_copy(update={"stars": 12, "seds": 24}), "tiny", 0.02
        small = ("--batches", 4)
    with ThreadPoolExecutor() as pool:  # tests are not timed
        building = pool.submit(build_full_grid, session.folder / "release", size, grid)
        _tested(session, rehearse)
        release = building.result()
    device = "cpu" if rehearse else "cuda"
    for recipe in RECIPES[: 1 if rehearse else None]:
        command = (ROOT / "launch/benchmark.py", "step", recipe, "--release", release, "--seconds", part_s, *small)
        if session.run(f"step {recipe}", *command, "--json", f"{recipe}.json"):
            session.keep(f"step {recipe}", **session.json(f"{recipe}.json"))
        short = ("--max-minutes", 1)
        if rehearse:
            short = ("--training.steps", 4, "--training.batch-size", 4, "--log.every", 1)
        command = (ROOT / "launch/train.py", recipe, "--data.release", release, "--out", recipe, *short)
        if session.run(f"training {recipe}", *command, fine=(0, EXIT_INTERRUPTED)):
            lines = read_log(session.folder / recipe)
            rates = [line["spectra_per_s"] for line in lines[len(lines) // 2 :]]
            rate = statistics.median(rates) if rates else None
            last = {key: lines[-1][key] for key in ("step", "data_wait", "peak_memory_gb")} if lines else {}
            chosen = re.findall(r"chosen for .*", session.printed(f"training {recipe}"))
            session.keep(f"training {recipe}", spectra_per_s=rate, chosen=chosen, **last)
    _profiled(session, release, rehearse)
    where = ("--release", release, "--device", device, "--samples", 8 if rehearse else 64, "--seconds", part_s)
    fused = "--no-compile" if rehearse else "--compile"
    if session.run("data", ROOT / "launch/benchmark.py", "data", *where, fused,
                   "--workers", *((1,) if rehearse else (1, 2, 4, 8)), "--json", "data.json"):  # fmt: skip
        session.keep("data", **session.json("data.json"))
    chosen = ("demo-cnn-mix",) if rehearse else RECIPES
    command = (ROOT / "launch/benchmark.py", "speed", *chosen, "--grid", grid, "--device", device, "--seconds", part_s)
    if session.run("inference", *command, "--json", "speed.json"):
        session.keep("inference", **session.json("speed.json"))


def _profiled(session: Session, release: Path, rehearse: bool) -> None:
    """What the kernels of a few steps of the encoder take, those that take most first."""
    more = ("--training.batch-size", 4) if rehearse else ()
    command = (ROOT / "launch/train.py", RECIPES[0], "--data.release", release, "--out", "profiled", "--profile", 3)
    if not session.run("profile", *command, "--training.steps", 8, "--log.validate-every", 1000, *more):
        return
    kind = "cpu_op" if rehearse else "kernel"
    events = session.json("profiled/trace-rank0.json")["traceEvents"]
    taken, calls = Counter(), Counter()
    for event in events:
        if event.get("cat") == kind:
            taken[event["name"][:120]] += event["dur"] / 1e3
            calls[event["name"][:120]] += 1
    top = [{"kernel": name, "ms": round(ms, 3), "calls": calls[name]} for name, ms in taken.most_common(_TOP)]
    session.keep("profile", steps=3, ms=round(sum(taken.values()), 3), top=top)


def _tested(session: Session, rehearse: bool) -> None:
    """The tests that need a GPU, and, where NVIDIA's sanitizer is there, the kernels under it."""
    tests = (ROOT / "tests/gpu", "-q", "-p", "no:cacheprovider", "--rootdir", ROOT)
    session.run("tests", "-m", "pytest", *tests, *(() if rehearse else ("-n", 6)))
    session.keep("tests", summary=session.printed("tests").strip().splitlines()[-1:])
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        session.found["sanitizer"] = {"left_out": "compute-sanitizer is not installed"}
        return
    run = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    kernels = (ROOT / "tests/gpu/test_kernels_on_gpu.py", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", ROOT)
    session.run("sanitizer", "-c", run, sanitizer, "--error-exitcode", 9, sys.executable, "-m", "pytest", *kernels)


if __name__ == "__main__":
    tyro.cli(measure)
