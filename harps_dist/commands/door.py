"""The one door: `harps-dist COMMAND …` for everything that there is to run.

A command is imported when it is named, so that the list of them is there at once.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

from harps_dist import __version__
from harps_dist.errors import ConfigError

PROGRAM = "harps-dist"
PREPROCESSING = "preprocessing.__main__"
COMMANDS: dict[str, dict[str, str]] = {
    "From files to a release": {
        "ingest": "spectra (ESO Phase 3, s1d) into an archive",
        "etc": "Exposure Time Calculator outputs and SEDs into an archive",
        "generative": "the set on which interventions are measured into an archive",
        "merge": "parts of an archive that were ingested apart",
        "pack": "an archive into a release, which training streams",
        "verify": "read every byte of an archive or a release",
        "diff": "what changed from one release to another",
        "withdraw": "leave spectra out of releases to come",
        "demo": "a small archive and release of simulated files",
    },
    "From a release to a model": {
        "train": "train a recipe; alone, or under torchrun, deepspeed or srun",
        "evaluate": "score a run on what it has not seen",
        "compare": "one run against another, spectrum by spectrum",
        "retrain": "train again on a release that grew",
        "promote": "make a run, once it passed its gate, the one in use",
        "chain": "retrain, compare and promote as jobs of SLURM",
        "reproduce": "the tables and figures of the paper",
        "benchmark": "what recipes cost and how fast they run",
    },
    "From a model to spectra": {
        "export": "a run into a folder that predicts anywhere",
        "predict": "labels of spectra",
        "simulate": "spectra of labels",
    },
}
OF_PREPROCESSING = (*COMMANDS["From files to a release"],)
COMPLETION = """
_harps_dist() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" words=""
    if [ "$COMP_CWORD" = 1 ]; then
        words="COMMANDS"
    elif [ "${word#-}" != "$word" ]; then
        words="$(harps-dist "$command" --help 2>/dev/null | grep -oE -- '--[a-z][a-z0-9.-]*' | sort -u)"
    elif [ "$COMP_CWORD" = 2 ] && { [ "$command" = train ] || [ "$command" = benchmark ]; }; then
        words="RECIPES"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}
complete -o filenames -F _harps_dist harps-dist
"""


def names() -> list[str]:
    """All commands, in the order of the list."""
    return [name for group in COMMANDS.values() for name in group]


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


def overview() -> str:
    """What there is to run, for people."""
    width = max(map(len, names())) + 2
    groups = [
        "\n".join([f"{title}:", *(f"  {name:{width}}{what}" for name, what in group.items())])
        for title, group in COMMANDS.items()
    ]
    return "\n\n".join(
        [
            f"usage: {PROGRAM} COMMAND …",
            *groups,
            f"`{PROGRAM} COMMAND --help` explains a command.\n"
            f"On several GPUs: `torchrun --nproc_per_node=4 -m harps_dist train …`.\n"
            f'Completion in bash, and in zsh after `autoload -U bashcompinit && bashcompinit`: `eval "$({PROGRAM} '
            f'completion)"`.',
        ]
    )


def completion() -> str:
    """What a shell is to run so that it completes commands, recipes, options and files."""
    from harps_dist.recipes import RECIPES

    return COMPLETION.strip().replace("COMMANDS", " ".join(names())).replace("RECIPES", " ".join(RECIPES))
