"""Train a run's successor on a release that has grown:
`torchrun --nproc_per_node=4 launch/retrain.py --from RUN --release NEW --policy warm --out DIR`.

Any field of the recipe that follows from RUN and the policy can be overridden, as with train.py, and the same command
given again goes on where it was. Compare the two with launch/compare.py before one takes the other's place.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harps_dist.config import Engine, Recipe
from harps_dist.promotion.retrain import Retraining


@dataclass
class What:
    run: Annotated[Path, tyro.conf.arg(name="from")]
    """Run whose place the new one is to take."""
    release: str
    """Release to train on: a folder or URL."""
    retraining: Annotated[Retraining, tyro.conf.arg(name="")] = Retraining()  # noqa: RUF009


def main() -> int:
    helped = [word for word in ("-h", "--help") if word in sys.argv]
    what, rest = tyro.cli(What, args=sys.argv[1:], description=__doc__, return_unknown_args=True)
    from harps_dist.data.reader import Release
    from harps_dist.promotion.retrain import retraining_recipe
    from harps_dist.ranks.world import join_world
    from harps_dist.runs.run import Run
    from harps_dist.training.loop import train_run

    release = Release(what.release, Run(what.run).recipe.data.cache)
    name, preset = retraining_recipe(what.run, what.release, release.manifest, what.retraining)
    beside = what.run.with_name(f"{what.run.name}-{what.retraining.policy}-{release.digest[:8]}")

    @dataclass
    class Arguments:
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = preset
        out: Path = beside
        """Folder of the new run."""
        engine: Annotated[Engine, tyro.conf.arg(name="")] = Engine()  # noqa: RUF009

    parsed = tyro.cli(Arguments, args=[*rest, *helped], config=(tyro.conf.AvoidSubcommands,))
    start_from = None if what.retraining.policy == "scratch" else what.run
    with join_world(parsed.engine.max_minutes) as world:
        train_run(parsed.recipe, name, release, parsed.out, world, start_from, parsed.engine)
    return 0
