"""Checksums without Python's lock are those of google_crc32c."""

from __future__ import annotations

import os

import google_crc32c
import pytest

from harps_dist.data import checksum


@pytest.mark.parametrize("direct", [True, False])
def test_checksums_are_those_of_google_crc32c(direct, monkeypatch):
    if not direct:
        monkeypatch.setattr(checksum, "_FUNCTION", None)
    elif checksum._FUNCTION is None:
        pytest.skip("google_crc32c brings no C library here that can be called directly")
    assert checksum.crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogues
    for size in (0, 1, 1000, 100_003):
        content = os.urandom(size)
        assert checksum.crc32c(content) == google_crc32c.value(content)
