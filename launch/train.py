"""Train a recipe: `torchrun --nproc_per_node=4 launch/train.py [RECIPE] [--data.release R] [--out DIR] …`.

Without arguments it trains the default recipe on the embedded demo release, building that on first use. The
recipes are those of harps_dist/recipes.py; any field can be overridden. A run's folder that holds a checkpoint
of the same recipe and release is continued. A recipe's parent is found beside the run or trained first.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harps_dist.config import Recipe
from harps_dist.errors import HarpsDistError
from harps_dist.recipes import DEFAULT, RECIPES, find_recipe


def parse(arguments: list[str]) -> tuple[str, Recipe, Path, Path | None]:
    """Recipe name, resolved recipe, folder of the run and run to start from, from the command line."""
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else DEFAULT
    preset = find_recipe(name)

    @dataclass
    class Arguments:
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = preset
        out: Path = Path("runs") / name
        """Folder of the run."""
        start_from: Path | None = None
        """Run whose fitting weights a new run begins with; default: that of the recipe's parent, beside this one."""

    parsed = tyro.cli(
        Arguments,
        args=arguments[named:],
        prog=f"train.py [{name}]",
        description=f"{__doc__}\nRecipes: {', '.join(RECIPES)}.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return name, parsed.recipe, parsed.out, parsed.start_from


def main() -> int:
    name, recipe, run, start_from = parse(sys.argv[1:])
    from harps_dist.data.reader import Release
    from harps_dist.training.distributed import join_world
    from harps_dist.training.loop import train_run
    from preprocessing.demo import resolve_release

    with join_world() as world:
        if world.is_main:
            resolve_release(recipe.data.release)
        world.barrier()
        release = Release(resolve_release(recipe.data.release), recipe.data.cache)
        train_run(recipe, name, release, run, world, start_from)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HarpsDistError as error:
        sys.exit(f"{type(error).__name__}: {error}")
