"""The console that commands print to.

Tested in tests/integration/test_outputs_again.py.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harps_dist.errors import DiskFullError, HarpsDistError, Interrupted
from harps_dist.files import ASIDE, atomic_write, is_full_disk
from harps_dist.text import for_terminal, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH_OF_A_FILE = 160
PROGRESS = "HARPS_DIST_PROGRESS"  # environment variable: a file to write how far an interrupted command is
TORCHRUN_ERRORS = "TORCHELASTIC_ERROR_FILE"  # environment variable of torchrun: where it looks for why a rank failed
EXTRAS = {
    "deepspeed": "train",
    "wandb": "train",
    "webdataset": "train",
    "pyvo": "fetch",
    "obstore": "remote",
    "stamina": "remote",
    "specutils": "specutils",
    "xarray": "xarray",
}  # packages that only some commands need, and what installs them
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, start the same command again
EXIT_SIGINT = 130  # 128 + SIGINT, as shells have it


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code, see `exit_code_of`."""
    code = exit_code_of(main)
    # All is closed and written. What would follow is the tear-down of C++ libraries, in which now and then a thread of
    # gloo or Arrow aborts a process that has done its work.
    atexit._run_exitfuncs()
    if not _nobody_reads():
        sys.stderr.flush()
    os._exit(code)


def exit_code_of(main: Callable[[], int]) -> int:
    """Run a command; its exit code: 0, 1 with a message, or EXIT_INTERRUPTED, with how far it is in the file that the
    environment variable HARPS_DIST_PROGRESS names.

    Errors of files and a full disk end in a sentence too. A pipe whose reader has gone, as in `| head`, ends it without
    one. What is wrong in the program is raised, for its traceback.
    """
    try:
        code = main()
        sys.stdout.flush()
        return code
    except Interrupted as error:
        if path := os.environ.get(PROGRESS):
            with atomic_write(Path(path)) as aside:
                aside.write_text(error.progress + "\n")
        _tell(f"{error} ({error.progress})")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted. Give the same command again.", file=sys.stderr)
        return EXIT_SIGINT
    except Exception as error:
        if not (isinstance(error, BrokenPipeError) and _nobody_reads()):
            sentence = sentence_of(error)
            if sentence is None:
                raise
            _tell(sentence)
        return 1


def _tell(sentence: str) -> None:
    """Print why a command ends. Under torchrun the main rank does; what others say is repeated by torchrun itself."""
    path = os.environ.get(TORCHRUN_ERRORS)
    if not path or os.environ.get("RANK") == "0":
        print(for_terminal(sentence), file=sys.stderr)
    if path:
        stated = {"message": for_terminal(sentence), "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": stated}))


def sentence_of(error: Exception) -> str | None:
    """What a user reads of an error: what, where and what to do; None for one that is the program's."""
    if isinstance(error, HarpsDistError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"this needs {error.name}, which is not installed: pip install 'harps_dist[{EXTRAS[error.name]}]'."
    named = _file_of(error)
    if is_full_disk(error):
        where = f" to write {named}" if named else ""
        return (
            f"{DiskFullError.__name__}: no space is left{where}. Free some space, or choose another folder, and run "
            f"the same command again."
        )
    if named is None or not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError):
        return f"there is no {named}. Check the path."
    if isinstance(error, NotADirectoryError):
        return f"there can be no {named}, for a part of this path is a file. Check the path."
    if isinstance(error, IsADirectoryError):
        return f"{named} is a folder, expected a file. Check the path."
    if isinstance(error, PermissionError):
        return f"{named} may not be read or written by you. Choose another place, or get the right to."
    return f"{named} cannot be read or written: {error.strerror}. Check the path and the disk."


def _file_of(error: BaseException) -> str | None:
    """The file that an error names, by the name that a user knows."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes | os.PathLike):
        return None
    parts = Path(os.fsdecode(name)).parts
    path = Path(*(aside[1] if (aside := ASIDE.fullmatch(part)) else part for part in parts))
    return printable(path)


def _nobody_reads() -> bool:
    """Whether the reader of a pipe that we print to has gone; what is still to be printed is then dropped."""
    try:
        printed_to, gone = select.poll(), False
        printed_to.register(sys.stdout.fileno(), 0)  # errors alone
        gone = bool(printed_to.poll(0))
        sys.stdout.flush()
    except BrokenPipeError:
        gone = True
    except (ValueError, OSError):  # no file, as where a test reads what is printed
        return False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def say(text: str) -> None:
    """Print a text that may hold names from outside: control characters as escapes."""
    print(for_terminal(text))


def console_for(quiet: bool = False) -> Console:
    """A rich console; output that goes to a file or a pipe is wide enough for a table of label errors.

    Texts are shown as they are: no markup or emoji is looked for in them, and control characters are escapes. A cell of
    a table that is too narrow goes on below; nothing of a result is cut off.
    """
    from rich.console import Console
    from rich.table import Table

    class PlainConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            for table in objects:
                for column in table.columns if isinstance(table, Table) else ():
                    column.overflow = "fold"
            super().print(*objects, **options)

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(for_terminal(text), **options)

    def console(width: int | None = None) -> Console:
        return PlainConsole(quiet=quiet, width=width, markup=False, emoji=False)

    found = console()
    return found if found.is_terminal else console(WIDTH_OF_A_FILE)
