"""What people see of a training: a live bar on a terminal, elsewhere a line now and then. All figures are in the log.

Tested in tests/unit/test_training_progress.py.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from harps_dist.models.config import Loss
from harps_dist.spectra.labels import LABEL

SECONDS_BETWEEN_LINES = 30.0
WEIGHTS = {"unknown": "unknown_penalty"}  # fields of Loss that are not called as their part of the loss


class TrainingProgress:
    """Shows how far a run is, while the block runs.

    steps: of the whole run; it goes on behind step `first`. loss: weights of the loss parts. clock: gives seconds.
    search: weight of what the model looks for, which is the model's setting.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        first: int,
        steps: int,
        loss: Loss,
        clock: Callable[[], float] = time.monotonic,
        search: float = 0.0,
    ):
        self._search = search
        self._console, self._first, self._steps, self._loss, self._clock = console, first, steps, loss, clock
        self._began = clock()
        self._next_line = self._began  # when a line may be printed again
        self._bar: Progress | None = None
        if console.is_terminal:
            name_of, says = TextColumn("{task.description}"), TextColumn("{task.fields[says]}")
            columns = (name_of, BarColumn(20), MofNCompleteColumn(), says)
            self._bar = Progress(*columns, console=console, disable=console.quiet)
            self._task = self._bar.add_task(name, total=steps, completed=first, says="")

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        """A step was taken."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def figures(self, line: dict[str, Any]) -> None:
        """The figures of a step, as the log has them, are there."""
        says, step, now = self._says(line), line["step"], self._clock()
        if self._bar:
            self._bar.update(self._task, completed=step, says=says)
        elif now >= self._next_line or step == self._steps:
            self._console.print(f"step {step:,}/{self._steps:,}  {says}", highlight=False, soft_wrap=True)
            self._next_line = now + SECONDS_BETWEEN_LINES

    def _says(self, line: dict[str, Any]) -> str:
        parts = [f"loss {total_loss(line, self._loss, self._search):.3g}"]
        if self._bar:  # which has little room
            parts += [f"{line['spectra_per_s']:.3g} spectra/s", f"{line['data_wait']:.0%} waiting"]
        else:
            parts += [f"lr {line['learning_rate']:.1e}".replace("e-0", "e-"), f"{line['spectra_per_s']:.3g} spectra/s"]
        if line["step"] > self._first:
            a_step = (self._clock() - self._began) / (line["step"] - self._first)
            parts.append(f"{duration(a_step * (self._steps - line['step']))} left")
        return "  ".join(parts)


def total_loss(line: dict[str, Any], loss: Loss, search: float = 0.0, prefix: str = "loss_") -> float:
    """The weighted sum of the parts of the loss in a line of the log."""
    parts = {key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)}
    found = search * parts.pop("found", 0.0)
    return found + sum(getattr(loss, WEIGHTS.get(name, name)) * value for name, value in parts.items())


def duration(seconds: float) -> str:
    """A time in one or two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def validation_words(line: dict[str, Any], observed: str) -> str:
    """What the last validation found, of a line of the log; empty where it has none.

    observed: what spectra that are not simulated are called, such as "real".
    """
    if "validation_loss" not in line:
        return ""
    parts = {
        name.removeprefix("validation_"): value
        for name, value in line.items()
        if name.startswith("validation_") and name != "validation_loss"
    }
    each = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    first = f"validation at step {line['step']:,}: loss {line['validation_loss']:.3g}{f' ({each})' if each else ''}"
    errors = (_error_words(line, kind, name) for kind, name in (("real", observed), ("simulated", "simulated")))
    return "\n".join([first, *filter(None, errors)])


def _error_words(line: dict[str, Any], kind: str, name: str) -> str:
    prefix = f"mae_{kind}_"
    errors = {LABEL[key.removeprefix(prefix)]: value for key, value in line.items() if key.startswith(prefix)}
    words = ", ".join(f"{label.name} {value:.3g} {label.unit}".rstrip() for label, value in errors.items())
    return f"mean errors, {name} spectra: {words}" if words else ""


def next_command(name: str, run: Path, called: str) -> str:
    """How to call another command on a run, in the form in which the user called this one: `called`."""
    script = Path(called)
    how = f"python {script.with_name(f'{name}.py')}" if script.suffix == ".py" else f"harps-dist {name}"
    return f"next: {how} {shlex.quote(str(run))}"
