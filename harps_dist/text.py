"""Texts as they are shown and written: names from outside made printable, numbers with errors, tables, strict JSON.

Tested in tests/unit/test_intake.py and tests/unit/test_report.py.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harps_dist.sealed import sealed

Shown = tuple[list[str], list[list[str]]]  # a table as it is read: its header and rows
LONGEST = 500  # characters of a text that is repeated in a message


def printable(name: str | Path) -> str:
    """A file's name that any file and any terminal can hold; names that differ stay different.

    What cannot be printed becomes a backslash escape, as do bytes that are no UTF-8; a backslash becomes two.
    """
    text = str(name)
    if text.isprintable() and "\\" not in text:
        return text
    return "".join("\\\\" if letter == "\\" else _escaped(letter) for letter in text)


def cleaned(text: str, longest: int = LONGEST) -> str:
    """A text on one line: control characters as escapes, cut where it is longer. Cleaned again, it stays the same."""
    text = text if text.isprintable() else "".join(map(_escaped, text))
    return text if len(text) <= longest else f"{text[: longest - 2]} …"


def sentence(text: str, longest: int = LONGEST) -> str:
    """A message on one line, `cleaned`; several lines are joined."""
    return cleaned(" ".join(text.split()), longest)


def for_terminal(text: str) -> str:
    """A text with its lines and tabs; all that could move the cursor or colour the screen becomes an escape."""
    return "".join(letter if letter in "\n\t" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file's name that is no UTF-8
        code -= 0xDC00
        return f"\\x{code:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns padded; the first is flush left, the others flush right."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], ruler, *padded[1:]))


def format_value(value: float, error: float) -> str:
    """`value` to the digit that the second significant digit of its `error` stands at.

    Four significant digits where the error is NaN or zero; an en dash for NaN.
    """
    if math.isnan(value):
        return "–"
    if not 0.0 < error < math.inf:
        return f"{value:.4g}"
    exponent = int(f"{error:.1e}".partition("e")[2])  # after rounding: 0.0996 is 0.10
    decimals = 1 - exponent
    return f"{round(value, decimals):.{max(0, decimals)}f}"


def format_pair(value: float, error: float) -> str:
    """`value ± error`, the error to two significant digits; no ± where the error is NaN."""
    if math.isnan(value) or math.isnan(error):
        return format_value(value, error)
    return f"{format_value(value, error)} ± {format_value(error, error)}"


def strict_json(content: object) -> str:
    """Indented JSON in which NaN and infinities are null."""
    return json.dumps(_nan_to_none(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def command_of(*words: object, **options: object) -> str:
    """The command of a benchmark: its name, what it takes by position, and options but for those that are None."""
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["harps-dist", "benchmark", *map(str, words), *given])


def sealed_json(content: Mapping[str, Any]) -> str:
    """Strict JSON, `strict_json`, with a digest of the content in it."""
    plain = json.loads(strict_json(content))
    return json.dumps(sealed(plain), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _nan_to_none(content: object) -> object:
    """NaN and infinities as None, throughout dicts, lists and tuples."""
    if isinstance(content, Mapping):
        return {key: _nan_to_none(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_nan_to_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


NAN = float("nan")


def number(value: float | None) -> float:
    """JSON has null for NaN."""
    return NAN if value is None else value
