"""What training takes on this device, and its parts alone: loader, observer, step, each beside its floor.

What is timed is what training runs: its stream of batches, its settings, `Learner.learn`.

Tested in tests/unit/test_step_speed.py.
"""

from __future__ import annotations

import gc
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from harps_dist.config import Auto, Engine, Precision, Recipe
from harps_dist.data.batches import RawBatch
from harps_dist.data.observer import Batch
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.models.cost import TRAINING, ForwardCost, forward_cost
from harps_dist.models.losses import global_loss, loss_parts
from harps_dist.ownership import json_file, write_json
from harps_dist.ranks.memory import keep_freed_memory
from harps_dist.ranks.world import World, cpu_name
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.runs.run import initial_model
from harps_dist.training.automatic import settle_here
from harps_dist.training.graph import WARM_STEPS
from harps_dist.training.learner import Learner
from harps_dist.training.peaks import Peaks, measured_peaks
from harps_dist.training.stream import training_stream

if TYPE_CHECKING:
    from rich.table import Table

Part = Literal["training", "step", "observer", "loader", "plain PyTorch"]
_WARM = WARM_STEPS + 2
_WINDOWS = 5
_PASSES = 5  # of every activation through memory in a fused step: written, read twice; its gradient written, read
CONVENTION = (
    "training: the stream of batches and Learner.learn, as a run takes them. The others are repeated on one batch: "
    "step, from spectra to changed weights; observer, from codes to spectra; loader, from shards to codes on the "
    "device; plain PyTorch, a step of the same modules and loss under PyTorch's own defaults (unfused Adam, TF32 "
    "convolutions, no autotuning, no graph), as the public code's. Medians of five windows after some steps that warm "
    "up. Floors: bytes that must move at the speed of a large copy, measured here: codes read and written; codes read "
    "and spectra written; every output of a convolution five times (written, read twice, gradient written and read), "
    "or, if that is more, the step's arithmetic as three forward passes at the speed of a large matrix product in this "
    "precision."
)


@dataclass(frozen=True)
class StepSpeed:
    """Milliseconds a spectrum of a part of training, and its floor by CONVENTION.

    settings: what was chosen where "auto" was asked for. peak_memory_mib: of a GPU up to then, else None.
    """

    recipe: str
    grid: str
    precision: Precision
    settings: str
    batch: int
    part: Part
    ms: float
    floor_ms: float
    peak_memory_mib: float | None

    @property
    def spectra_per_s(self) -> float:
        return 1e3 / self.ms

    @property
    def over_floor(self) -> float:
        return self.ms / self.floor_ms


def distinct_recipes() -> list[str]:
    """One recipe for every distinct model and loss of the paper's rows."""
    found: dict[object, str] = {}
    for name, recipe in RECIPES.items():
        if not name.startswith(("demo-", "fig")):
            found.setdefault((recipe.model, recipe.loss), name)
    return list(found.values())


def step_speeds(
    release: Release,
    recipes: Sequence[str] = (),
    world: World | None = None,
    engine: Engine = Engine(),  # noqa: B008
    batches: Iterable[int] = (32,),
    precisions: Iterable[Precision | Auto] = ("auto",),
    seconds: float = 5.0,
    **data: object,
) -> list[StepSpeed]:
    """Measure every combination on a release; one that does not fit into memory is left out.

    seconds: that each part is repeated, about. data: fields of `Data` in place of the recipe's.
    Raises ConfigError for an unknown recipe, or one that the release does not have the samples for.
    """
    world = world or World.alone()
    if world.device.type == "cpu":
        keep_freed_memory()  # as training does
    found: list[StepSpeed] = []
    for name, precision, batch in itertools.product(recipes or distinct_recipes(), precisions, batches):
        recipe = find_recipe(name).changed(training={"precision": precision, "batch_size": batch}, data=data)
        try:
            found += _measured(name, recipe, release, world, engine, seconds)
        except torch.OutOfMemoryError:
            continue
        finally:
            gc.collect()
            if world.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return found


def _measured(
    name: str, recipe: Recipe, release: Release, world: World, engine: Engine, seconds: float
) -> list[StepSpeed]:
    order = Order(release.index, recipe.data.mix, recipe.training.seed, release.digest)
    settings = settle_here(recipe, engine, release, order, world)
    recipe, device, size = settings.recipe, world.device, recipe.training.batch_size
    learner = Learner(recipe, release, world, settings.engine)
    stream = training_stream(recipe, release, order, world, range(2**31), settings.loading)

    def train() -> None:
        learner.learn(next(stream), recipe.training.learning_rate)

    for _ in range(_WARM):
        train()
    times: dict[Part, float] = {"training": _median_s(train, device, seconds)}
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    raw = next(stream)
    batch = learner.observer(raw)
    times["step"] = _median_s(lambda: learner.take(batch), device, seconds)
    times["observer"] = _median_s(lambda: learner.observer(raw), device, seconds)
    times["loader"] = _median_s(lambda: next(stream), device, seconds)
    times["plain PyTorch"] = _median_s(_plain_step(recipe, release, batch, device), device, seconds)
    floors = _floors(recipe, release, raw, batch, device)
    return [
        StepSpeed(
            recipe=name,
            grid=release.grid.name,
            precision="tf32" if part == "plain PyTorch" else recipe.training.known_precision,
            settings=settings.line if part == "training" else "",
            batch=size,
            part=part,
            ms=1e3 * taken / size,
            floor_ms=1e3 * floors[part] / size,
            peak_memory_mib=memory if part == "training" else None,
        )
        for part, taken in times.items()
    ]


