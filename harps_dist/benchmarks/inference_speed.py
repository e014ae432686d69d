"""Speed and memory of models in inference, as Table 9 of the paper: a batch of random spectra in memory, no disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from harps_dist.benchmarks.speed_ratio import SpeedRatio
from harps_dist.errors import ConfigError
from harps_dist.evaluation.printed import LEGENDS, TABLE_9
from harps_dist.inference.precision import EAGER, Computing, Precision, compute_by, computing
from harps_dist.models.build import build_model
from harps_dist.ownership import KEY, json_file, write_json
from harps_dist.ranks.world import cpu_name
from harps_dist.recipes import find_recipe
from harps_dist.sealed import sealed, unsealed
from harps_dist.spectra.grid import Grid, named_grid
from harps_dist.text import NAN

if TYPE_CHECKING:
    from rich.table import Table

    from harps_dist.models.supervised import SpectrumModel

Device = Literal["cpu", "cuda"]
SECONDS, LEAST_REPEATS = 5.0, 3
RATIO_BATCH, LEAST_TURNS = 4, 5
CONVENTION = (
    "Inference of a batch of random spectra that lie in memory, divided by its size: encoders from spectrum to labels, "
    "decoders from labels to spectrum, autoencoders from spectrum to spectrum; median and quartiles over repeats after "
    "a warm-up, one thread on a CPU, synchronised on a GPU. Peak memory: on a CPU how much the process grew from "
    "before the model was built, on a GPU what was allocated at most. Each model is measured in a process of its own."
)


@dataclass(frozen=True)
class InferenceSpeed:
    """What one model takes. ms, ms_q25, ms_q75: milliseconds a spectrum, median and quartiles over the repeats.

    precision, convolutions: of its encoder, see `inference.precision.Computing`; fp32 and torch is how the paper's
    code computes.
    """

    recipe: str
    legend: str
    grid: str
    device: Device
    device_name: str
    threads: int
    torch: str
    batch: int
    parameters: int
    ms: float
    ms_q25: float
    ms_q75: float
    repeats: int
    peak_memory_mib: float
    precision: str = "fp32"
    convolutions: str = "torch"


def inference_speeds(
    grid: str,
    recipes: Sequence[str] = (),
    device: Device = "cpu",
    batch: int = 32,
    seconds: float = SECONDS,
    precisions: Sequence[Precision] = ("auto",),
) -> list[InferenceSpeed]:
    """Measure recipes, those of Table 9 where none are named, each for `seconds` and at least three times.

    Every one by PyTorch's layers in fp32, which is what Table 9 compares; one that reads spectra then as `predict`
    computes, in each of the precisions.
    Raises ConfigError for an unknown recipe or grid, where there is no GPU, or where it lacks a precision.
    """
    names = tuple(recipes) or tuple(TABLE_9)
    for name in names:
        find_recipe(name)
    named_grid(grid)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that torch can use. Measure with --device cpu, or on a machine with one.")
    used = dict.fromkeys([EAGER, *(computing(precision, torch.device(device)) for precision in precisions)])
    found = []
    for name in names:
        for how in used if find_recipe(name).model.reads else [EAGER]:
            with get_context("spawn").Pool(1) as process:
                found.append(process.apply(_measure, (name, grid, device, batch, seconds, how)))
    return found


def _measure(
    recipe: str, grid: str, device: Device, batch: int, seconds: float, how: Computing = EAGER
) -> InferenceSpeed:
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    before = _resident_mib()
    model = build_model(find_recipe(recipe).model, named_grid(grid)).to(device).eval()
    compute_by(model, how)
    infer = _inference(model, named_grid(grid), batch, torch.device(device))
    with torch.inference_mode():
        infer()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = _timed(infer, device, seconds)
    q25, median, q75 = (float(q) * 1e3 / batch for q in np.percentile(times, (25, 50, 75)))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _resident_mib() - before
    return InferenceSpeed(
        recipe=recipe,
        legend=LEGENDS.get(recipe.removeprefix("demo-"), recipe),
        grid=grid,
        device=device,
        device_name=torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        batch=batch,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        ms=median,
        ms_q25=q25,
        ms_q75=q75,
        repeats=len(times),
        peak_memory_mib=peak,
        precision=how.precision,
        convolutions=how.convolutions,
    )


def speed_ratio(
    new: SpectrumModel, old: SpectrumModel | None, grid: Grid, device: torch.device, seconds: float = 1.0
) -> SpeedRatio:
    """Time of inference of one model over another's, measured in turns, so that what else the machine does meets both.

    seconds: how long they are repeated, five times at least. Without an old model its figures are NaN.
    """
    models = [model for model in (new, old) if model is not None]
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        infer = [_inference(model, grid, RATIO_BATCH, device) for model in models]
        turns = [[_time_of(one, device) for one in infer] for _ in range(2)][1:]  # the first one warms up
        while len(turns) < LEAST_TURNS or sum(map(sum, turns)) < seconds:
            turns.append([_time_of(one, device) for one in infer])
    times = np.array(turns).T
    ratios = times[0] / times[1] if old is not None else np.array([NAN])
    low, middle, high = (float(q) for q in np.percentile(ratios, (25, 50, 75)))
    ms = [float(np.median(of_model)) * 1e3 / RATIO_BATCH for of_model in times]
    return SpeedRatio(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        threads=torch.get_num_threads(),
        batch=RATIO_BATCH,
        repeats=len(turns),
        new_ms=ms[0],
        old_ms=ms[1] if old is not None else NAN,
        ratio=middle,
        ratio_q25=low,
        ratio_q75=high,
    )


def _inference(model: SpectrumModel, grid: Grid, batch: int, device: torch.device) -> Callable[[], object]:
    """What the model is for, on one batch of random input; it reads spectra as `Exported.raw` does."""
    if not model.reads:
        labels = torch.randn(batch, len(model.labels), device=device)
        return lambda: model.decode(labels)
    flux = 1 + 0.1 * torch.randn(batch, grid.length, device=device)
    if model.draws:
        return lambda: model.decode(model.read(flux).nodes)
    return lambda: model.read(flux)


def _timed(infer: Callable[[], object], device: Device, seconds: float) -> list[float]:
    from torch.utils.benchmark import Timer

    timer = Timer("infer()", globals={"infer": infer}, num_threads=1)  # synchronises on a GPU
    times = [timer.timeit(1).mean]
    while len(times) < LEAST_REPEATS or sum(times) < seconds:
        times.append(timer.timeit(1).mean)
    return times


def _time_of(infer: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, of work that the device still has to do included."""
    started = time.perf_counter()
    infer()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _resident_mib() -> float:
    """The most memory that this process has held so far; NaN where the system is no Linux.

    Not ru_maxrss, which begins with what the parent held.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return NAN
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


SPEEDS = json_file("speeds of inference", "--json", {"convention", "speeds"})


def write_speeds(speeds: Iterable[InferenceSpeed], path: Path | None) -> None:
    """Write them with the convention; see `ownership.write_json`."""
    content = {KEY: SPEEDS.name, "convention": CONVENTION, "speeds": [asdict(speed) for speed in speeds]}
    write_json(path, SPEEDS, sealed(content))


def read_speeds(path: Path) -> list[InferenceSpeed]:
    """What `write_speeds` wrote; raises ConfigError where it was changed since."""
    try:
        content = unsealed(json.loads(path.read_text(encoding="utf-8")), required=False)
        return [InferenceSpeed(**speed) for speed in content["speeds"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}. Measure again with launch/benchmark.py speed.") from None


def speed_table(speeds: Sequence[InferenceSpeed]) -> Table:
    """Speeds as a rich table; times also as a ratio to the first model's."""
    from rich.table import Table

    first = speeds[0]
    title = f"{first.device_name}, batch {first.batch}, grid {first.grid}, torch {first.torch}"
    table = Table(title=title, caption=CONVENTION)
    for place, header in enumerate(
        ("model", "encoder", "parameters", "ms/spectrum", "quartiles", f"× {first.legend}", "peak MiB")
    ):
        table.add_column(header, justify="right" if place > 1 else "left")
    for speed in speeds:
        table.add_row(
            speed.legend,
            f"{speed.precision}, {speed.convolutions}",
            f"{speed.parameters:,}",
            f"{speed.ms:.3g}",
            f"{speed.ms_q25:.3g}-{speed.ms_q75:.3g}",
            f"{speed.ms / first.ms:.2f}",
            f"{speed.peak_memory_mib:,.0f}",
        )
    return table
