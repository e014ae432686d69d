"""Documents, lines and files notice every bit that was changed in them."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harps_dist.sealed import find_sealed, is_whole, read_lines, sealed, sealed_line, sealed_write, unsealed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LINES = [{"step": 3, "loss": 0.25, "ranks": [1, 2]}, {"step": 4, "loss": float("inf")}, {"step": 5, "loss": 1e-9}]


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_document_reads_back_from_json(content):
    content.pop("digest", None)
    assert unsealed(json.loads(json.dumps(sealed(content))), required=True) == content
    assert unsealed(content, required=False) == content


@pytest.mark.parametrize(
    ("dump", "load"), [(json.dumps, json.loads), (yaml.safe_dump, yaml.safe_load)], ids=["json", "yaml"]
)
def test_every_flipped_bit_of_a_document_is_an_error_or_changes_nothing(dump, load):
    content = {
        "format": 2,
        "name": "ä",
        "rate": 1e-05,
        "labels": ["teff", "rv"],
        "start_from": None,
        "far": [1e300, -0.5],
    }
    text, noticed = dump(sealed(content)).encode(), 0
    for bit in range(8 * len(text)):
        try:
            found = unsealed(load(flipped(text, bit).decode()), required=True)
        except (ValueError, yaml.YAMLError):
            noticed += 1
        else:
            assert found == content
    assert noticed > 7 * len(text)


@pytest.mark.parametrize("content", [None, [], "text", {}, {"digest": None, "a": 1}])
def test_what_is_no_sealed_document_is_refused(content):
    with pytest.raises(ValueError, match=r"expected an object|no digest|states digest"):
        unsealed(content, required=True)


def test_lines_read_back_and_one_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == ([], [])
    text = "".join(map(sealed_line, LINES))
    path.write_text(text)
    assert read_lines(path) == (LINES, [])
    for end in range(len(text)):
        path.write_text(text[:end])
        whole, damage = read_lines(path)
        assert not damage
        assert whole == LINES[: len(whole)]
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))  # as version 0.1 wrote them
    assert read_lines(path) == (LINES, [])


def test_every_flipped_bit_of_a_line_is_told_of(tmp_path):
    path = tmp_path / "log.jsonl"
    text = "".join(map(sealed_line, LINES)).encode()
    for bit in range(8 * len(text)):
        path.write_bytes(flipped(text, bit))
        whole, damage = read_lines(path)
        assert (whole == LINES) != bool(damage), (bit, whole, damage)
        assert all(line in LINES for line in whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_lines(content, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    read_lines(path)


def test_a_file_under_a_sealed_name_is_whole_or_not_there(tmp_path):
    path = tmp_path / "some-part.parquet"
    assert find_sealed(path) is None
    with sealed_write(path) as aside:
        aside.write_bytes(b"content")
    found = find_sealed(path)
    assert found.read_bytes() == b"content"
    assert [found] == list(tmp_path.iterdir())
    for bit in (0, 30, 55):
        found.write_bytes(flipped(b"content", bit))
        with pytest.warns(UserWarning, match="damaged"):
            assert find_sealed(path) is None
        with pytest.warns(UserWarning, match="damaged"):
            assert not is_whole(found)
