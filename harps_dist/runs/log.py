"""What a run says of itself: a JSON line now and then, and Weights & Biases on request.

Tested in tests/distributed/test_kills.py.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harps_dist.config import Log
from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.sealed import digest_of, read_lines, sealed_line

if TYPE_CHECKING:
    import wandb
    from rich.console import Console

LOG = "log.jsonl"
WANDB_ID = "wandb-id.txt"
_ID_LENGTH = 8  # hexadecimal digits


class RunLog:
    """The log of one run. Opened at a step, it drops lines of later steps: those were lost with the process.

    device: what trains, such as "4 × NVIDIA H100"; the first line that is written says it.
    """

    def __init__(self, run: Path, config: Log, settings: dict, step: int, device: str, console: Console):
        self._said_once = {"device": device}
        path = run / LOG
        lines, damage = read_lines(path)
        for sentence in damage:
            console.print(f"{sentence}: it is left out", soft_wrap=True)
        with atomic_write(path) as file:
            file.write_text("".join(sealed_line(line) for line in lines if line["step"] <= step), encoding="utf-8")
        self._file = path.open("a")
        self._wandb = join_wandb(run, config, settings) if config.wandb != "disabled" else None

    def write(self, line: dict) -> None:
        """Log one step's figures, a flat dict with "step"."""
        line, self._said_once = line | self._said_once, {}
        self._file.write(sealed_line(line))
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._wandb:
            self._wandb.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    def close(self) -> None:
        self._file.close()
        if self._wandb:
            self._wandb.finish()


def join_wandb(run: Path, config: Log, settings: dict[str, Any] | None = None) -> wandb.Run:
    """The run of Weights & Biases that goes with a run, begun where there is none yet.

    settings: what it shows as its configuration. Raises ConfigError where the file with its id is damaged.
    """
    import wandb

    identity = run / WANDB_ID
    if not identity.exists():
        with atomic_write(identity) as aside:
            aside.write_text(_checked_id(secrets.token_hex(4)))
    known = identity.read_text(encoding="utf-8", errors="replace").strip()
    if known not in (known[:_ID_LENGTH], _checked_id(known[:_ID_LENGTH])):
        raise ConfigError(f"{identity} is damaged: {known!r} is no id that was given. Remove it for a new one.")
    return wandb.init(
        project=config.wandb_project,
        name=run.name,
        id=known,
        resume="allow",
        mode=config.wandb,
        dir=run,
        config=settings,
    )


def send_evaluation(run: Path, config: Log, scores: Mapping[str, float], figures: Mapping[str, Path]) -> None:
    """Add scores and figures to the run of Weights & Biases that a training began; nothing where it began none.

    scores: by name; they go into its summary. figures: PNG files by name.
    """
    if config.wandb == "disabled" or not (run / WANDB_ID).exists():
        return
    import wandb

    with join_wandb(run, config) as there:
        there.summary.update(dict(scores))
        there.log({name: wandb.Image(str(path)) for name, path in figures.items()})


def read_log(run: Path) -> list[dict]:
    """The lines of a run's log; a last line cut short by a kill is left out.

    Raises ConfigError where a line was changed since it was written.
    """
    lines, damage = read_lines(run / LOG)
    if damage:
        raise ConfigError(f"{'; '.join(damage)}. Restore the log from a copy, or remove what is damaged.")
    return lines


def lasting(run: Path) -> list[dict]:
    """The lines of a run's log without what two equal runs may differ in: device, times, rates and memory."""
    rates = ("spectra_per_s", "data_wait", "flop_utilisation", "traffic_over_bandwidth")
    passing = ("device", "ms_", "peak_memory_gb", *rates)
    return [{key: value for key, value in line.items() if not key.startswith(passing)} for line in read_log(run)]


def _checked_id(token: str) -> str:
    """An id for Weights & Biases, whose last digits follow from its first ones."""
    return token + digest_of(token)[:_ID_LENGTH]
