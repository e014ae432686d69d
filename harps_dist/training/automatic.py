"""Settings that are right without being known: "auto" becomes what device, memory, release and run allow.

Tested in tests/unit/test_automatic.py.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import torch

from harps_dist.config import Engine, Precision, Recipe
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.data.resident import free_bytes, resident_bytes
from harps_dist.errors import ConfigError
from harps_dist.kernels.availability import available, triton_installed
from harps_dist.ranks.world import World

_MOST_WORKERS = 8
_RESIDENT_SHARE = 0.25  # of the free memory


class Machine(NamedTuple):
    """What a rank has. cores: of this rank. gpu: its name, "" for none; bf16, kernels, compiler: whether the GPU
    multiplies in it, ours run on it, torch.compile can make some for it."""

    cores: int
    gpu: str = ""
    bf16: bool = False
    kernels: bool = False
    compiler: bool = False


class Loading(NamedTuple):
    """How a rank reads samples: `Data.workers` and `Data.resident`."""

    workers: int
    resident: Literal["no", "host", "device"]


class Settings(NamedTuple):
    """A recipe and an engine without "auto", but for how samples are read, which a recipe leaves to every machine."""

    recipe: Recipe
    engine: Engine
    loading: Loading
    chosen: dict[str, object]

    @property
    def line(self) -> str:
        """What was chosen, for people."""
        words = {True: "on", False: "off"}
        return ", ".join(
            f"{name} {words.get(value, value) if isinstance(value, bool) else value}"
            for name, value in self.chosen.items()
        )


def this_machine(world: World) -> Machine:
    """What this rank has."""
    cores = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if world.device.type != "cuda":
        return Machine(cores)
    return Machine(
        cores,
        torch.cuda.get_device_name(world.device),
        torch.cuda.is_bf16_supported(including_emulation=False),
        available(),
        triton_installed(),
    )


def settle(
    recipe: Recipe,
    engine: Engine,
    machine: Machine,
    ranks: int,
    resident: Literal["no", "host", "device"] = "no",
    begun: Recipe | None = None,
) -> Settings:
    """Replace every "auto". resident: what suits the release. begun: the recipe of the run that is gone on with.

    What decides what is learned, precision and the fusing of spectra, stays as the run was begun.
    Raises ConfigError for a graph where there can be none.
    """
    gpu, chosen = bool(machine.gpu), {}

    def auto(name: str, asked: object, value: object) -> object:
        if asked != "auto":
            return asked
        chosen[name] = value
        return value

    best: Precision = "bf16" if machine.bf16 else "fp32"
    precision = auto("precision", recipe.training.precision, begun.training.precision if begun else best)
    fusible = gpu and machine.compiler
    fused = auto("data.compile", recipe.data.compile, begun.data.compile if begun else fusible)
    alone = engine.strategy == "ddp"
    measured = recipe.model.kind == "encoder"  # on a GPU; the others' kernels have only run in the interpreter
    ours = machine.kernels and alone and measured and precision != "fp64" and engine.compile is not True
    kernels = auto("kernels", engine.kernels, "triton" if ours else "torch")
    compiled = auto("compile", engine.compile, fusible and alone and kernels == "torch" and precision != "fp64")
    possible = gpu and alone and ranks == 1
    if engine.graph is True and not possible:
        raise ConfigError("--graph True needs a GPU, a single rank and --strategy ddp. Leave it at auto.")
    graph = auto("graph", engine.graph, possible and not engine.profile)
    workers = auto("workers", recipe.data.workers, max(1, min(_MOST_WORKERS, machine.cores - 1)) if gpu else 0)
    where = auto("resident", recipe.data.resident, resident)
    return Settings(
        recipe.changed(training={"precision": precision}, data={"compile": fused}),
        engine.model_copy(update={"kernels": kernels, "compile": compiled, "graph": graph}),
        Loading(workers, where),  # type: ignore[arg-type]
        chosen,
    )


def settle_here(
    recipe: Recipe, engine: Engine, release: Release, order: Order, world: World, begun: Recipe | None = None
) -> Settings:
    """`settle` for this rank's machine, a release and the order of its samples."""
    resident = _resident(recipe, release, order, world) if recipe.data.resident == "auto" else "no"
    return settle(recipe, engine, this_machine(world), world.size, resident, begun)


def _resident(recipe: Recipe, release: Release, order: Order, world: World) -> Literal["no", "host", "device"]:
    """Where the codes of all training samples may stay: in memory that has room for them, if they are read again."""
    samples = (recipe.training.steps or 0) * recipe.training.batch_size or recipe.training.epochs * order.epoch_length
    if world.device.type != "cuda" or samples < 2 * len(order.rows):
        return "no"
    needed = resident_bytes(release, order, world.size)
    places: tuple[tuple[Literal["device", "host"], torch.device], ...] = (
        ("device", world.device),
        ("host", torch.device("cpu")),
    )
    fits = [name for name, memory in places if needed <= _RESIDENT_SHARE * free_bytes(memory)]
    roomy = world.gather(fits)  # all ranks hold their shares in the same place
    return next((name for name, _ in places if all(name in one for one in roomy)), "no")
