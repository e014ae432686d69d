"""The console that commands print to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_A_FILE = 160


def console_for(quiet: bool = False) -> Console:
    """A rich console; output that goes to a file or a pipe is wide enough for a table of label errors."""
    from rich.console import Console

    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(quiet=quiet, width=WIDTH_OF_A_FILE)
