"""The console that commands print to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harps_dist.errors import HarpsDistError, Interrupted
from harps_dist.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_A_FILE = 160
PROGRESS = "HARPS_DIST_PROGRESS"  # environment variable: a file to write how far an interrupted command is
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, start the same command again


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code: 0, 1 with a message, or EXIT_INTERRUPTED, with how far it
    is in the file that the environment variable HARPS_DIST_PROGRESS names."""
    try:
        sys.exit(main())
    except Interrupted as error:
        if path := os.environ.get(PROGRESS):
            with atomic_write(Path(path)) as aside:
                aside.write_text(error.progress + "\n")
        print(f"{error} ({error.progress})", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except HarpsDistError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def console_for(quiet: bool = False) -> Console:
    """A rich console; output that goes to a file or a pipe is wide enough for a table of label errors."""
    from rich.console import Console

    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(quiet=quiet, width=WIDTH_OF_A_FILE)
