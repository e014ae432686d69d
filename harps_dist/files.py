"""Writing files so that a half-written one is never taken for a whole one."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harps_dist.errors import DiskFullError


@contextmanager
def atomic_write(path: Path, name: Callable[[Path, Path], Path] = lambda path, aside: path) -> Iterator[Path]:
    """Write a file aside, then put it in place in one step.

    name: what the file is called, from `path` and where it was written; `path` itself by default.

    Yields a path in the same folder (it must exist) for the caller to write to. When the block ends, file
    and folder are flushed to disk and the file takes the name `path`. When the block raises, what was
    written aside is removed and the old content of `path`, if any, is untouched. After a kill -9 a hidden
    `.name.xxxxxxxx.tmp` may stay behind; nothing ever reads it.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield aside
        _flush(aside)
        os.replace(aside, name(path, aside))
        _flush(path.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        _explain(error, path)
        raise


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Write a folder aside, then put it in place in one step, replacing what stood there.

    Yields an empty folder beside `path`. The same promises as `atomic_write`, but for one instant between
    removing an old folder and renaming the new one, in which neither is there under its name.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    aside.mkdir()
    try:
        yield aside
        for file in (*aside.rglob("*"), aside):
            _flush(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        _explain(error, path)
        raise


def atomic_link(path: Path, target: Path) -> None:
    """Let a symbolic link lead to `target`, as given, in one step, whether it was there or not."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    os.symlink(target, aside)
    os.replace(aside, path)
    _flush(path.parent)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock on a file (made where missing) that ends with the process; yields whether it was free.

    On a file system without locks it is taken for free.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as error:
            free = error.errno not in (errno.EAGAIN, errno.EACCES)
        yield free


def _explain(error: BaseException, path: Path) -> None:
    """Say where the disk is full and what to do, where that is what the error means."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(
            f"no space is left to write {path}; what was written of it is removed. Free some space or choose another "
            f"folder, and run the same command again."
        ) from error


def _flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
