"""Proof of what was trained on: how often each sample was seen in each epoch, against what the order prescribes.

Tested in tests/unit/test_order.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from harps_dist.data.order import Order
from harps_dist.errors import ResumeError
from harps_dist.files import atomic_write
from harps_dist.sealed import read_lines, sealed_line


class Ledger:
    """Times seen per epoch and row of the index."""

    def __init__(self, rows: int):
        self._rows = rows
        self._seen: dict[int, np.ndarray] = {}

    def add(self, rows: Iterable[int], epochs: Iterable[int]) -> None:
        """Count samples that were seen: rows (n,) of the index, drawn in epochs (n,)."""
        rows, epochs = np.asarray(list(rows)), np.asarray(list(epochs))
        for epoch in np.unique(epochs):
            counts = self._seen.setdefault(int(epoch), np.zeros(self._rows, np.int64))
            np.add.at(counts, rows[epochs == epoch], 1)

    def differences(self, order: Order, samples: int) -> list[str]:
        """How it differs from the order's first `samples`: nothing where each was seen as often as it should."""
        found = []
        epochs = range(max(-(-samples // order.epoch_length), 1 + max(self._seen, default=-1)))
        for epoch in epochs:
            part = order.epoch(epoch)[: max(0, samples - epoch * order.epoch_length)]
            due = np.bincount(part, minlength=self._rows)
            seen = self._seen.get(epoch, np.zeros_like(due))
            if wrong := np.flatnonzero(seen != due).tolist():
                row = wrong[0]
                found.append(
                    f"epoch {epoch}: {len(wrong)} samples were not seen as often as the order says; row {row} was "
                    f"seen {seen[row]} times, expected {due[row]}"
                )
        return found


class LedgerFile:
    """A ledger as JSON lines, one a step: {"step", "rows", "epochs"} of the global batch.

    step: where the run goes on; later lines, of a run that was killed behind its checkpoint, are cut off.
    Raises ResumeError where a line was changed since it was written.
    """

    def __init__(self, path: Path, step: int):
        self._path = path
        kept = [sealed_line(entry) for entry in _entries(path) if entry["step"] < step]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            aside.write_text("".join(kept), encoding="utf-8")

    def write(self, entries: Iterable[dict]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(map(sealed_line, entries))
            file.flush()
            os.fsync(file.fileno())


def read_ledger(path: Path, rows: int) -> Ledger:
    """The ledger of a run on a release whose index has so many rows.

    Raises ResumeError where a line was changed since it was written.
    """
    ledger = Ledger(rows)
    for entry in _entries(path):
        ledger.add(entry["rows"], entry["epochs"])
    return ledger


def _entries(path: Path) -> list[dict]:
    """Whole lines; the last one of a killed writer may lack its end."""
    lines, damage = read_lines(path)
    if damage:
        raise ResumeError(
            f"{'; '.join(damage)}: it proves nothing any more. Restore it from a copy, or remove it and train without "
            f"--log.ledger."
        )
    return lines
