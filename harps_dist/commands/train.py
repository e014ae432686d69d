"""Train a recipe: `torchrun --nproc_per_node=4 launch/train.py [RECIPE] [--data.release R] [--out DIR] …`.

Without arguments it trains the default recipe on the embedded demo release, building that on first use. The
recipes are those of harps_dist/recipes.py; any field can be overridden. A run's folder that holds a checkpoint
of the same recipe and release is continued. A recipe's parent is found beside the run or trained first.

Example: `harps-dist train demo-cnn-mix --out runs/first --training.steps 200`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harps_dist.config import Engine, Recipe
from harps_dist.data.augment import named_nuisance
from harps_dist.errors import ConfigError
from harps_dist.recipes import DEFAULT, find_recipe, overview

NUISANCE = "--data.augment.nuisance"


def parse(arguments: list[str]) -> tuple[str, Recipe, Path, Path | None, Engine, bool]:
    """Recipe name, resolved recipe, folder of the run, run to start from, engine, whether to plan alone."""
    arguments = [word for word in arguments if not word.startswith("--local_rank")]  # of the deepspeed launcher
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else DEFAULT
    preset, arguments = _with_nuisances(find_recipe(name), arguments)

    @dataclass
    class Arguments:
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = preset
        """What is learned."""
        out: Path = Path("runs") / name
        """Folder of the run."""
        start_from: Path | None = None
        """Run whose fitting weights a new run begins with; default: that of the recipe's parent, beside this one."""
        engine: Annotated[Engine, tyro.conf.arg(name="")] = Engine()  # noqa: RUF009
        """How it is carried out."""
        plan: bool = False
        """Say what the run would take, from a few steps that are forgotten, and train nothing."""

    parsed = tyro.cli(
        Arguments,
        args=arguments[named:],
        prog=f"{Path(sys.argv[0]).name} [{name}]",
        description=f"{__doc__}\n{overview()}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return name, parsed.recipe, parsed.out, parsed.start_from, parsed.engine, parsed.plan


def _with_nuisances(preset: Recipe, arguments: list[str]) -> tuple[Recipe, list[str]]:
    """A recipe with the nuisances that `--data.augment.nuisance NAME` names last, and all other arguments."""
    words, others = iter(arguments), []
    for word in words:
        option, _, value = word.partition("=")
        if option != NUISANCE:
            others.append(word)
            continue
        try:
            nuisance = named_nuisance(value or next(words, ""))
        except ValueError as error:
            raise ConfigError(f"{NUISANCE}: {error}") from None
        preset = preset.changed(data={"augment": preset.data.augment.model_copy(update={"nuisance": nuisance})})
    return preset, others


def main() -> int:
    name, recipe, run, start_from, engine, planned = parse(sys.argv[1:])
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.ownership import check
    from harps_dist.ranks.world import join_world
    from harps_dist.runs.run import RUN
    from harps_dist.training.loop import train_run
    from harps_dist.training.progress import next_command

    with join_world(None if planned else engine.max_minutes) as world:
        if not planned:
            world.of_main(lambda: check(run, RUN))
        release = open_release(world, recipe.data.release, recipe.data.cache)
        if not planned:
            train_run(recipe, name, release, run, world, start_from, engine)
            console_for(quiet=not world.is_main).print(next_command("evaluate", run, sys.argv[0]), soft_wrap=True)
            return 0
        from harps_dist.training.plan import plan

        console_for(quiet=not world.is_main).print(plan(recipe, name, release, world, engine))
    return 0
