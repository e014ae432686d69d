"""Files that say when they were changed: documents and lines that carry a digest of their content, and files whose name
carries one.

A document (JSON or YAML) has the sha256 of everything else in it under "digest", a line of a log its crc32c. Blocks of
data that other formats hold are named STEM-SHA256.ENDING, so that they are written in one step all the same.
"""

from __future__ import annotations

import glob
import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from harps_dist.files import atomic_write

SEAL, LINE_SEAL = "digest", "crc32c"
_NAME_LENGTH = 16  # hexadecimal digits of a sha256 in a file's name


def digest_of(content: Any) -> str:
    """sha256 of what JSON or YAML can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A document with its digest under "digest", which replaces one that stood there."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    return bare | {SEAL: digest_of(bare)}


def unsealed(content: Any, required: bool) -> dict[str, Any]:
    """A document without its digest, which was checked.

    required: whether there has to be one; formats before 0.2 have none. Raises ValueError saying what is wrong.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    bare = {key: value for key, value in content.items() if key != SEAL}
    if SEAL not in content:
        if required:
            raise ValueError(f"it has no {SEAL}")
        return bare
    try:
        found = digest_of(bare)
    except TypeError as error:  # YAML knows dates, and names that are no texts
        raise ValueError(f"it holds what JSON does not: {error}") from None
    if content[SEAL] != found:
        raise ValueError(f"it states {SEAL} {str(content[SEAL])[:12]}, but its content has {found[:12]}")
    return bare


def sealed_line(content: Mapping[str, Any]) -> str:
    """One line of JSON, with its end, that carries the crc32c of the rest of it."""
    return json.dumps({**content, LINE_SEAL: _crc32c(content)}) + "\n"


class Lines(NamedTuple):
    """The lines of a log. damage: a sentence for each line that is not what was written."""

    whole: list[dict[str, Any]]
    damage: list[str]


def read_lines(path: Path) -> Lines:
    """The lines of a file that `sealed_line` made; none where there is no file.

    A last line that a killed writer cut short is left out. Files of versions before 0.2 carry no checksums and are
    taken as they are.
    """
    if not path.exists():
        return Lines([], [])
    *texts, rest = path.read_bytes().split(b"\n")
    lines = [_read_line(text) for text in texts]
    if rest and not _is_cut_short(rest):
        lines.append(_read_line(rest))
    any_sealed = any(is_sealed for _, is_sealed in lines)
    whole, damage = [], []
    for number, (content, is_sealed) in enumerate(lines, 1):
        if content is None or is_sealed != any_sealed:
            damage.append(f"line {number} of {path} is damaged")
        else:
            whole.append(content)
    return Lines(whole, damage)


def _read_line(text: bytes) -> tuple[dict[str, Any] | None, bool]:
    """What a line says, None where it is damaged; and whether it carries a checksum."""
    try:
        content = json.loads(text)
    except ValueError:  # a byte that is no UTF-8 too
        return None, False
    if not isinstance(content, dict):
        return None, False
    if LINE_SEAL not in content:
        return content, False
    stated = content.pop(LINE_SEAL)
    return (content if stated == _crc32c(content) else None), True


def _crc32c(content: Mapping[str, Any]) -> str:
    from google_crc32c import value

    return f"{value(json.dumps(content).encode()):08x}"


def _is_cut_short(text: bytes) -> bool:
    """Whether a text is the beginning of a line that was never finished, rather than a whole one that was changed."""
    try:
        json.JSONDecoder().raw_decode(text.decode(errors="replace"))
    except ValueError:
        return True
    return False


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed_name(path: Path, aside: Path) -> Path:
    """The name STEM-SHA256.ENDING that `path` gets for the content of the file `aside`."""
    return path.with_name(f"{path.stem}-{sha256_of(aside)[:_NAME_LENGTH]}{path.suffix}")


def sealed_write(path: Path) -> AbstractContextManager[Path]:
    """Write a file whole or not at all (`files.atomic_write`); it takes the sealed name of its content."""
    return atomic_write(path, sealed_name)


def find_sealed(path: Path) -> Path | None:
    """The whole file that was written for `path` under a sealed name; None where there is none."""
    pattern = f"{glob.escape(path.stem)}-{'[0-9a-f]' * _NAME_LENGTH}{path.suffix}"
    return next(filter(is_whole, sorted(path.parent.glob(pattern))), None)


def is_whole(path: Path) -> bool:
    """Whether the content of a file is what its sealed name says.

    One that was changed is told of with a warning: whoever asks makes it again.
    """
    bare = path.with_name(path.stem[: -_NAME_LENGTH - 1] + path.suffix)
    if sealed_name(bare, path) == path:
        return True
    warnings.warn(f"{path} is damaged: its content is not what its name says. It is made again.", stacklevel=2)
    return False
