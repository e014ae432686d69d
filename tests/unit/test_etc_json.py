"""The quick parser of ETC outputs: it says what Python's says, or leaves the document to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harps_dist.formats.etc import read_etc
from harps_dist.formats.etc_json import MAX_VALUES, parse, parse_quickly
from harps_dist.formats.records import Refusal
from tests.etc_runs import GENERATIONS, edited, first_data, same, write_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with one run in both generations and its SED."""
    folder = tmp_path_factory.mktemp("etc")
    write_runs(folder)
    return folder


def listed(value):
    """A document with lists for arrays."""
    if isinstance(value, dict):
        return {key: listed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [listed(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4) | st.lists(NUMBERS, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(["data", "request", "a"]), VALUES, max_size=3), st.sampled_from([None, 1]))
def test_the_quick_parser_says_what_the_other_says(document: dict, indent: int | None):
    raw = json.dumps(document, indent=indent).encode()
    found = parse_quickly(raw)
    assert found is None or listed(found) == parse(raw)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("indent", [None, 4])
def test_runs_are_parsed_quickly(run: Path, generation: str, indent: int | None):
    """Without an object for each number, also where the document is written for readers."""
    raw = json.dumps(json.loads((run / f"{generation}.json").read_bytes()), indent=indent).encode()
    document = parse_quickly(raw)
    assert document is not None
    assert listed(document) == parse(raw)
    data = document["data"]
    first = first_data(data["orders"]) if generation == "2023" else data["plots"]["spectra"][0]
    wave_m = first["wavelength"]["wavelength"]["data"] if generation == "2023" else first["wavelength"]
    assert isinstance(wave_m, np.ndarray)


@pytest.mark.parametrize(
    "text",
    [
        '{"data": {"a": [1, [2]]}}',
        '{"data": {"a": [[1], [2]]}}',
        '{"data": {"a": [[],\n [1.0, 2.0]]}}',
        '{"data": {"a": [1.0], "a": [2.0]}}',
        '{"data": {"b": {"a": 1, "\\u0061": 2}}}',
        '{"data": {}, "data": {"a": [1.0]}}',
        '{"data": {"a": [1.0], "a\\u0000b": [2.0]}}',
        '{"data": {"": {"a": 1}, "\\u0000": 2}}',
        '{"data": {"a": [NaN]}}',
        '{"data": {"a": [1e999]}}',
        '{"data": {"a": [123456789012345678901234567890]}}',
        '{"data": {"a": ["\\ud800"]}}',
        '{"data": ' + '{"a": ' * 30 + "1" + "}" * 31,
        '{"data": ' + '{"a": ' * 5000 + "1" + "}" * 5001,
        '{"data": {' + ", ".join(f'"{key}": {key}' for key in range(200)) + "}}",
        '{"data": {"a": [1.0]}} {}',
        '{"data": {"a": [1.0, ]}}',
        "[1.0]",
        "1",
        "",
    ],
)
def test_what_is_not_plain_is_left_to_the_other_parser(text: str):
    assert parse_quickly(text.encode()) is None
    assert parse_quickly(b'{"data": {"a": [1, 2.5]}}')["data"]["a"].tolist() == [1.0, 2.5]  # and goes on after it


@pytest.mark.parametrize("raw", [b'{"data": {"a": ["\xff"]}}', b'{"data": {"a": 1}}\x00', "{}".encode("utf-16")])
def test_bytes_that_are_no_text_are_left_to_the_other_parser(raw: bytes):
    assert parse_quickly(raw) is None


def test_no_list_is_longer_than_the_quick_parser_counts():
    """It counts to 2**24 - 1 and writes the others past the end of a list, which ends the process."""
    assert MAX_VALUES + 1 < 2**24


ODD = [None, True, "1", [1.0], {"a": 1.0}, [], "", 10**400, [[1.0]], float("nan"), float("inf")]


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("place", [0, 7, slice(None)])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_what_is_no_number_is_refused_in_the_words_of_the_other_parser(
    run: Path, tmp_path: Path, generation: str, place, value, monkeypatch
):
    """Also a list in a list, which the quick parser would flatten to an array of the right length."""

    def edit(document, orders):
        data = first_data(orders)["signals"]["obstarget"]["data"] if generation == "2023" else orders[0]["wavelength"]
        data[place] = [value] * len(data) if isinstance(place, slice) else value

    path = edited(run, generation, tmp_path, edit)
    found = read_etc(path, run)
    monkeypatch.setattr("harps_dist.formats.etc.parse_quickly", lambda raw: None)
    assert isinstance(found, Refusal)
    assert found == read_etc(path, run)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("where", ["data", "data.plots", "data.orders", "data.plots.spectra", "order", "name"])
@pytest.mark.parametrize("value", [[1.0, 2.0], [1.0], [], 3.0, {"a": [1.0]}], ids=repr)
def test_a_list_of_numbers_where_none_belongs_is_what_the_other_parser_makes_of_it(
    run: Path, tmp_path: Path, generation: str, where: str, value, monkeypatch
):
    def edit(document, orders):
        *parents, last = where.split(".")
        node = document
        for key in parents:
            node = node.setdefault(key, {})
        if where == "order":
            node = orders[0]
        elif where == "name":
            node, last = (orders[0]["detectors"][0], "name") if generation == "2023" else (orders[0], "detector_name")
        node[last] = value

    path = edited(run, generation, tmp_path, edit)
    found = read_etc(path, run)
    monkeypatch.setattr("harps_dist.formats.etc.parse_quickly", lambda raw: None)
    expected = read_etc(path, run)
    assert found == expected if isinstance(expected, Refusal) else same(found, expected)
