"""The one door: `harps-dist COMMAND …` for everything that there is to run.

A command is imported when it is named, so that the list of them is there at once.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

from harps_dist import __version__
from harps_dist.commands.listed import OF_PREPROCESSING, PROGRAM, completion, names, overview
from harps_dist.errors import ConfigError

PREPROCESSING = "preprocessing.__main__"


def main() -> int:
    """Run the command that the first argument names.

    Raises ConfigError for a name that is none, with the nearest that is.
    """
    arguments = sys.argv[1:]
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "completion":
        print(completion())
        return 0
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{PROGRAM} has no command {name!r}. {meant}`{PROGRAM} --help` lists them.")
    if name in OF_PREPROCESSING:
        module, sys.argv = PREPROCESSING, [PROGRAM, *arguments]
    else:
        module, sys.argv = f"harps_dist.commands.{name}", [f"{PROGRAM} {name}", *arguments[1:]]
    return import_module(module).main()
