"""Writing WebDataset shards: adjacent members, fixed times and owners, so that equal samples make equal bytes.

Tested in tests/integration/test_formats.py.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from google_crc32c import value as crc32c

from harps_dist.data.manifest import SampleKind, Shard

BLOCK_BYTES = 8 * 2**20  # what is read, cached and shuffled together


class ShardWriter:
    """One shard on its way. blocks_before: how many blocks of samples the release has in its other shards."""

    def __init__(self, folder: Path, kind: SampleKind, number: int, blocks_before: int):
        self.kind = kind
        self.blocks = blocks_before
        self._path = folder / f"{kind}-{number:06d}.tar"
        self._file = self._path.open("wb")
        self._members: list[list[tuple[str, int, int, str]]] = []
        self._block_starts = -BLOCK_BYTES

    @property
    def size(self) -> int:
        return self._file.tell()

    def add(self, key: str, description: dict[str, Any], tail: str, content: bytes | None) -> dict[str, Any]:
        """Write KEY.json and, where there is content, KEY.tail; returns where that lies: columns of the index."""
        if self.size - self._block_starts >= BLOCK_BYTES:
            self._block_starts = self.size
            self.blocks += 1
        name, where = member_name(key), {"block": self.blocks - 1, "offset": 0, "bytes": 0, "crc32c": 0}
        self._members.append([])
        self._member(name, "json", json.dumps(_without_nan(description), sort_keys=True).encode())
        if content is not None:
            where |= {"bytes": len(content), "crc32c": crc32c(content)}
            where["offset"] = self._member(name, tail, content)
        return where

    def _member(self, name: str, tail: str, content: bytes) -> int:
        info = tarfile.TarInfo(f"{name}.{tail}")
        info.size = len(content)
        self._file.write(info.tobuf(tarfile.GNU_FORMAT))
        offset = self._file.tell()
        self._file.write(content)
        self._file.write(b"\0" * (-len(content) % tarfile.BLOCKSIZE))
        self._members[-1].append((tail, offset, len(content), info.name))
        return offset

    def close(self) -> Shard:
        """Finish the tar, rename it after its content and write its .idx."""
        self._file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        size = self.size
        self._file.close()
        with self._path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"{self._path.stem}-{sha256[:12]}.tar"
        self._path.rename(self._path.with_name(name))
        index = dali_index(self._members)
        self._path.with_name(name).with_suffix(".idx").write_bytes(index)
        return Shard(
            name=name,
            sha256=sha256,
            bytes=size,
            samples=len(self._members),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )


def dali_index(members: Sequence[Sequence[tuple[str, int, int, str]]]) -> bytes:
    """Index of a tar as NVIDIA DALI's wds2idx v1.2 writes it: a line a sample, per member tail, offset, size, name."""
    lines = [f"v1.2 {len(members)}"]
    lines += [" ".join(" ".join(map(str, member)) for member in sample) for sample in members]
    return ("\n".join(lines) + "\n").encode()


def member_name(key: str) -> str:
    """A key as a tar member's stem: WebDataset cuts at the first dot, and ESO ids hold dots and colons."""
    return quote(key, safe="").replace(".", "%2E")


def _without_nan(value: Any) -> Any:
    """These values with None for NaN, which is no JSON."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if value != value else value
