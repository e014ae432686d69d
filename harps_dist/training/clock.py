"""Where the time of a training step goes.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("data", "augment", "forward", "backward", "optimizer", "comm", "step")


class StepClock:
    """Adds up the time of a step's parts on a device.

    On a GPU the parts are times between events of the stream, so that nothing waits for them. "comm" is the time in
    which gradients were on their way between ranks, most of it during "backward"; on a GPU it is not told apart.
    "step" is what a CUDA graph takes for forward, backward and optimizer, which then are not told apart.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._on_their_way, self._since, self._lock = 0, 0.0, threading.Lock()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self._device.type != "cuda" or part == "data":  # waiting for data is the CPU's
            started = time.perf_counter()
            yield
            self._seconds[part] += time.perf_counter() - started
            return
        if torch.cuda.is_current_stream_capturing():  # what is recorded is not taken
            yield
            return
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        yield
        last.record()
        self._events.append((part, first, last))

    def depart(self) -> None:
        """Gradients set out; where others are on their way already, the time counts once."""
        with self._lock:
            if not self._on_their_way:
                self._since = time.perf_counter()
            self._on_their_way += 1

    def arrive(self) -> None:
        with self._lock:
            self._on_their_way -= 1
            if not self._on_their_way:
                self._seconds["comm"] += time.perf_counter() - self._since

    def drain(self) -> dict[str, float]:
        """Seconds of every part since the last time."""
        if self._events:
            torch.cuda.synchronize(self._device)
            for part, first, last in self._events:
                self._seconds[part] += first.elapsed_time(last) / 1e3
            self._events.clear()
        found, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return found
