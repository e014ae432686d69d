"""Train a run's successor on a release that has grown:
`torchrun --nproc_per_node=4 launch/retrain.py --from RUN --release NEW --policy warm --out DIR`.

Any field of the recipe that follows from RUN and the policy can be overridden, as with train.py, whose help explains
them. The same command given again goes on where it was. Compare the two with launch/compare.py before one takes the
other's place.

Example: `harps-dist retrain --from models/current --release R2 --policy warm --out runs/next`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harps_dist.config import Engine, Recipe
from harps_dist.promotion.retrain import Retraining


@dataclass
class Arguments:
    """All but the fields of the recipe."""

    run: Annotated[Path, tyro.conf.arg(name="from")]
    """Run whose place the new one is to take."""
    release: str
    """Release to train on: a folder or URL."""
    out: Path | None = None
    """Folder of the new run; default lies beside the old one, named after it, the policy and the release."""
    retraining: Annotated[Retraining, tyro.conf.arg(name="")] = Retraining()  # noqa: RUF009
    """How the model is trained again."""
    engine: Annotated[Engine, tyro.conf.arg(name="")] = Engine()  # noqa: RUF009
    """How the training is carried out."""


def main() -> int:
    arguments, fields = tyro.cli(Arguments, description=__doc__, return_unknown_args=True)
    from harps_dist.data.reader import Release
    from harps_dist.promotion.retrain import retraining_recipe
    from harps_dist.ranks.world import join_world
    from harps_dist.runs.run import Run
    from harps_dist.training.loop import train_run

    old, policy, engine = arguments.run, arguments.retraining.policy, arguments.engine
    release = Release(arguments.release, Run(old).recipe.data.cache)
    name, preset = retraining_recipe(old, arguments.release, release.manifest, arguments.retraining)
    recipe = tyro.cli(Recipe, default=preset, args=fields, config=(tyro.conf.AvoidSubcommands,))
    out = arguments.out or old.with_name(f"{old.name}-{policy}-{release.digest[:8]}")
    with join_world(engine.max_minutes) as world:
        train_run(recipe, name, release, out, world, None if policy == "scratch" else old, engine)
    return 0
