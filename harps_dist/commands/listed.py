"""What `harps-dist` can run, for people and for shells."""

from __future__ import annotations

from importlib.resources import files

PROGRAM = "harps-dist"
COMMANDS: dict[str, dict[str, str]] = {
    "From files to a release": {
        "fetch": "spectra from an archive on the web into a folder",
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
        "fit": "labels of spectra by least squares of simulated ones",
        "lines": "corrections of line depths from a star of known labels",
        "simulate": "spectra of labels",
    },
}
OF_PREPROCESSING = (*COMMANDS["From files to a release"],)


def names() -> list[str]:
    """All commands, in the order of the list."""
    return [name for group in COMMANDS.values() for name in group]


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

    script = (files("harps_dist.commands") / "completion.bash").read_text(encoding="utf-8")
    return script.replace("COMMANDS", " ".join(names())).replace("RECIPES", " ".join(RECIPES))
