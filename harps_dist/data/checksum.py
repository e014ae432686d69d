"""CRC-32C of what is read, computed without Python's lock.

google_crc32c holds the lock while it computes, so that threads would check one after another. The C library that it
brings is therefore called directly; where it brings none that can be called so, google_crc32c itself is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import google_crc32c
import numpy as np


def _of_library() -> Callable[[int, int, int], int] | None:
    """crc32c_extend of the C library, None where there is none."""
    try:
        from google_crc32c import _crc32c

        function = ctypes.CDLL(_crc32c.__file__).crc32c_extend
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_uint32
    return function


_FUNCTION = _of_library()


def crc32c(*parts: np.ndarray) -> int:
    """The 32-bit checksum of the bytes of contiguous arrays, one after another."""
    found = 0
    for part in parts:
        found = (
            _FUNCTION(found, part.ctypes.data, part.nbytes)
            if _FUNCTION
            else google_crc32c.extend(found, part.tobytes())
        )
    return found
