"""What a run is: frozen, validated objects. A recipe names a model, its data and its training.

The command line overrides any field, unknown keys are refused, and the resolved recipe is saved with the run.

Tested in tests/unit/test_losses.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

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

    release: path of a release, or "demo" for the embedded demo release, which is built on first use.
    workers: threads of each rank that read ahead; 0 reads when a batch is asked for. "auto" for these and those below:
    what suits the device, its memory and the release; the first line of a training says what was chosen.
    label_fraction: share of the real labels that training sees (Table 5: 0.01), drawn per spectrum and label as the
    paper does, which leaves much-observed stars labelled, or per star and label.
    cache: where blocks of a release that lies behind a URL are kept. resident: read the codes of all training samples
    once and keep them in the memory of the host or the device, each rank its share. compile: fuse what the device does
    to a batch with torch.compile, which a GPU gains much by and small CPU runs lose time to; a run that is gone on with
    keeps what it was begun with.
    """

    release: str = "demo"
    mix: Mix = Mix()
    augment: Augment = Augment()
    label_fraction: float = Field(1.0, gt=0, le=1)
    label_fraction_by: Literal["per_spectrum", "per_star"] = "per_spectrum"
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    cache: Cache = Cache()
    resident: Literal["no", "host", "device"] | Auto = "auto"
    compile: bool | Auto = "auto"


Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]


class Training(Frozen):
    """Optimiser, schedule, length and precision. batch_size is that of the global batch, whatever the ranks.

    accumulate: parts of a rank's batch that are learned from one after the other, for one optimiser step, so that
    less memory is needed; loss and gradient are those of the whole batch. lr_scaling: how the learning rate, given for
    batches of `lr_batch_size`, grows with batch_size; with Adam the square root keeps the noise of an update the same.
    precision: of the convolutions; norm statistics, losses and output layers stay in fp32. fp16 scales the loss, tf32
    is fp32 with the GPU's rounded multiplications, fp64 is for comparisons. "auto" is bf16 where the GPU multiplies in
    it, else fp32; a run that is gone on with keeps what it was begun with.
    label_scale: means and deviations that labels are normalised by: those of the release's training split, or those
    that the run was trained under which this one starts from. Either way the weights that are taken over predict what
    they predicted.
    """

    steps: int | None = Field(None, ge=1)
    epochs: int = Field(1000, ge=1)
    batch_size: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    lr_batch_size: int = Field(32, ge=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = Field(None, gt=0)
    precision: Precision | Auto = "auto"
    label_scale: Literal["release", "kept"] = "release"
    seed: int = 0

    @property
    def known_precision(self) -> Precision:
        """`precision`, once it is settled; raises ValueError while it is "auto"."""
        if self.precision == "auto":
            raise ValueError("precision is auto. Settle it for a device first, or name one.")
        return self.precision


class Log(Frozen):
    """How often to log, validate and save; none of it changes what is learned.

    keep: how many of the newest checkpoints stay; the one with the least validation loss stays besides. ledger: keep
    which samples every step saw in RUN/ledger.jsonl, and check it against the order at the end.
    """

    every: int = Field(20, ge=1)
    validate_every: int = Field(1000, ge=1)
    save_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    ledger: bool = False
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    wandb_project: str = "harps_dist"


class Engine(Frozen):
    """How a run is carried out; nothing of it changes what is learned beyond rounding, or need stay when it goes on.

    strategy: who exchanges gradients and holds the optimiser. zero: what DeepSpeed shares out among the ranks: nothing,
    the optimiser (1), gradients too (2), weights too (3). deepspeed_config: JSON that is merged over the configuration
    that is made for DeepSpeed. kernels: what computes convolutions and makes
    spectra, PyTorch, or kernels of our own in Triton, for which an NVIDIA GPU of compute capability 8.0 or newer is
    needed. compile: fuse the model with torch.compile; where that
    fails, a message says so and the model runs as it is. graph: launch a step of one GPU as one CUDA graph. "auto" for
    these: what suits the device and the model. resume: go on with the newest whole checkpoint, or refuse a
    folder that holds one. max_minutes: save and stop after so long, to be continued. profile: write a trace of so many
    steps for chrome://tracing.
    """

    strategy: Literal["ddp", "deepspeed"] = "ddp"
    zero: Literal[0, 1, 2, 3] = 1
    deepspeed_config: str | None = None
    kernels: Literal["torch", "triton"] | Auto = "auto"
    compile: bool | Auto = "auto"
    graph: bool | Auto = "auto"
    resume: Literal["auto", "never"] = "auto"
    max_minutes: float | None = Field(None, gt=0)
    profile: int = Field(0, ge=0)


_NOT_LEARNED = ("workers", "release", "cache", "resident")  # fields of `data`


def recipe_digest(content: Mapping[str, Any]) -> str:
    """`Recipe.digest` of a recipe as JSON, which another version may have written.

    Raises ValueError where it has no `data`.
    """
    if not isinstance(content.get("data"), Mapping):
        raise ValueError("the recipe has no data")
    data = {name: value for name, value in content["data"].items() if name not in _NOT_LEARNED}
    learned = {name: value for name, value in content.items() if name != "log"} | {"data": data}
    return digest_of(learned)


class Recipe(Frozen):
    """One row of the paper's tables, or a variation of it.

    parent: recipe whose run, beside this one, lends the weights that fit; it is trained where it is missing.
    """

    model: Model
    parent: str | None = None
    data: Data = Data()
    loss: Loss = Loss()
    training: Training = Training()
    log: Log = Log()

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
