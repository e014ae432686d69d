"""What comes from outside: only regular files, never more than a limit, and names that no terminal obeys."""

from __future__ import annotations

import gzip
import io
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harps_dist.console import console_for, say
from harps_dist.intake import IntakeError, read_file, read_text
from harps_dist.spectra.quantities import QUANTITIES, in_range, number
from harps_dist.text import cleaned, for_terminal, printable, sentence

NAMES = st.binary(min_size=1, max_size=40).map(os.fsdecode)


@given(NAMES, NAMES)
def test_printable_names_are_printable_and_as_different_as_the_names(one, other):
    assert printable(one).isprintable()
    printable(one).encode()
    assert (printable(one) == printable(other)) == (one == other)


def test_names_that_look_alike_once_escaped_stay_two():
    for one, other in (("\x1b", "\\x1b"), ("\udc80", "\x80"), ("\n", "\\n"), ("\u202e", "\\u202e")):
        assert printable(one) != printable(other)
    assert printable("α Cen É.fits") == "α Cen É.fits"
    assert printable(Path("a b/[bold]x")) == "a b/[bold]x"


@given(st.text(), st.integers(10, 50))
def test_cleaned_texts_are_short_printable_and_stay_so(text, longest):
    once = cleaned(text, longest)
    assert once.isprintable()
    assert len(once) <= longest
    assert cleaned(once, longest) == once
    assert "\n" not in sentence(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in for_terminal(text))


def test_the_console_shows_names_as_they_are(capsys):
    name = "[bold]\x1b[2J:smile:\udcff"
    console_for().print(name, soft_wrap=True)
    say(name)
    shown = "[bold]\\x1b[2J:smile:\\xff"
    assert capsys.readouterr().out.splitlines() == [shown, shown]


@pytest.fixture
def irregular(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")  # a whole path may be too long for one
    return tmp_path


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("pipe", "not_regular"),
        ("folder", "not_regular"),
        ("device", "not_regular"),
        ("socket", "not_regular"),
        ("dangling", "unreadable"),
        ("circle", "unreadable"),
        ("absent", "unreadable"),
        ("a\0b", "unreadable"),
        ("x" * 5000, "unreadable"),
    ],
)
def test_only_regular_files_are_opened(name, fault, irregular):
    with pytest.raises(IntakeError) as found:
        read_file(irregular / name, 10)
    assert found.value.fault == fault
    assert str(found.value).isprintable()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (bytes(1001), "too_large"),
        (gzip.compress(bytes(10**8)), "too_large"),
        (gzip.compress(os.urandom(500), mtime=0)[:-9], "truncated"),
        (gzip.compress(bytes(500), mtime=0)[:-8] + bytes(8), "checksum"),
        (b"\x1f\x8b" + bytes(50), "checksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_no_more_than_a_limit_is_read_packed_or_not(content, fault, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(IntakeError) as found:
        read_file(tmp_path / "x", 1000)
    assert found.value.fault == fault


def test_what_begins_otherwise_is_not_read_on(tmp_path):
    (tmp_path / "x").write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(IntakeError, match="begins 'SIMPLE'") as found:
        read_file(tmp_path / "x", 10**9, b"SIMPLE")
    assert found.value.fault == "foreign"
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfyes")
    assert read_text(tmp_path / "x", "text") == "yes"


def test_numbers_are_numbers():
    assert number(10**400) == float("inf")
    assert number(-(10**400)) == -float("inf")
    assert number(3) == 3.0
    for value in (True, "3", None, [], {}, b"3", 1j):
        assert number(value) != number(value)
    for name, (_, low, high) in QUANTITIES.items():
        assert low < high, name
        assert in_range(name, low), name
        assert in_range(name, high), name
        for value in (float("nan"), float("inf"), -float("inf"), 1e308, 2 * low - high, 2 * high - low):
            assert not in_range(name, value), (name, value)


def test_a_text_that_is_none_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "absent", "list")
    (tmp_path / "latin").write_bytes("größe".encode("latin-1"))
    with pytest.raises(Exception, match="Give a text file in UTF-8"):
        read_text(tmp_path / "latin", "list")


def test_streams_without_a_file_are_read_too():
    from harps_dist.intake import read_stream

    assert read_stream(io.BytesIO(gzip.compress(b"abc")), 3) == b"abc"
