"""What a run is: frozen, validated objects. A recipe names a model, its data and its training.

The command line overrides any field, unknown keys are refused, and the resolved recipe is saved with the run.

Tested in tests/unit/test_losses.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, model_validator

from harps_dist.data.augment import Augment
from harps_dist.data.order import Mix
from harps_dist.data.stores import Cache
from harps_dist.frozen import Frozen
from harps_dist.models.config import Loss, Model
from harps_dist.sealed import digest_of
from harps_dist.spectra.labels import LABEL

Auto = Literal["auto"]


class Data(Frozen):
    """Which release, how it is mixed and augmented.

    What is "auto" suits the device, its memory and the release; the first line of a training says what was chosen.
    """

    release: str = "demo"
    """Release to train on: a folder, a URL, or "demo" for the embedded one, which is built on first use."""
    mix: Mix = Mix()
    """How an epoch is mixed from real and simulated samples."""
    augment: Augment = Augment()
    """What is drawn anew for a simulated spectrum each time it is seen."""
    label_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the real labels that training sees (Table 5: 0.01)."""
    label_fraction_by: Literal["per_spectrum", "per_star"] = "per_spectrum"
    """Draw that share per spectrum and label, as the paper, or per star and label.
    Per spectrum, much-observed stars stay labelled.
    """
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Threads of each rank that read ahead; with 0 a batch is read when it is asked for."""
    cache: Cache = Cache()
    """Where blocks of a release that lies behind a URL are kept."""
    resident: Literal["no", "host", "device"] | Auto = "auto"
    """Memory in which the codes of all training samples stay once they are read, each rank its share."""
    compile: bool | Auto = "auto"
    """Fuse what the device does to a batch with torch.compile; a GPU gains much by it, small CPU runs lose time to it.
    A run that is gone on with keeps what it was begun with.
    """

    @property
    def blanked(self) -> float:
        """Largest share of the pieces of a spectrum that training sets to the continuum; 0 where it blanks none."""
        return self.augment.nuisance.blanked if self.mix.simulated > 0 else 0.0


Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]


class Training(Frozen):
    """Optimiser, schedule, length and precision."""

    steps: int | None = Field(None, ge=1)
    """Length of the training in optimiser steps; without it `epochs` counts."""
    epochs: int = Field(1000, ge=1)
    """Length of the training in epochs, where `steps` is not given."""
    batch_size: int = Field(32, ge=1)
    """Samples of the global batch, whatever the number of ranks."""
    accumulate: int = Field(1, ge=1)
    """Parts of a rank's batch that are learned from one after the other, so that less memory is needed.
    Loss and gradient of the optimiser step are those of the whole batch.
    """
    learning_rate: Annotated[float, Field(gt=0), tyro.conf.arg(aliases=("--training.lr",))] = 1e-4
    """Learning rate after the warm-up, for batches of `lr_batch_size` where it is scaled."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """How the learning rate grows with batch_size; with Adam the square root keeps the noise of an update the same."""
    lr_batch_size: int = Field(32, ge=1)
    """Batch size that the learning rate is given for."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warm-up: constant, or half a cosine down to 1 % at the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from nothing."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's means of the gradient and of its square."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; without it none is clipped."""
    precision: Precision | Auto = "auto"
    """Precision of the convolutions; auto is bf16 where the GPU multiplies in it, else fp32.
    Norm statistics, losses and output layers stay in fp32.
    tf32 is fp32 with the GPU's rounded multiplications, fp16 scales the loss, fp64 is for comparisons.
    A run that is gone on with keeps what it was begun with.
    """
    label_scale: Literal["release", "kept"] = "release"
    """Means and deviations that normalise labels: of the release's training split, or of the run that it starts from.
    Either way the weights that are taken over predict what they predicted.
    """
    seed: int = 0
    """Seed of weights, order and all that is drawn."""

    @property
    def known_precision(self) -> Precision:
        """`precision`, once it is settled; raises ValueError while it is "auto"."""
        if self.precision == "auto":
            raise ValueError("precision is auto. Settle it for a device first, or name one.")
        return self.precision


