"""Writing files so that a half-written one is never taken for a whole one.

Tested in tests/integration/test_outputs_again.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harps_dist.errors import DiskFullError

ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # what is written aside, by the name that it is to get
_FULL = re.compile(r"No space left on device|Disk quota exceeded|\(os error (28|122)\)")  # as libraries in Rust say it


@contextmanager
def atomic_write(path: Path, name: Callable[[Path, Path], Path] = lambda path, aside: path) -> Iterator[Path]:
    """Write a file aside, then put it in place in one step.

    name: what the file is called, from `path` and where it was written; `path` itself by default.

    Yields a path in the same folder (it must exist) for the caller to write to. When the block ends, file
    and folder are flushed to disk and the file takes the name `path`. When the block raises, what was
    written aside is removed and the old content of `path`, if any, is untouched. After a kill -9 a hidden
    `.name.xxxxxxxx.tmp` may stay behind; nothing ever reads it, and `remove_leftovers` removes it.
    """
    path = Path(path)
    aside = _aside(path)
    with full_disk_named(path):
        try:
            yield aside
            _flush(aside)
            os.replace(aside, name(path, aside))
            _flush(path.parent)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise


@contextmanager
def publish_folder(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Write a folder aside, then put it in place in one step, replacing what stood there.

    Yields an empty folder beside `path`. The same promises as `atomic_write`, but for one instant between
    moving an old folder away and renaming the new one, in which neither is there under its name. check: raises where
    what stands there by then may not be replaced.
    """
    path = Path(path)
    aside, old = _aside(path), _aside(path)
    with full_disk_named(path):
        try:
            aside.mkdir()
            yield aside
            for file in (*aside.rglob("*"), aside):
                _flush(file)
            check()
            if path.exists():
                os.rename(path, old)
            os.replace(aside, path)
            _flush(path.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


def publish_file(aside: Path, path: Path) -> None:
    """Put a whole file in place in one step, flushed to disk. Raises FileExistsError where something stands there."""
    _flush(aside)
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    os.rename(aside, path)
    _flush(path.parent)


def atomic_link(path: Path, target: Path) -> None:
    """Let a symbolic link lead to `target`, as given, in one step, whether it was there or not."""
    aside = _aside(path)
    os.symlink(target, aside)
    os.replace(aside, path)
    _flush(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` that were killed left beside it; to be called where no other process writes it."""
    if not path.parent.is_dir():
        return
    with os.scandir(path.parent) as entries:
        left = [entry.path for entry in entries if (named := ASIDE.fullmatch(entry.name)) and named[1] == path.name]
    for leftover in left:
        remove(Path(leftover))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock on a file (made where missing) that ends with the process; yields whether it was free.

    The file is removed in the end. On a file system without locks it is taken for free.
    """
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as error:
            free = error.errno not in (errno.EAGAIN, errno.EACCES)
        if not free or _is_still(file.fileno(), path):
            break
        file.close()  # who held it before has removed the file meanwhile, so that the next would lock another one
    with file:
        try:
            yield free
        finally:
            if free and os.fstat(file.fileno()).st_size == 0:  # else it is someone's file
                path.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Around writing: say that the disk is full, where, and what to do, if that is what goes wrong."""
    try:
        yield
    except Exception as error:
        if is_full_disk(error):
            raise DiskFullError(
                f"no space is left to write {path}; no half-written file stays. Free some space or choose another "
                f"folder, and run the same command again."
            ) from error
        raise


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that no space is left; not one that is explained already."""
    while error is not None and not isinstance(error, DiskFullError):
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
