"""What lies in a folder and was not looked at, by the endings of its names.

Tested in tests/unit/test_folders.py.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from harps_dist.text import cleaned

MACOS = "._"  # how names begin of what macOS writes beside each file on a foreign disk
_ENDING = re.compile(r"(\.[A-Za-z][A-Za-z0-9_]{0,9})?(\.[A-Za-z][A-Za-z0-9_]{0,9})$")
_PACKED = (".gz", ".bz2", ".z", ".fz", ".xz", ".zip", ".zst")
_NAMED = 12  # endings; the others are counted together


def passed_over(folder: Path, taken: Iterable[Path]) -> Counter[str]:
    """How many files in and below a folder are none of those taken, by ending; empty for a file.

    taken: files that were looked at, or members of such files, by whatever path. Links are followed as
    `readers.find_spectra` follows them. What is hidden is a program's own and not counted, save what macOS leaves.
    """
    known = {Path(os.path.realpath(path)) for path in taken}
    known |= {parent for path in known for parent in path.parents}
    counts, entered = Counter[str](), set()
    for top, folders, files in os.walk(folder, followlinks=True) if folder.is_dir() else ():
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # hidden ones are a program's own
        real = os.path.realpath(top)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        seen = (name for name in files if not _is_hidden(name))
        counts.update(_ending(name) for name in seen if Path(os.path.realpath(Path(real, name))) not in known)
    return counts


def passed_over_line(counts: Counter[str]) -> str:
    """One line for people; '' where nothing was passed over."""
    if not counts:
        return ""
    most = counts.most_common(_NAMED)
    named = [f"{count:,} {ending}" for ending, count in most]
    if rest := counts.total() - sum(count for _, count in most):
        named.append(f"{rest:,} with other endings")
    return cleaned(f"not looked at: {', '.join(named)}", 1000)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and not name.startswith(MACOS)


def _ending(name: str) -> str:
    """'.tar', '.fits.Z', 'without an ending' or 'of macOS (._)'."""
    if name.startswith(MACOS):
        return "of macOS (._)"
    found = _ENDING.search(name)
    if found is None:
        return "without an ending"
    inner, last = found.groups()
    return f"{inner or ''}{last}" if last.lower() in _PACKED else last
