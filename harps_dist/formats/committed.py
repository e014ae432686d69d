"""The metadata of an archive as they were committed: one document, which readers go by and which vouches for itself.

It is the root `zarr.json` with the metadata of all members consolidated in it, as Zarr v3 has it, and among its
attributes the sha256 over all of it. A commit replaces it in one step. The members' own `zarr.json`, which Zarr writes
on the way, count for nothing: they are set right by the next writer.

Tested in tests/integration/test_archive.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harps_dist.errors import ArchiveError
from harps_dist.files import atomic_write

ROOT = "zarr.json"
DIGEST = "harps_dist_digest"
FIRST_WITH_DIGEST = 4  # schema

Json = dict[str, Any]


class Committed:
    """The committed metadata of an archive at `path`; `members` may be changed, and count once `write` is called."""

    def __init__(self, path: Path, document: Json):
        self.path, self._document = path, document
        self.attributes: Json = document["attributes"]
        self.members: dict[str, Json] = document["consolidated_metadata"]["metadata"]

    @classmethod
    def read(cls, path: Path, sealed: bool = True) -> Committed:
        """Raises ArchiveError where it is missing, none of harps_dist, or not what was written. sealed: whether it must
        have a digest, as all from schema 4 on."""
        try:
            document = json.loads((path / ROOT).read_bytes())
            found = cls(path, document)
            schema = int(found.attributes["harps_dist_schema"])
        except (OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise ArchiveError(
                f"{path} is not an archive of harps_dist, or its {ROOT} is damaged ({type(error).__name__}: {error}). "
                f"Make one with `python -m preprocessing ingest`, check the path, or restore {ROOT} from a copy."
            ) from None
        stated, content = found.attributes.get(DIGEST), _digest(document)
        if stated != content and (stated is not None or (sealed and schema >= FIRST_WITH_DIGEST)):
            raise ArchiveError(
                f"{path / ROOT} is damaged: it states digest {str(stated)[:12]}, but its content has {content[:12]}. "
                f"Restore it from a copy of the archive."
            )
        return found

    def write(self) -> None:
        """Commit: replace the document in one step."""
        self.attributes[DIGEST] = _digest(self._document)
        with atomic_write(self.path / ROOT) as aside:
            aside.write_text(json.dumps(self._document, indent=1, allow_nan=False))

    def arrays(self) -> set[str]:
        return {name for name, metadata in self.members.items() if metadata["node_type"] == "array"}

    def rows(self, member: str) -> int:
        """Length of an array."""
        return int(self.members[member]["shape"][0])

    def resize(self, member: str, rows: int) -> None:
        self.members[member]["shape"][0] = rows

    def chunk_file(self, member: str, number: int) -> Path:
        """Where the `number`-th chunk (or shard) along the first axis of an array lies."""
        metadata = self.members[member]
        separator = metadata["chunk_key_encoding"]["configuration"]["separator"]
        return self.path / member / separator.join(["c", str(number), *["0"] * (len(metadata["shape"]) - 1)])

    def chunk_rows(self, member: str) -> int:
        """Rows of a chunk (or shard) of an array."""
        return int(self.members[member]["chunk_grid"]["configuration"]["chunk_shape"][0])

    def chunk_files(self, member: str) -> list[Path]:
        """The files that an array must have."""
        count = math.ceil(self.rows(member) / self.chunk_rows(member))
        return [self.chunk_file(member, number) for number in range(count)]

    def differing(self) -> Iterator[str]:
        """Members whose own metadata are not the committed ones, but for a length that a killed writer left."""
        for name, committed in self.members.items():
            found = self._found(name)
            with suppress(KeyError, TypeError, IndexError):
                found["shape"][0] = committed["shape"][0]
            if found != _own(committed):
                yield name

    def _found(self, name: str) -> Any:
        """A member's own metadata, None where they cannot be read."""
        with suppress(OSError, ValueError, RecursionError):
            return json.loads((self.path / name / ROOT).read_bytes())
        return None

    def restore(self) -> None:
        """Set the members' own metadata right."""
        for name, committed in self.members.items():
            if self._found(name) != _own(committed):
                (self.path / name).mkdir(parents=True, exist_ok=True)
                with atomic_write(self.path / name / ROOT) as aside:
                    aside.write_text(json.dumps(_own(committed), indent=1))

    def drop_strays(self) -> None:
        """Remove what a killed writer left in the folders of arrays: chunks beyond the last commit, halves of files."""
        for name in self.arrays():
            kept = {self.path / name / ROOT, *self.chunk_files(name)}
            for file in (self.path / name).rglob("*"):
                if file.is_file() and file not in kept:
                    file.unlink()


def _own(committed: Json) -> Json:
    """A member's metadata as they stand in its own file."""
    return {name: value for name, value in committed.items() if name != "consolidated_metadata"}


def _digest(document: Json) -> str:
    """sha256 over everything in the document but the digest itself."""
    attributes = {name: value for name, value in document["attributes"].items() if name != DIGEST}
    content = json.dumps(document | {"attributes": attributes}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
