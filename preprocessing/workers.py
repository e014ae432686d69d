"""Processes that read files while one writes.

Tested in tests/integration/test_etc_at_scale.py.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar

from harps_dist.errors import ArchiveError

Entry = TypeVar("Entry")


@contextmanager
def processes(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, or the same over processes, which are not many results ahead of whoever takes them.

    Raises ArchiveError where a process ends before its time.
    """
    if workers <= 1:
        yield map
        return
    spawned = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        with spawned as pool:
            yield partial(_in_order, pool, 2 * workers)
    except BrokenProcessPool:
        raise ArchiveError(
            f"one of the {workers} processes that read files was killed, maybe for want of memory. Run the command "
            f"again, with fewer --workers: it goes on where it was."
        ) from None


def _in_order(
    pool: ProcessPoolExecutor, ahead: int, function: Callable[[Entry], Any], entries: Iterable[Entry]
) -> Iterator[Any]:
    pending: deque[Future[Any]] = deque()
    for entry in entries:
        pending.append(pool.submit(function, entry))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _end_with_parent() -> None:
    """In a process of a pool: end when the one that started it has been killed, which cannot say so."""
    if parent := parent_process():
        Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)
