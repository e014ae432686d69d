"""Being asked to stop: signals and a time limit set a flag, loops look at it between steps.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Why this process is to stop, if it is."""

    def __init__(self, max_minutes: float | None = None):
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._received: str | None = None

    @property
    def reason(self) -> str | None:
        """Name of the signal that came, or that the time is up; None to go on."""
        if self._received is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self._received = "the time limit"
        return self._received

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Let SIGTERM and SIGUSR1 set the flag, and do nothing else, while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_ctrl_c(self) -> Iterator[None]:
        """Let the first Ctrl-C (SIGINT) set the flag while the block runs; the second one ends the process at once."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
            yield  # ignored: of a command in the background, to which no Ctrl-C is meant
            return
        signal.signal(signal.SIGINT, self._receive_ctrl_c)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _receive(self, number: int, frame: object) -> None:
        self._received = signal.Signals(number).name

    def _receive_ctrl_c(self, number: int, frame: object) -> None:
        self._received = "Ctrl-C"
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # even while a library waits for another rank