def _median_s(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of a run, the median of a few windows of so many that they take the time given."""

    def window(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / count

    count = max(1, round(seconds / _WINDOWS / window(1)))
    return statistics.median(window(count) for _ in range(_WINDOWS))


def _plain_step(recipe: Recipe, release: Release, batch: Batch, device: torch.device) -> Callable[[], None]:
    """A step of the recipe's modules and loss as PyTorch takes it by default."""
    model = initial_model(recipe, release.manifest).to(device, batch.flux.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.training.learning_rate)
    valid = torch.from_numpy(release.grid.valid).to(device).nonzero()[:, 0]

    def step() -> None:
        tuned, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        rounded, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, True
        try:
            parts = loss_parts(model, model(batch), batch, valid, recipe.loss)
            global_loss(parts, torch.stack([part.terms for part in parts.values()]), 1).backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = tuned, rounded

    for _ in range(_WARM):
        step()
    return step


def _floors(recipe: Recipe, release: Release, raw: RawBatch, batch: Batch, device: torch.device) -> dict[Part, float]:
    """Seconds that a batch takes at best, by part; "training" is bound by the slowest of loader, observer and step."""
    precision = recipe.training.known_precision
    peaks, host = measured_peaks(device, precision), measured_peaks(torch.device("cpu"), "fp32")
    codes, spectra = sum(part.nbytes for part in raw), batch.flux.nbytes
    stored = float(release.index["bytes"][raw.rows.cpu().numpy()].sum())
    cost, size = forward_cost(recipe.model, release.grid), len(batch.flux)
    step, observer = _step_floor(cost, size, precision, peaks), (codes + spectra) / peaks.bytes
    loader = (stored + codes) / host.bytes
    plain = _step_floor(cost, size, "tf32", peaks)
    on_device = observer + step
    together = max(loader, on_device) if device.type == "cuda" else loader + on_device
    return {"training": together, "step": step, "observer": observer, "loader": loader, "plain PyTorch": plain}


def _step_floor(cost: ForwardCost, spectra: int, precision: Precision, peaks: Peaks) -> float:
    """Seconds of a fused step: what must pass through memory, or the arithmetic."""
    size = {"bf16": 2, "fp16": 2, "fp64": 8}.get(precision, 4)
    return spectra * max(_PASSES * size * cost.outputs / peaks.bytes, TRAINING * cost.flops / peaks.flops)


def step_table(speeds: Iterable[StepSpeed], device: torch.device) -> Table:
    """The measurements as a rich table, what was chosen and the convention in its caption."""
    from rich.table import Table

    speeds = list(speeds)
    chosen = [f"{one.recipe}, batch {one.batch}: {one.settings}." for one in speeds if one.settings]
    caption = "\n".join([*chosen, CONVENTION])
    table = Table(title=f"Training on {_device_name(device)}", caption=caption, caption_justify="left")
    for header in ("recipe", "precision"):
        table.add_column(header)
    table.add_column("batch", justify="right")
    table.add_column("part")
    for header in ("spectra/s", "ms a spectrum", "floor", "× floor"):
        table.add_column(header, justify="right")
    for one in speeds:
        first = one.part == "training"
        figures = (f"{one.spectra_per_s:,.0f}", f"{one.ms:.4f}", f"{one.floor_ms:.4f}", f"{one.over_floor:.1f}")
        table.add_row(one.recipe if first else "", one.precision, str(one.batch) if first else "", one.part, *figures)
    return table


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


STEPS = json_file("speeds of steps", "--json", {"device", "threads", "torch", "python", "convention", "peaks", "steps"})


def write_steps(speeds: Iterable[StepSpeed], device: torch.device, path: Path | None) -> None:
    """Write every figure with the device's name and measured peaks; see `ownership.write_json`."""
    speeds = list(speeds)
    content = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "convention": CONVENTION,
        "peaks": {one.precision: measured_peaks(device, one.precision)._asdict() for one in speeds},
        "steps": [asdict(one) | {"spectra_per_s": one.spectra_per_s, "over_floor": one.over_floor} for one in speeds],
    }
    write_json(path, STEPS, content)


def wanted_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to measure on, a GPU where there is one; raises ConfigError where there is none that is asked for."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that torch can use. Measure with --device cpu, or on a machine with one.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
