"""From a trained run and a release that has grown to the recipe of the run that takes its place.

Tested in tests/integration/test_retraining.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from harps_dist.config import Recipe
from harps_dist.data.manifest import Manifest
from harps_dist.errors import ConfigError
from harps_dist.frozen import Frozen

Policy = Literal["warm", "replay", "scratch"]


class Retraining(Frozen):
    """How a model is trained again on a release that has grown."""

    policy: Policy = "warm"
    """Go on from the weights of the run before (warm), that and replay what it knew (replay), or train anew (scratch).
    scratch trains as the run before was trained: the control that the others are to be measured by.
    """
    replay: float = Field(0.5, gt=0, lt=1)
    """Share of the real spectra that policy replay draws from what the run before knew; the rest came since."""
    length: float = Field(0.25, gt=0)
    """Steps of a warm start, as a share of those that the run before has taken."""
    lr_factor: float = Field(0.3, gt=0)
    """Learning rate of a warm start, as a share of the first one's; a cosine lets it down to 1 % of it."""
    rewarm: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which a warm start's learning rate rises."""
    label_scale: Literal["kept", "release"] = "kept"
    """Scale of labels of a warm start: that of the run before, or that of the release.
    The weights are then expressed in it; predictions jump with neither.
    """


def retraining_recipe(run: Path, release: str, manifest: Manifest, retraining: Retraining) -> tuple[str, Recipe]:
    """Name and recipe of a run's successor on another release.

    Raises ConfigError where the release splits stars otherwise than the one that the run was trained on, or, to replay,
    did not grow from it; ResumeError where the run has no whole checkpoint.
    """
    from harps_dist.runs.run import Run

    opened = Run(run)
    saved = opened.saved
    _check_splits(run, manifest, saved.split)
    recipe = saved.recipe.changed(data={"release": release})
    if retraining.policy == "scratch":
        return saved.name, recipe
    checkpoint = opened.checkpoint()
    mix = recipe.data.mix
    if retraining.policy == "replay":
        mix = mix.model_copy(update={"replay": retraining.replay, "known": _known(run, manifest, saved.release_digest)})
    steps = max(1, math.ceil(retraining.length * checkpoint.step))
    return saved.name, Recipe(
        model=recipe.model,
        data=recipe.data.model_copy(update={"mix": mix}),
        loss=recipe.loss,
        training=recipe.training.model_copy(
            update={
                "steps": steps,
                "learning_rate": recipe.training.learning_rate * retraining.lr_factor,
                "schedule": "cosine",
                "warmup_steps": math.ceil(retraining.rewarm * steps),
                "label_scale": retraining.label_scale,
            }
        ),
        log=recipe.log,
    )


def _check_splits(run: Path, manifest: Manifest, split: tuple[tuple[float, float, float], str]) -> None:
    now = manifest.split_fractions, manifest.split_salt
    if now != split:
        raise ConfigError(
            f"run {run} was trained where stars were split {split[0]} (salt {split[1]}), the release splits them "
            f"{now[0]} (salt {now[1]}): stars that it was trained on would be tested on. Grow the release from that of "
            f"the run."
        )


def _known(run: Path, manifest: Manifest, digest: str) -> int:
    """The generation that the run's release is among the ancestors of the new one."""
    if digest not in manifest.ancestors:
        raise ConfigError(
            f"run {run} was trained on release {digest[:12]}, which the release {manifest.digest[:12]} did not grow "
            f"from (its ancestors: {', '.join(one[:12] for one in manifest.ancestors) or 'none'}). Use --policy "
            f"warm, or a release that did."
        )
    return manifest.ancestors.index(digest)
