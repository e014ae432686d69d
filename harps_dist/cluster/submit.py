"""Hand the paper's rows to SLURM: an array of those that need no other, an array of the rest, a report after them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harps_dist.errors import ConfigError
from harps_dist.recipes import find_recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "slurm/reproduce.sbatch"


def submit_rows(recipes: Sequence[str], runs: Path, settings: Mapping[str, object], options: str) -> list[str]:
    """Submit the recipes as arrays, and a job that reports when all have ended, well or not; returns their job ids.

    Recipes whose parent is among them wait until all that have none among them have succeeded. settings: options of
    launch/reproduce.py, by name. options: of sbatch, for the arrays, such as "--gres=gpu:4 --time=2-00". Logs go into
    `runs`. Raises ConfigError where sbatch is missing or refuses.
    """
    arguments = [str(runs.resolve()), *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
    first = [name for name in recipes if find_recipe(name).parent not in recipes]
    stages = [first, [name for name in recipes if name not in first]]
    jobs: list[str] = []
    runs.mkdir(parents=True, exist_ok=True)
    for names in filter(None, stages):
        waiting = [f"--dependency=afterok:{jobs[-1]}"] if jobs else []
        logs = f"--output={runs.resolve()}/%x-%A_%a.log"
        array = [f"--array=0-{len(names) - 1}", logs, *shlex.split(options)]
        jobs.append(sbatch(*waiting, *array, SCRIPT, " ".join(names), *arguments))
    report = shlex.join([sys.executable, "launch/reproduce.py", *arguments])
    after = [f"--dependency=afterany:{':'.join(jobs)}"] if jobs else []
    return [*jobs, sbatch(*after, "--job-name=report", f"--output={runs.resolve()}/%x-%j.log", "--wrap", report)]


def sbatch(*arguments: str) -> str:
    """Submit from the folder of the project; the job id."""
    environment = os.environ | {"PYTHON": sys.executable}
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise ConfigError("there is no sbatch here. Run on a SLURM login node, or without --slurm.") from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"sbatch refused {shlex.join(arguments)}: {error.stderr.strip()}") from None
    return done.stdout.strip().partition(";")[0]
