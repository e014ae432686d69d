"""Items read ahead by threads, in order.

Reading, checksums (`data/checksum.py`), decompression and NumPy's work on large arrays release Python's lock, so that
threads read side by side; and what they read is in the memory of the process that wants it, where processes would copy
it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
AHEAD = 4  # items that each thread may be ahead


def read_ahead(read: Callable[[int], T], numbers: Iterable[int], threads: int) -> Iterator[T]:
    """read(number) for every number, in order, by so many threads at a time; 0 reads in this one, when asked.

    What a read raises is raised where its item would have come. Once the iterator is closed, nothing more is begun.
    """
    if not threads:
        yield from map(read, numbers)
        return
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        for number in numbers:
            pending.append(pool.submit(read, number))
            if len(pending) > AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
