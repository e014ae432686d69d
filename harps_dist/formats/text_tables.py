"""Tables in text, as people and services write them: comments, a header behind '#', units below it, any separator.

Tested in tests/unit/test_tables.py.
"""

from __future__ import annotations

import re
from typing import Any

from harps_dist.formats.units import unit_named
from harps_dist.intake import IntakeError

MAX_COLUMNS = 2000
MAX_TEXT_LINE = 2**20  # characters, in which that many columns have their names
COMMENTS = "comment lines"  # metadata of a table: how many lines among its rows were commented out
_RULE = re.compile(r"[-\s,;|]*--[-\s,;|]*")  # VizieR's line between units and rows
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_SEPARATORS = ",;\t|"
_FOR_TABS = "\x1f"  # a tab at the beginning of a field is a blank to astropy: after an empty field values would shift
_BYTES = "Byte-by-byte Description of file"  # of a machine-readable table of CDS or the AAS


def read_text_table(text: str) -> Any:
    """A Table of a text whose columns are separated by commas, semicolons, tabs, bars or else by blanks.

    Lines that begin with '#' are comments; the last of them before the rows names the columns where it has as many
    names as the rows have values and no other line does. A line of units and a line of dashes below the header are
    VizieR's. Machine-readable tables of CDS are read by their description.
    """
    if _BYTES in text[:MAX_TEXT_LINE]:
        return read_ascii(text, "cds")
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    first = next((row for row, line in enumerate(lines) if not line.startswith("#")), len(lines))
    rows, above = [line for line in lines[first:] if not line.startswith("#")], lines[:first]
    commented = len(lines) - first - len(rows)
    if not rows:
        return read_ascii(text, "csv")
    mark = max(_SEPARATORS, key=rows[0].count)
    separator = mark if mark in rows[0] else None
    units: list[str] = []
    if len(rows) > 2 and _RULE.fullmatch(rows[2]):
        units = _fields(rows[1], separator)
        rows = [rows[0], *rows[3:]]
    if any(_RULE.fullmatch(row) for row in rows[1:]):
        raise IntakeError("foreign", "expected one table, got several below each other")
    width = len(_fields(rows[0], separator))
    if any(_NUMBER.fullmatch(field) for field in _fields(rows[0], separator)):  # no line of names
        names = next((line[1:].strip() for line in reversed(above) if _names(line, separator, width)), None)
        rows = rows if names is None else [names, *rows]
    if separator == "\t":
        rows, separator = [row.replace(_FOR_TABS, " ").replace("\t", _FOR_TABS) for row in rows], _FOR_TABS
    form = {"format": "csv", "delimiter": separator} if separator else {"format": "basic", "comment": "#"}
    if separator is None and len(rows) > 1 and width == 1:
        form = {"format": "csv", "delimiter": ","}
    table = read_ascii("\n".join(rows), form.pop("format"), **form)
    if (expected := len(rows) - 1) != len(table):  # what a quote swallowed would be missing without a word
        raise IntakeError("foreign", f"expected {expected} rows, one a line, got {len(table)}: a quote has no end")
    for name in table.colnames:
        if name != name.strip():
            table.rename_column(name, name.strip())
    for name, unit in zip(table.colnames, units, strict=False):
        table[name].unit = unit_named(unit)
    table.meta[COMMENTS] = commented
    return table


def read_ascii(text: str, kind: str, **options: Any) -> Any:
    """A Table of a text in one of astropy's forms of ASCII tables."""
    from astropy.io import ascii

    widest = max(text[:MAX_TEXT_LINE].partition("\n")[0].count(mark) for mark in (*_SEPARATORS, _FOR_TABS, " ")) + 1
    if widest > MAX_COLUMNS:
        raise IntakeError("too_large", f"expected at most {MAX_COLUMNS} columns, got {widest} or more")
    return ascii.read(f"{text}\n", format=kind, guess=False, **options)  # a text of one line would be a file's name


def has_names(text: str) -> bool:
    """Whether a text with blanks between its columns has a line of their names, behind '#' or not."""
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    first = next((row for row, line in enumerate(lines) if not line.startswith("#")), None)
    if first is None:
        return True
    fields = lines[first].split()
    if max(map(lines[first].count, _SEPARATORS)) or not any(map(_NUMBER.fullmatch, fields)):
        return True
    return any(_names(line, None, len(fields)) for line in lines[:first])


def _names(line: str, separator: str | None, width: int) -> bool:
    """Whether a comment names so many columns."""
    fields = _fields(line[1:].strip(), separator)
    return len(fields) == width > 1 and not any(map(_NUMBER.fullmatch, fields))


def _fields(line: str, separator: str | None) -> list[str]:
    return [field.strip() for field in line.split(separator)]
