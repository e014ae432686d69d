"""Read samples from shards: one `pread` each, every byte checked."""

from __future__ import annotations

import os
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from harps_dist.data.manifest import Index, Manifest, read_index, read_manifest
from harps_dist.errors import ReleaseError

_CACHED_RESPONSES = 128


class Release:
    """A release opened for reading. Cheap to pickle: files are opened where they are first read."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.index: Index = read_index(self.path, self.manifest)
        self.grid = self.manifest.grid.grid()
        self.source_grid = self.grid.widened(self.manifest.source_margin)
        self._response_row = {self.index["key"][row]: row for row in self.index.rows("response")}
        self._files: dict[str, int] = {}
        self.response = lru_cache(_CACHED_RESPONSES)(self._response)

    def __reduce__(self) -> tuple[type[Release], tuple[Path]]:
        return type(self), (self.path,)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def array(self, row: int) -> np.ndarray:
        """The array of one sample: (pixel,) flux, (source pixel,) SED, or (3, source pixel) response; float32.

        Raises ReleaseError naming shard and sample where the bytes are missing or not those that were packed.
        """
        index = self.index
        shard, size = index["shard"][row], int(index["bytes"][row])
        content = os.pread(self._file(shard), size, int(index["offset"][row]))
        if len(content) != size or zlib.crc32(content) != index["crc32"][row]:
            raise ReleaseError(
                f"sample {index['key'][row]} in shard {self.path / shard} is damaged: expected {size} bytes with crc32 "
                f"{index['crc32'][row]:08x}, got {len(content)} with {zlib.crc32(content):08x}. "
                f"Copy the shard anew, or pack the release again."
            )
        return _npy(content)

    def _response(self, key: str) -> np.ndarray:
        return self.array(self._response_row[key])

    def response_of(self, row: int) -> np.ndarray:
        """(3, source pixel) mean, variance and floor of the response that a simulated sample is seen through."""
        return self.response(self.index["response"][row])

    def _file(self, shard: str) -> int:
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self.path / shard, os.O_RDONLY)
            except FileNotFoundError:
                raise ReleaseError(
                    f"shard {self.path / shard} is missing. Copy it to where the manifest lies, or pack again."
                ) from None
        return self._files[shard]

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


def _npy(content: bytes) -> np.ndarray:
    from io import BytesIO

    stream = BytesIO(content)
    major, _ = np.lib.format.read_magic(stream)
    shape, _, dtype = (np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0)(
        stream
    )
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
