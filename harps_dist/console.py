"""The console that commands print to."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harps_dist.errors import HarpsDistError, Interrupted
from harps_dist.files import atomic_write
from harps_dist.text import for_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH_OF_A_FILE = 160
PROGRESS = "HARPS_DIST_PROGRESS"  # environment variable: a file to write how far an interrupted command is
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, start the same command again


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code: 0, 1 with a message, or EXIT_INTERRUPTED, with how far it
    is in the file that the environment variable HARPS_DIST_PROGRESS names."""
    try:
        code = main()
    except Interrupted as error:
        if path := os.environ.get(PROGRESS):
            with atomic_write(Path(path)) as aside:
                aside.write_text(error.progress + "\n")
        print(for_terminal(f"{error} ({error.progress})"), file=sys.stderr)
        code = EXIT_INTERRUPTED
    except HarpsDistError as error:
        print(for_terminal(f"{type(error).__name__}: {error}"), file=sys.stderr)
        code = 1
    # All is closed and written. What would follow is the tear-down of C++ libraries, in which now and then a thread of
    # gloo or Arrow aborts a process that has done its work.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say(text: str) -> None:
    """Print a text that may hold names from outside: control characters as escapes."""
    print(for_terminal(text))


def console_for(quiet: bool = False) -> Console:
    """A rich console; output that goes to a file or a pipe is wide enough for a table of label errors.

    Texts are shown as they are: no markup or emoji is looked for in them, and control characters are escapes.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(for_terminal(text), **options)

    def console(width: int | None = None) -> Console:
        return PlainConsole(quiet=quiet, width=width, markup=False, emoji=False)

    found = console()
    return found if found.is_terminal else console(WIDTH_OF_A_FILE)
