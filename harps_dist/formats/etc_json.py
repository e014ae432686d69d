"""The JSON documents of the exposure time calculator, tens of megabytes that are numbers nearly all.

Two parsers agree on what a document says. `parse_quickly` makes arrays of lists of numbers, without a Python object for
each of millions, and takes plain documents alone. `parse` takes whatever Python's own parser does, and says what is
wrong with the others.

Tested in tests/unit/test_etc_json.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import simdjson

from harps_dist.formats.records import Reason, RefusedError, require
from harps_dist.intake import read_file

MAX_BYTES = 256 * 2**20  # unpacked; a run of all 71 orders has 50 MB
MAX_VALUES = 16_000_000  # numbers and texts; such a run has 4 million; simdjson writes past lists of 2**24 and more
MAX_NESTED = 100_000  # lists and objects; such a run has 2 thousand
MAX_KEYS = 100  # of an object on the way to the arrays, which has a dozen
MAX_DEPTH = 20  # of the arrays, which lie eight deep

_BLOCK = 2**18  # bytes that stay in a processor's cache
_SPACE = 64  # bytes, more than stand between a bracket and what is before it


class _NotPlainError(Exception):
    """A document that `parse` should read."""


def read_document(path: Path) -> bytes:
    """The bytes of a document, unpacked, not more of them nor of its values than a run can have.

    Raises RefusedError or IntakeError.
    """
    raw = read_file(path, MAX_BYTES)
    for what, marks, most in (("values", b",", MAX_VALUES), ("lists and objects", b"[{", MAX_NESTED)):
        found = sum(_count(raw, mark) for mark in marks)
        require(found <= most, Reason.TOO_LARGE, f"expected at most {most} {what}, got {found}")
    return raw


def _count(raw: bytes, mark: int) -> int:
    """How often a byte occurs; where it is frequent, quicker than `bytes.count`."""
    found = np.frombuffer(raw, np.uint8)
    return sum(int(np.count_nonzero(found[at : at + _BLOCK] == mark)) for at in range(0, len(found), _BLOCK))


def parse(raw: bytes) -> dict:
    """What a document says, by lists of Python's numbers. Raises RefusedError for what is no JSON object."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        document = _parse_leniently(raw)
    kind = type(document).__name__
    require(isinstance(document, dict), Reason.NOT_JSON, f"expected a JSON object at the top, found a {kind}")
    return document


def _parse_leniently(raw: bytes) -> Any:
    """What the slower parser makes of a document that is not strictly JSON: NaN, infinities and UTF-16 it reads."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise RefusedError(Reason.NOT_JSON, str(error)) from None


def parse_quickly(raw: bytes) -> dict | None:
    """What a plain document says, by arrays (n,) float64 of the lists of numbers below `data`; None for any other.

    Plain is strict JSON, an object, in which no list stands in a list and, down to the arrays, no key twice in an
    object and no NUL in a key. What else there is, `parse` reads or refuses. raw: as `read_document` has it, which
    keeps lists away that the parser could not hold.
    """
    if _lists_in_lists(raw):
        return None
    try:
        top = _parser().parse(raw)
        if not isinstance(top, simdjson.Object):
            return None
        return {key: _with_arrays(value) if key == "data" else _plain(value) for key, value in _entries(top)}
    except (_NotPlainError, ValueError, KeyError, RuntimeError, MemoryError):  # the parser's: no JSON, or too deep
        return None


def _lists_in_lists(raw: bytes) -> bool:
    """Whether a list may stand in another, which would be read as one."""
    at = raw.find(b"[")
    while at >= 0:
        before = raw[max(0, at - _SPACE) : at].rstrip()
        if not before or before.endswith((b",", b"[")):
            return True
        at = raw.find(b"[", at + 1)
    return False


@cache
def _parser() -> simdjson.Parser:
    """The parser of this process; its buffers, several times as large as a document, are used again."""
    return simdjson.Parser()


def _entries(node: simdjson.Object) -> Iterator[tuple[str, Any]]:
    """Keys and values. Of a key that stands twice this parser has the first value, where others have the last.

    It looks keys up as far as their first NUL, and would return another key's value.
    """
    keys = list(node) if len(node) <= MAX_KEYS else []
    if len(set(keys)) < len(node) or any("\0" in key for key in keys):
        raise _NotPlainError
    for key in keys:
        yield key, node[key]


def _with_arrays(value: Any, depth: int = MAX_DEPTH) -> Any:
    if depth == 0:
        raise _NotPlainError
    if isinstance(value, simdjson.Object):
        return {key: _with_arrays(inner, depth - 1) for key, inner in _entries(value)}
    if not isinstance(value, simdjson.Array):
        return value
    first = value[0] if len(value) else None
    if isinstance(first, simdjson.Object):
        return [_with_arrays(inner, depth - 1) for inner in value]
    return _numbers(value) if type(first) in (int, float) else value.as_list()


def _numbers(values: simdjson.Array) -> np.ndarray | list:
    try:
        return np.frombuffer(values.as_buffer(of_type="d"), np.float64)
    except TypeError:  # null, a text or a truth value is among them
        return values.as_list()


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value
