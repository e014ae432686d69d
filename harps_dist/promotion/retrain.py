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
from harps_dist.runs.run import Run

Policy = Literal["warm", "replay", "scratch"]


class Retraining(Frozen):
    """How a model is trained again on a release that has grown.

    policy: "warm" goes on from the weights of the run before, on all of the release; "replay" too, but draws a share of
    its real spectra, `replay`, from what that run knew and the rest from what came since; "scratch" trains anew as the
    run before was trained, the control that the others are to be measured by. length: steps of a warm start, as a
    share of those that the run before has taken. lr_factor: its learning rate, as a share of the first one's, reached
    after `rewarm` of the steps, and let down to nothing by a cosine. label_scale: of a warm start, the scale of the run
    before, or that of the release, in which the weights are then expressed; predictions jump with neither.
    """

    policy: Policy = "warm"
    replay: float = Field(0.5, gt=0, lt=1)
    length: float = Field(0.25, gt=0)
    lr_factor: float = Field(0.3, gt=0)
    rewarm: float = Field(0.05, ge=0, le=1)
    label_scale: Literal["kept", "release"] = "kept"


def retraining_recipe(run: Path, release: str, manifest: Manifest, retraining: Retraining) -> tuple[str, Recipe]:
    """Name and recipe of a run's successor on another release.

    Raises ConfigError where the release splits stars otherwise than the one that the run was trained on, or, to replay,
    did not grow from it; ResumeError where the run has no whole checkpoint.
    """
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
