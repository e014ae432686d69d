"""What the C library does with memory that a training step has freed.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is asked for next, instead of handing it back to the system.

    A step on the CPU frees and asks for the same gigabytes over and over; taking new pages from the system is half of
    its time otherwise. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, -1)
        libc.mallopt(_MMAP_MAX, 0)
