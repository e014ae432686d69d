"""Where a release lies: a folder, or a URL of a web server or an object store, read by byte ranges.

What comes over the network is kept in blocks of some megabytes in a folder of bounded size, which all processes of a
machine share; the least recently used go first.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from io import BufferedIOBase, BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

from pydantic import Field

from harps_dist.errors import DiskFullError, ReleaseError
from harps_dist.files import ASIDE, atomic_write
from harps_dist.frozen import Frozen

_RETRIES = 8
_BLOCK = re.compile(r"[\w-]+-\d+-\d+\.block")
_ABANDONED_S = 3600  # no block takes that long to write
_ANNOUNCED = 512  # blocks of a pool or so


class Cache(Frozen):
    """Where blocks of a remote release are kept, and how much of them; a release in a folder needs none."""

    folder: str = "~/.cache/harps_dist"
    """Folder that keeps blocks of a remote release, for all processes of a machine."""
    gb: float = Field(50.0, gt=0)
    """Largest size of that folder [GB]; the least recently used blocks go first."""


class Span(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


class Store(Protocol):
    """The files of one release. Methods raise ReleaseError where a file is missing or cannot be had."""

    def whole(self, name: str, missing: str) -> bytes:
        """All bytes of a file; `missing` says what to do where there is none."""
        ...

    def read(self, name: str, start: int, into: list[memoryview], block: Span) -> int:
        """Fill memory, one piece after another, with bytes of a file from `start` on, and say how many there were.

        These are fewer where the file ends before. `block`, around them, will be read soon.
        """
        ...

    def forget(self, name: str, block: Span) -> bool:
        """Drop a copy of a block that proved damaged; whether there was one, so that reading again may help."""
        ...

    def close(self) -> None: ...


def open_store(location: str | Path, cache: Cache) -> Store:
    """The store of a release: of a path, or of an http(s)://, s3://, gs:// or az:// URL."""
    return RemoteStore(str(location), cache) if "://" in str(location) else LocalStore(Path(location))


class LocalStore:
    """A folder. Blocks are announced to the kernel, which reads them ahead in one go for all processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, int] = {}
        self._opening = Lock()
        self._announced: set[tuple[str, Span]] = set()

    def whole(self, name: str, missing: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise ReleaseError(f"{self.folder / name} is missing. {missing}") from None

    def read(self, name: str, start: int, into: list[memoryview], block: Span) -> int:
        file = self._file(name)
        if (name, block) not in self._announced:
            if len(self._announced) >= _ANNOUNCED:  # by then the first ones may have left the page cache
                self._announced.clear()
            self._announced.add((name, block))
            with contextlib.suppress(OSError, AttributeError):  # not every system and file system knows it
                os.posix_fadvise(file, *block, os.POSIX_FADV_WILLNEED)
        return os.preadv(file, into, start)

    def forget(self, name: str, block: Span) -> bool:
        return False

    def _file(self, name: str) -> int:
        with self._opening:
            if name not in self._files:
                try:
                    self._files[name] = os.open(self.folder / name, os.O_RDONLY)
                except FileNotFoundError:
                    raise ReleaseError(
                        f"shard {self.folder / name} is missing. Copy it to where the manifest lies, or pack again."
                    ) from None
            return self._files[name]

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


def _fill(into: list[memoryview], file: BufferedIOBase, start: int) -> int:
    file.seek(start)
    return sum(file.readinto(part) for part in into)


class RemoteStore:
    """A URL, read through the bounded cache. Failed requests are repeated with growing delays."""

    def __init__(self, url: str, cache: Cache):
        try:
            import stamina  # noqa: F401
            from obstore.store import from_url
        except ImportError:
            raise ReleaseError(
                f"reading {url} needs obstore and stamina: pip install 'harps_dist[remote]', or copy the release to "
                f"a folder."
            ) from None
        self.url, self.cache = url.rstrip("/"), cache
        plain = url.startswith("http://") or os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        options: Any = {"allow_http": True} if plain else {}
        self._store = from_url(self.url, client_options=options, retry_config={"max_retries": 0})  # type: ignore[call-overload]
        self._folder = Path(cache.folder).expanduser()
        self._asking: defaultdict[Path, Lock] = defaultdict(Lock)  # one a block, which is fetched once

    def whole(self, name: str, missing: str) -> bytes:
        import obstore

        return self._ask(
            name, f"{self.url}/{name} is missing. {missing}", lambda: obstore.get(self._store, name).bytes()
        )

    def read(self, name: str, start: int, into: list[memoryview], block: Span) -> int:
        kept = self._kept(name, block)
        with self._asking[kept]:
            try:
                with kept.open("rb") as file:
                    found = _fill(into, file, start - block.start)
                os.utime(kept)
            except FileNotFoundError:
                whole = self._fetch(name, block)
                self._keep(kept, whole)
                found = _fill(into, BytesIO(whole), start - block.start)
        return found

    def forget(self, name: str, block: Span) -> bool:
        kept = self._kept(name, block)
        there = kept.exists()
        kept.unlink(missing_ok=True)
        return there

    def _fetch(self, name: str, block: Span) -> bytes:
        import obstore

        return self._ask(
            name,
            f"shard {self.url}/{name} is missing. Upload it beside the manifest.",
            lambda: obstore.get_range(self._store, name, start=block.start, length=block.size),
        )

    def _ask(self, name: str, missing: str, request: Callable[[], Any]) -> bytes:
        """Ask until there is an answer, _RETRIES times at most; a file that is not there is asked for once."""
        from stamina import retry_context

        try:
            for attempt in retry_context(
                on=lambda error: not isinstance(error, FileNotFoundError), attempts=1 + _RETRIES, timeout=180
            ):
                with attempt:
                    return bytes(request())
        except FileNotFoundError:
            raise ReleaseError(missing) from None
        except Exception as error:  # obstore's are its own kinds
            reason = str(error).split("\n", 1)[0]
            raise ReleaseError(
                f"{self.url}/{name} could not be read after {_RETRIES} retries: {reason}. Check the address, the "
                f"network and the credentials, or copy the release to a folder."
            ) from error
        raise AssertionError("unreachable")

    def _kept(self, name: str, block: Span) -> Path:
        return self._folder / f"{Path(name).stem}-{block.start}-{block.size}.block"

    def _keep(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room(len(content))
        try:
            with atomic_write(path) as aside:
                aside.write_bytes(content)
        except DiskFullError as error:
            raise DiskFullError(
                f"{error} The cache may also be given less (--data.cache.gb, now {self.cache.gb:g}) or another folder "
                f"(--data.cache.folder)."
            ) from None

    def _make_room(self, size: int) -> None:
        """Remove the least recently used blocks until `size` more bytes fit; another process may do the same."""
        blocks = []
        for entry in os.scandir(self._folder):
            aside = ASIDE.fullmatch(entry.name)
            if not _BLOCK.fullmatch(aside[1] if aside else entry.name):  # of someone else
                continue
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                if not aside:
                    blocks.append((found.st_mtime_ns, found.st_size, entry.path))
                elif found.st_mtime < time.time() - _ABANDONED_S:  # its writer was killed
                    os.unlink(entry.path)
        total = sum(bytes_ for _, bytes_, _ in blocks) + size
        for _, bytes_, path in sorted(blocks):
            if total <= self.cache.gb * 1e9:
                return
            Path(path).unlink(missing_ok=True)
            total -= bytes_

    def close(self) -> None:
        """Nothing is held open."""
