"""What a training step takes on this device: forward, backward, optimiser, beside what the device could do at best.

Tested in tests/unit/test_engine.py.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from harps_dist.benchmarks.inference_speed import Device, cpu_name
from harps_dist.config import Engine, Precision, Recipe
from harps_dist.data.observer import Batch
from harps_dist.errors import ConfigError
from harps_dist.models.build import build_model
from harps_dist.models.cost import TRAINING, forward_cost
from harps_dist.models.losses import global_loss, loss_parts
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ownership import json_file, write_json
from harps_dist.ranks.memory import keep_freed_memory
from harps_dist.ranks.world import World
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.spectra.grid import Grid, named_grid
from harps_dist.spectra.labels import NAMES
from harps_dist.training.clock import StepClock
from harps_dist.training.peaks import measured_peaks, shortest
from harps_dist.training.precision import prepare
from harps_dist.training.strategies.choose import make_strategy

if TYPE_CHECKING:
    from rich.table import Table

_TRIES = 3
CONVENTION = (
    "Random spectra that lie on the device; the fastest of three repeats after one that warms up. Floors: a forward "
    "and a backward pass as three forward passes, their arithmetic at the speed of a large matrix product in this "
    "precision, and the traffic of unfused operations in float32 at that of a large copy, both measured here."
)


@dataclass(frozen=True)
class StepSpeed:
    """Milliseconds a spectrum of one model's step. arithmetic_ms, traffic_ms: the floors of CONVENTION."""

    recipe: str
    grid: str
    precision: Precision
    compiled: bool
    batch: int
    forward_ms: float
    backward_ms: float
    step_ms: float
    arithmetic_ms: float
    traffic_ms: float
    peak_memory_mib: float | None

    @property
    def bound(self) -> Literal["arithmetic", "traffic"]:
        """Which floor is the higher one."""
        return "arithmetic" if self.arithmetic_ms > self.traffic_ms else "traffic"

    @property
    def over_floor(self) -> float:
        """The whole step over the higher floor."""
        return self.step_ms / max(self.arithmetic_ms, self.traffic_ms)


def distinct_recipes() -> list[str]:
    """One recipe for every distinct model and loss of the paper's rows."""
    found: dict[object, str] = {}
    for name, recipe in RECIPES.items():
        if not name.startswith(("demo-", "fig")):
            found.setdefault((recipe.model, recipe.loss), name)
    return list(found.values())


def step_speeds(
    grid: str,
    recipes: Sequence[str] = (),
    device: Device = "cpu",
    batches: Iterable[int] = (32,),
    precisions: Iterable[Precision] = ("fp32", "bf16"),
    compiled: Iterable[bool] = (False,),
) -> list[StepSpeed]:
    """Measure every combination; one that does not fit into memory is left out.

    Raises ConfigError for an unknown recipe or grid, or where there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that torch can use. Measure with --device cpu, or on a machine with one.")
    where, chosen = torch.device(device), named_grid(grid)
    if device == "cpu":
        keep_freed_memory()  # as training does
    return [
        found
        for name in recipes or distinct_recipes()
        for precision in precisions
        for compile in compiled
        for batch in batches
        if (found := _measure(name, find_recipe(name), chosen, where, precision, compile, batch)) is not None
    ]


def _measure(
    name: str, recipe: Recipe, grid: Grid, device: torch.device, precision: Precision, compile: bool, size: int
) -> StepSpeed | None:
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    recipe = recipe.changed(training={"precision": precision, "batch_size": size})
    model = build_model(recipe.model, grid)
    prepare(model, precision)
    model.to(device)
    world = World(0, 1, device)
    strategy = make_strategy(model, recipe.training, Engine(compile=compile), world, StepClock(device))
    valid = torch.from_numpy(grid.valid).to(device).nonzero()[:, 0]
    batch = _random_batch(model, grid, size, device)

    def loss() -> torch.Tensor:
        parts = loss_parts(model, strategy.forward(batch), batch, valid, recipe.loss)
        return global_loss(parts, torch.stack([part.terms for part in parts.values()]), 1)

    def backward() -> None:
        strategy.backward(loss(), 1.0)

    def step() -> None:
        backward()
        strategy.update(1e-4, 1.0)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        forward_s, backward_s, step_s = (shortest(run, device, _TRIES) for run in (loss, backward, step))
    except torch.OutOfMemoryError:
        return None
    cost, peaks = forward_cost(recipe.model, grid), measured_peaks(device, precision)
    return StepSpeed(
        recipe=name,
        grid=grid.name,
        precision=precision,
        compiled=compile,
        batch=size,
        forward_ms=1e3 * forward_s / size,
        backward_ms=1e3 * (backward_s - forward_s) / size,
        step_ms=1e3 * step_s / size,
        arithmetic_ms=1e3 * TRAINING * cost.flops / peaks.flops,
        traffic_ms=1e3 * TRAINING * cost.bytes / peaks.bytes,
        peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    )


def _random_batch(model: SpectrumModel, grid: Grid, size: int, device: torch.device) -> Batch:
    flux = 1 + 0.01 * torch.randn(size, grid.length, device=device)
    scale = torch.zeros(len(NAMES), dtype=torch.float64)
    labels = scale.expand(size, -1).clone().to(device)
    labels[:, model.columns] = model.physical(torch.randn(size, len(model.labels), device=device))
    rows = torch.arange(size, device=device)
    return Batch(flux, labels, rows % 2 == 0, rows, rows)


def step_table(speeds: Iterable[StepSpeed], device: Device) -> Table:
    """The measurements as a rich table, the convention in its caption."""
    from rich.table import Table

    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    table = Table(title=f"A training step on {name}, ms a spectrum", caption=CONVENTION)
    for header in ("recipe", "precision", "compiled"):
        table.add_column(header)
    for header in ("batch", "forward", "backward", "step", "arithmetic", "traffic", "× floor"):
        table.add_column(header, justify="right")
    for one in speeds:
        times = (one.forward_ms, one.backward_ms, one.step_ms, one.arithmetic_ms, one.traffic_ms)
        row = (one.recipe, one.precision, "yes" if one.compiled else "no", str(one.batch), *(f"{t:.3f}" for t in times))
        table.add_row(*row, f"{one.over_floor:.1f}")
    return table


STEPS = json_file("speeds of steps", "--json", {"device", "threads", "torch", "python", "convention", "peaks", "steps"})


def write_steps(speeds: Iterable[StepSpeed], device: Device, path: Path | None) -> None:
    """Write every figure with the device's name and measured peaks; see `ownership.write_json`."""
    speeds = list(speeds)
    where = torch.device(device)
    content = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "convention": CONVENTION,
        "peaks": {one.precision: measured_peaks(where, one.precision)._asdict() for one in speeds},
        "steps": [asdict(one) | {"bound": one.bound, "over_floor": one.over_floor} for one in speeds],
    }
    write_json(path, STEPS, content)