class Log(Frozen):
    """How often to log, validate and save; none of it changes what is learned."""

    every: int = Field(20, ge=1)
    """Steps from one line of the log to the next."""
    validate_every: int = Field(1000, ge=1)
    """Steps from one validation to the next."""
    save_every: int = Field(500, ge=1)
    """Steps from one checkpoint to the next."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints that stay; the one with the least validation loss stays besides."""
    ledger: bool = False
    """Keep which samples every step saw in RUN/ledger.jsonl, and check it against the order at the end."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Log to Weights & Biases too."""
    wandb_project: str = "harps_dist"
    """Project of Weights & Biases."""


class Engine(Frozen):
    """How a run is carried out; nothing of it changes what is learned beyond rounding, or need stay when it goes on.

    What is "auto" suits the device and the model.
    """

    strategy: Literal["ddp", "deepspeed"] = "ddp"
    """Who exchanges gradients and holds the optimiser."""
    zero: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shares out among the ranks: nothing (0), the optimiser (1), gradients too (2), weights too (3)."""
    deepspeed_config: str | None = None
    """JSON that is merged over the configuration that is made for DeepSpeed."""
    kernels: Literal["torch", "triton"] | Auto = "auto"
    """What computes convolutions and makes spectra: PyTorch, or kernels of our own in Triton.
    Those need an NVIDIA GPU of compute capability 8.0 or newer.
    """
    compile: bool | Auto = "auto"
    """Fuse the model with torch.compile; where that fails, a message says so and the model runs as it is."""
    graph: bool | Auto = "auto"
    """Launch a step of one GPU as one CUDA graph."""
    resume: Literal["auto", "never"] = "auto"
    """Go on with the newest whole checkpoint, or refuse a folder that holds one."""
    max_minutes: float | None = Field(None, gt=0)
    """Save and stop after so long, to be continued [min]."""
    profile: int = Field(0, ge=0)
    """Write a trace of so many steps for chrome://tracing."""


_NOT_LEARNED = ("workers", "release", "cache", "resident")  # fields of `data`


def recipe_digest(content: Mapping[str, Any]) -> str:
    """`Recipe.digest` of a recipe as JSON, which another version may have written.

    Raises ValueError where it has no `data`.
    """
    return digest_of(_learned(content))


def _learned(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as JSON without what does not change what is learned."""
    if not isinstance(content.get("data"), Mapping):
        raise ValueError("the recipe has no data")
    data = {name: value for name, value in content["data"].items() if name not in _NOT_LEARNED}
    return {name: value for name, value in content.items() if name != "log"} | {"data": data}


def recipe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Fields that `recipe_digest` tells two recipes as JSON apart by, each with both values.

    Raises ValueError where one has no `data`.
    """
    old, new = _fields(_learned(before)), _fields(_learned(now))
    return [
        f"{name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"
        for name in new | old
        if name not in old or name not in new or old[name] != new[name]
    ]


def _fields(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        nested = isinstance(value, Mapping)
        found |= _fields(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


class Recipe(Frozen):
    """One row of the paper's tables, or a variation of it."""

    model: Model
    """What is trained."""
    parent: str | None = None
    """Recipe whose run, beside this one, lends the weights that fit; it is trained where it is missing."""
    data: Data = Data()
    """Which release, how it is mixed and augmented."""
    loss: Loss = Loss()
    """Weights of the loss parts and the shape of their errors."""
    training: Training = Training()
    """Optimiser, schedule, length and precision."""
    log: Log = Log()
    """How often to log, validate and save."""

    @property
    def digest(self) -> str:
        """sha256 of everything that changes what is learned: all but `log` and how data are read."""
        return recipe_digest(self.model_dump(mode="json"))

    def changed(self, **parts: Mapping[str, object]) -> Recipe:
        """This recipe with some fields of its parts replaced: changed(training={"steps": 5})."""
        whole = {name: getattr(self, name).model_copy(update=dict(fields)) for name, fields in parts.items()}
        return self.model_copy(update=whole)

    @model_validator(mode="after")
    def _known_labels(self) -> Recipe:
        unknown = [name for name in self.model.labels if name not in LABEL]
        if unknown:
            raise ValueError(f"unknown labels {unknown}; known are {list(LABEL)}.")
        if self.model.variational and not (self.loss.kl or self.loss.mmd):
            raise ValueError("a variational autoencoder needs a weight for kl or mmd; set loss.kl or loss.mmd.")
        if not self.model.reads and self.data.mix.real > 0:
            raise ValueError(
                "a decoder alone needs every label of every spectrum, which real ones do not have; set data.mix.real 0."
            )
        return self
