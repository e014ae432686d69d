"""Reading files that others made: regular files alone, and never more of them than a limit, packed or not.

Whatever is wrong with a file is an `IntakeError`, which says what in a word and in a sentence.
"""

from __future__ import annotations

import bz2
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal

from harps_dist.errors import ConfigError, HarpsDistError
from harps_dist.text import cleaned, printable

MAX_TEXT_BYTES = 2**20  # of settings that a person writes
GZIP, BZIP2, COMPRESS = b"\x1f\x8b", b"BZh", b"\x1f\x9d"

Fault = Literal["unreadable", "not_regular", "too_large", "truncated", "checksum", "foreign"]


class IntakeError(HarpsDistError):
    """A file that cannot be taken in, and why, in a word."""

    def __init__(self, fault: Fault, detail: str):
        super().__init__(detail)
        self.fault = fault


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading; a folder, a pipe, a device or a socket is refused, and no pipe is waited for.

    Raises IntakeError.
    """
    try:
        _require_regular(os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise IntakeError("unreadable", f"expected a readable file, got {named(error)}") from None
    with os.fdopen(descriptor, "rb") as stream:
        _require_regular(os.fstat(descriptor).st_mode)  # it may have been another a moment ago
        yield stream


def read_stream(stream: IO[bytes], limit: int, begins: bytes = b"") -> bytes:
    """All of a binary stream, unpacked where it is packed by gzip or bzip2.

    limit: bytes, packed and unpacked. begins: what the content must begin with; nothing more is read where it does not.
    Raises IntakeError.
    """
    try:
        source = unpacking(stream, stream.tell())
        head = source.read(len(begins))
        if head != begins:
            got = f"{len(head)} bytes, {head!r}" if len(head) < len(begins) else repr(head)
            raise IntakeError("foreign", f"expected a file that begins {begins.decode()!r}, got {got}")
        content = head + source.read(limit + 1 - len(head))
    except EOFError:
        raise IntakeError("truncated", "the packed stream ends before its end mark") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise IntakeError("checksum", f"the gzip stream is damaged: {named(error)}") from None
    except OSError as error:
        if error.errno is None:  # of bzip2; those of the system have a number
            raise IntakeError("checksum", f"the bzip2 stream is damaged: {named(error)}") from None
        raise IntakeError("unreadable", f"expected a readable file, got {named(error)}") from None
    if len(content) > limit:
        raise IntakeError("too_large", f"expected at most {limit} bytes unpacked, got more")
    return content


def unpacking(stream: IO[bytes], start: int = 0) -> IO[bytes]:
    """A stream, unpacked while it is read where it is packed by gzip or bzip2. start: where it stands.

    Raises IntakeError for one that is packed by compress (.Z), which Python cannot unpack.
    """
    head = stream.read(len(BZIP2))
    stream.seek(start)
    if head.startswith(COMPRESS):
        raise IntakeError("unreadable", "expected gzip, bzip2 or no packing, got compress (.Z): uncompress it")
    if head.startswith(GZIP):
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    return bz2.BZ2File(stream) if head == BZIP2 else stream


def read_file(path: Path, limit: int, begins: bytes = b"") -> bytes:
    """All of a regular file, as `read_stream`. Raises IntakeError."""
    with open_regular(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > limit:
            raise IntakeError("too_large", f"expected at most {limit} bytes, got {size}")
        return read_stream(stream, limit, begins)


def read_text(path: Path, what: str, error: type[HarpsDistError] = ConfigError, limit: int = MAX_TEXT_BYTES) -> str:
    """A text that a person wrote, UTF-8 with or without a mark. what: it is called so in messages.

    Raises FileNotFoundError where there is none, and `error` where it cannot be read.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(path)
    try:
        return read_file(path, limit).decode("utf-8-sig")
    except (IntakeError, UnicodeDecodeError) as wrong:
        raise error(f"{what} {printable(path)} cannot be read: {wrong}. Give a text file in UTF-8.") from None


def named(error: BaseException) -> str:
    """An error's kind and message on one line."""
    return cleaned(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)


def _require_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    got = kinds.get(stat.S_IFMT(mode), "device")
    raise IntakeError("not_regular", f"expected a file, got a {got}")
