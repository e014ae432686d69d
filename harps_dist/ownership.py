"""Whose is what stands where a command is to write: what it did not write itself is neither replaced nor written into.

Every output is of an `OutputKind`, which knows its own again by what it holds: a file by its metadata, a folder by a
file with fields of ours, or by a mark that was written first. `check` says before any work whether one may be written;
`claimed` does too, keeps other processes from it and removes what killed ones left. Nothing there, or an empty folder,
is anybody's.

Tested in tests/integration/test_nothing_replaced.py.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harps_dist.errors import OutputError
from harps_dist.files import ASIDE, atomic_write, exclusive, full_disk_named, remove, remove_leftovers

MARK = ".harps_dist"  # file in a folder that says what the folder is
KEY = "harps_dist"  # of metadata that say what a file is
LOCK = ".lock"
_LINE = 1 << 16  # of text files no more is read than this, to see whose they are


class OutputKind(NamedTuple):
    """What a command writes where a user says.

    name: what messages call it. option: by which another place is given. ours: whether what stands there is one; what
    it raises means that it is none. form: a file; a folder that is replaced as a whole; or a home, a folder that is
    entered and holds what others write too. names: all that a folder which is replaced may hold. marked: whether a home
    gets a mark. apart: whether a home is made by what writes it, and locked from beside. parents: whether folders that
    are missing on the way to it are made.
    """

    name: str
    option: str
    ours: Callable[[Path], bool]
    form: Literal["file", "folder", "home"] = "file"
    names: re.Pattern[str] | None = None
    marked: bool = False
    apart: bool = False
    parents: bool = True


def home(name: str, option: str, before: Callable[[Path], bool] = lambda folder: False) -> OutputKind:
    """A folder that is known by its mark. before: knows those that were written when there were no marks."""

    def ours(folder: Path) -> bool:
        mark = folder / MARK
        return json.loads(mark.read_text())[KEY] == name if mark.exists() else before(folder)

    return OutputKind(name, option, ours, "home", marked=True)


def json_file(name: str, option: str, before: Collection[str] = (), parents: bool = False) -> OutputKind:
    """A JSON file whose first key says what it is, as of `write_json`. before: all keys of one that was written when
    there were no marks."""

    def ours(path: Path) -> bool:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content.get(KEY) == name or (bool(before) and content.keys() == set(before))

    return OutputKind(name, option, ours, parents=parents)


def write_json(path: Path | None, kind: OutputKind, content: dict[str, Any]) -> None:
    """Write a JSON file of that kind in one step; its first key says what it is. None is nowhere.

    Raises OutputError where something else stands there, there is no folder for it, or another process is writing it.
    """
    if path is not None:
        with claimed(path, kind), atomic_write(path) as aside:
            text = json.dumps({KEY: kind.name} | content, indent=1, ensure_ascii=False)
            aside.write_text(text + "\n", encoding="utf-8")


def first_line(path: Path) -> str:
    """The first line of a text file, without its end."""
    with path.open(encoding="utf-8", newline="") as file:
        return file.readline(_LINE).rstrip("\r\n")


def ecsv_meta(path: Path) -> dict[str, Any]:
    """The metadata of an ECSV table."""
    from astropy.table.meta import get_header_from_yaml

    with path.open(encoding="utf-8") as file:
        lines = [line[2:] for line in iter(lambda: file.readline(_LINE), "") if line.startswith("# ")]
    return get_header_from_yaml(lines)["meta"]


def parquet_meta(path: Path) -> dict[str, str]:
    """The metadata of a Parquet file."""
    import pyarrow.parquet as pq

    return {key.decode(): value.decode() for key, value in (pq.read_schema(path).metadata or {}).items()}


def png_mark(kind: OutputKind) -> dict[str, str]:
    """What matplotlib is to write into a figure of this kind."""
    return {"Software": f"harps_dist: {kind.name}"}


def png_file(name: str, option: str) -> OutputKind:
    """A figure that has the text of `png_mark`."""

    def ours(path: Path) -> bool:
        from PIL import Image  # which matplotlib needs

        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == f"harps_dist: {name}"

    return OutputKind(name, option, ours)


def check(path: Path | None, kind: OutputKind) -> None:
    """Raises OutputError, in one sentence, where `path` may not be written; None is nowhere, and may.

    Reads what stands there and touches nothing.
    """
    if path is None:
        return
    path = Path(path)
    if kind.form != "home" and path.name in ("", ".."):
        raise OutputError(f"{path} cannot be replaced by a {kind.name}. Give the name of another {kind.option}.")
    inside = kind.form == "home" and path.is_dir()
    reached = path if inside else next(parent for parent in (*path.parents, Path()) if os.path.lexists(parent))
    if not reached.is_dir():
        raise OutputError(f"{path} cannot be written, for {reached} is no folder. Give another {kind.option}.")
    if not kind.parents and not path.parent.exists():
        raise OutputError(
            f"{path} cannot be written: there is no folder {path.parent}. Make it, or give another {kind.option}."
        )
    if not os.access(reached, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path} cannot be written, for you may not write in {reached}. Give another {kind.option}, or get the "
            f"right to write there."
        )
    if objection := _objection(path, kind):
        done = "written into" if kind.form == "home" and path.is_dir() else "replaced"
        raise OutputError(
            f"{path} is there and {objection}, so it is not {done}. Give another {kind.option}, or remove it."
        )


def _objection(path: Path, kind: OutputKind) -> str:
    """What is wrong with what stands there; empty where nothing is."""
    none = f"is no {kind.name}"
    if path.is_symlink() and not (kind.form == "home" and path.is_dir()):
        return "is a symbolic link"
    if not path.exists():
        return ""
    if path.is_dir() != (kind.form != "file") or not (path.is_dir() or path.is_file()):
        return none
    if path.is_dir() and _is_empty(path, kind):
        return ""
    try:
        ours = kind.ours(path)
    except Exception:  # astropy, pyarrow and others raise nearly anything on what they did not write
        ours = False
    if not ours:
        return none
    for name in sorted(os.listdir(path)) if kind.names else ():
        if not kind.names.fullmatch(name):  # type: ignore[union-attr]
            return f"holds {name!r} besides a {kind.name}"
    return ""


def _is_empty(folder: Path, kind: OutputKind) -> bool:
    """Whether a folder holds nothing; in a home, nothing but what a killed process left before it wrote anything."""
    with os.scandir(folder) as entries:
        left = (entry.name for entry in entries)
        if kind.form == "home":
            left = (name for name in left if name != LOCK and not ASIDE.fullmatch(name))
        return next(left, None) is None


@contextmanager
def claimed(path: Path, kind: OutputKind, *beside: tuple[Path, OutputKind]) -> Iterator[None]:
    """Around writing `path`, and what is written beside it: no other process does meanwhile, and nothing is in the way.

    Makes the folder that it is to lie in, or the home itself. What killed processes left of it is removed, under the
    lock. Raises OutputError where something else stands there or another process is writing it.
    """
    path = Path(path)
    outputs = ((path, kind), *beside)
    for place in outputs:
        check(*place)
    lock = lock_of(path, kind)
    with ExitStack() as stack:
        stack.callback(_remove_empty, [folder for folder in (path, *path.parents) if not folder.exists()])
        with full_disk_named(path):
            lock.parent.mkdir(parents=True, exist_ok=True)
            free = stack.enter_context(exclusive(lock))
        if not free:
            raise busy(path)
        for place in outputs:
            check(*place)  # again: another process may just have ended
            remove_leftovers(place[0])
        if kind.marked:
            for left in path.rglob(".*.tmp"):
                if ASIDE.fullmatch(left.name):
                    remove(left)
            set_mark(path, kind)
        with full_disk_named(path):
            yield


def set_mark(folder: Path, kind: OutputKind) -> None:
    """Say in a home what it is, unless it says so."""
    if not (folder / MARK).exists():
        with atomic_write(folder / MARK) as aside:
            aside.write_text(json.dumps({KEY: kind.name}) + "\n")


def _remove_empty(made: list[Path]) -> None:
    """Remove the folders that were made for nothing, since what was to be written into them was not."""
    for folder in made:
        with suppress(OSError):
            if os.listdir(folder) == [MARK]:
                (folder / MARK).unlink()
            folder.rmdir()


def lock_of(path: Path, kind: OutputKind) -> Path:
    """The file that is locked while `path` is written: in a home, else beside it."""
    return path / LOCK if kind.form == "home" and not kind.apart else path.with_name(f".{path.name}{LOCK}")


def busy(path: Path) -> OutputError:
    """What to raise where another process has the lock."""
    return OutputError(f"another process is writing {path}. Wait until it has ended.")
