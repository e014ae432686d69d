"""Checksums without Python's lock are those of google_crc32c."""

from __future__ import annotations

import os

import google_crc32c
import numpy as np
import pytest

from harps_dist.data import checksum


@pytest.mark.parametrize("direct", [True, False])
def test_checksums_are_those_of_google_crc32c(direct, monkeypatch):
    if not direct:
        monkeypatch.setattr(checksum, "_FUNCTION", None)
    elif checksum._FUNCTION is None:
        pytest.skip("google_crc32c brings no C library here that can be called directly")
    digits = np.frombuffer(b"123456789", np.uint8)
    assert checksum.crc32c(digits) == 0xE3069283  # the check value of the CRC catalogues
    assert checksum.crc32c() == checksum.crc32c(digits[:0]) == 0
    assert checksum.crc32c(digits[:4], digits[4:]) == 0xE3069283
    for size in (2, 1000, 100_002):
        content = os.urandom(size)
        assert checksum.crc32c(np.frombuffer(content, np.int16)) == google_crc32c.value(content)
