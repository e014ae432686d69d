"""Names and texts from outside as they may be printed and written: each on one line, without control characters."""

from __future__ import annotations

from pathlib import Path

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
    """The same of a message that may have several lines: they are joined."""
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
