"""What recipes cost, what a run has to beat, how runs learned, what is read of known stars: a command each.

Example: `harps-dist benchmark models cnn-mix`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from harps_dist.commands.benchmark_files import etc, genuine, ingest, predict
from harps_dist.commands.benchmark_nuisances import nuisances, sensitivity
from harps_dist.config import Auto, Engine, Precision
from harps_dist.ownership import check

LOADERS = tuple(count for count in (1, 2, 4, 8) if count <= (os.cpu_count() or 1))


def models(
    recipes: tyro.conf.Positional[tuple[str, ...]] = (),
    grid: str = "harps",
    demo: bool = False,
    json: Path | None = None,
) -> int:
    """Parameters and forward FLOPs of every distinct model of the recipes.

    Example: `harps-dist benchmark models cnn-mix ae-mix`.

    Args:
        recipes: Names of recipes; default is all of them.
        grid: Grid of wavelengths: harps, demo or tiny.
        demo: Whether the demo recipes count among all.
        json: File to write the numbers to.
    """
    from harps_dist.benchmarks.model_costs import COSTS, cost_table, model_costs, write_costs
    from harps_dist.console import console_for
    from harps_dist.spectra.grid import named_grid

    check(json, COSTS)
    chosen = named_grid(grid)
    costs = model_costs(chosen, recipes, demo)
    console_for().print(cost_table(costs, chosen))
    write_costs(costs, chosen, json)
    return 0


def speed(
    recipes: tyro.conf.Positional[tuple[str, ...]] = (),
    grid: str = "harps",
    device: Literal["cpu", "cuda"] = "cpu",
    batch: int = 32,
    seconds: float = 5.0,
    precisions: tuple[Literal["auto", "fp32", "bf16"], ...] = ("auto",),
    json: Path | None = None,
) -> int:
    """Time and memory of inference (Table 9): one thread of the CPU, or the GPU.

    Example: `harps-dist benchmark speed cnn-mix --device cuda`.

    Args:
        recipes: Names of recipes; default is those of Table 9.
        grid: Grid of wavelengths: harps, demo or tiny.
        device: Device that predicts.
        batch: Spectra at a time.
        seconds: How long each model is repeated, three times at least.
        precisions: Precisions as predict.py takes them, each measured beside PyTorch's layers in fp32.
        json: File to write the numbers to; RUNS/speed-cpu.json goes into the tables of reproduce.py.
    """
    from harps_dist.benchmarks.inference_speed import SPEEDS, inference_speeds, speed_table, write_speeds
    from harps_dist.console import console_for

    check(json, SPEEDS)
    found = inference_speeds(grid, recipes, device, batch, seconds, precisions)
    console_for().print(speed_table(found))
    write_speeds(found, json)
    return 0


def data(
    release: str = "demo",
    samples: int = 64,
    workers: tuple[int, ...] = LOADERS,
    seconds: float = 3.0,
    compile: bool = True,
    device: Literal["cpu", "cuda"] = "cpu",
    scratch: Path | None = None,
    json: Path | None = None,
) -> int:
    """How fast samples are read and made spectra, against nine memory-mapped arrays and other formats.

    Example: `harps-dist benchmark data --release R1 --workers 1 2 4`.

    Args:
        release: Release in a folder, or demo.
        samples: Samples of each kind.
        workers: Numbers of threads that load ours, and of processes that load the others, to try besides none.
        seconds: How long each measurement is repeated, three times at least.
        compile: Whether ours is compiled with torch.compile; wants a C++ compiler.
        device: Where ours become spectra; the other ways use the CPU.
        scratch: Folder with room for the same samples in other formats, 12 MB each at full length.
        json: File to write every figure and ratio to.
    """
    from harps_dist.benchmarks.data_speed import LOADING, data_speeds, loading_table, shuffling, write_loading
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.data.order import Mix
    from harps_dist.ranks.world import World

    check(json, LOADING)
    opened = open_release(World.alone(), release)
    found = data_speeds(opened, samples, workers, seconds, compile, scratch, device)
    order = shuffling(opened.index, opened.digest, Mix(real=0.0))
    console_for().print(loading_table(found), order)
    write_loading(found, order, opened, compile, device, json)
    return 0


def step(
    recipes: tyro.conf.Positional[tuple[str, ...]] = (),
    release: str = "demo",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batches: tuple[int, ...] = (32,),
    precisions: tuple[Precision | Auto, ...] = ("auto",),
    workers: int | Auto = "auto",
    resident: Literal["no", "host", "device"] | Auto = "auto",
    engine: Annotated[Engine, tyro.conf.arg(name="")] = Engine(),  # noqa: B008
    seconds: float = 5.0,
    json: Path | None = None,
) -> int:
    """How fast recipes train, as a training takes its steps, and their parts alone, beside what must be moved.

    Example: `harps-dist benchmark step cnn-mix --release R1 --batches 32 64`.

    Args:
        recipes: Names of recipes; default is one of each kind.
        release: Release in a folder, or demo.
        device: Device that trains; auto is a GPU where there is one.
        batches: Sizes of batches.
        precisions: Precisions to try; auto is what training takes by itself.
        workers: Threads that read ahead.
        resident: Where all codes stay in memory.
        engine: How steps are carried out.
        seconds: How long each part is repeated.
        json: File to write every figure to.
    """
    from harps_dist.benchmarks.step_speed import STEPS, step_speeds, step_table, wanted_device, write_steps
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.ranks.world import World

    check(json, STEPS)
    world = World.alone(wanted_device(device))
    opened = open_release(world, release)
    found = step_speeds(
        opened, recipes, world, engine, batches, precisions, seconds, workers=workers, resident=resident
    )
    console_for().print(step_table(found, world.device))
    write_steps(found, world.device, json)
    return 0


def ranks(
    recipe: tyro.conf.Positional[str] = "demo-cnn-mix",
    release: str = "demo",
    spectra: int = 8,
    engine: Annotated[Engine, tyro.conf.arg(name="")] = Engine(),  # noqa: B008
    seconds: float = 4.0,
    json: Path | None = None,
) -> int:
    """What exchanging gradients costs, and how a step scales: start it with torchrun.

    Example: `harps-dist benchmark ranks demo-cnn-mix --seconds 2`.

    Args:
        recipe: Name of a recipe.
        release: Release in a folder, or demo.
        spectra: Spectra that each rank learns from in a step.
        engine: How steps are carried out.
        seconds: Length of each of fifteen turns.
        json: File to write every figure to.
    """
    from harps_dist.benchmarks.rank_speed import RANKS, rank_speed, rank_table, write_ranks
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.ranks.world import join_world
    from harps_dist.recipes import find_recipe

    check(json, RANKS)
    with join_world() as world:
        opened = open_release(world, release)
        found = rank_speed(find_recipe(recipe), recipe, opened, world, engine, spectra, seconds)
        console_for(quiet=not world.is_main).print(rank_table(found))
        write_ranks(found, world.device, json if world.is_main else None)
    return 0


def batches(
    recipe: tyro.conf.Positional[str] = "demo-infovae-mix", release: str = "demo", sizes: tuple[int, ...] = (8, 32, 128)
) -> int:
    """KL and MMD, and how they pull on the spread of the nodes, in batches of several sizes.

    Example: `harps-dist benchmark batches demo-infovae-mix --sizes 8 32`.

    Args:
        recipe: Name of a recipe of a variational autoencoder.
        release: Release in a folder, or demo.
        sizes: Spectra of a batch.
    """
    from harps_dist.benchmarks.batch_sizes import batch_size_effects, batch_size_table
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.ranks.world import World
    from harps_dist.recipes import find_recipe

    found = batch_size_effects(find_recipe(recipe), open_release(World.alone(), release), sizes)
    console_for().print(batch_size_table(found))
    return 0


def growth(sizes: tuple[int, ...] = (200, 2_000, 20_000), fresh: int = 200, json: Path | None = None) -> int:
    """What it costs to grow a release by some spectra, whatever it held before; small spectra, made here.

    Example: `harps-dist benchmark growth --sizes 200 2000`.

    Args:
        sizes: Spectra of the parents.
        fresh: New spectra.
        json: File for the figures.
    """
    from harps_dist.benchmarks.growth_speed import COSTS, growth_costs, growth_table, write_costs
    from harps_dist.console import console_for

    check(json, COSTS)
    costs = growth_costs(sizes, fresh)
    console_for().print(growth_table(costs))
    write_costs(costs, json)
    return 0


def ridge(
    run: tyro.conf.Positional[Path],
    release: str | None = None,
    split: Literal["train", "validation", "test", "all"] = "test",
    spectra: int = 8192,
    components: int = 64,
    out: Path | None = None,
) -> int:
    """Ridge regression on principal components in a run's place: same training data, same test spectra.

    Example: `harps-dist benchmark ridge runs/first --components 32`.

    Args:
        run: Folder that train.py wrote.
        release: Release to be fitted and tried on; default is the run's.
        split: Which spectra are predicted.
        spectra: How many of those that the run was trained on are fitted.
        components: Principal components.
        out: Folder of the reports; default is RUN/ridge.
    """
    from harps_dist.benchmarks.ridge import ridge_instead_of
    from harps_dist.commands.releases import release_for
    from harps_dist.console import console_for
    from harps_dist.ranks.world import World
    from harps_dist.runs.run import Run

    opened = release_for(Run(run), release, World.alone())
    ridge_instead_of(run, opened, split, spectra, components, out or run / "ridge", console_for())
    return 0


def curves(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("curves.png"), loss: str = "label") -> int:
    """Draw how runs learned: a part of the loss against the step, from their logs.

    Example: `harps-dist benchmark curves runs/first runs/next --out curves.png`.

    Args:
        runs: Folders that train.py wrote; the legend has their names.
        out: PNG to write; a CSV with the same numbers lies beside it.
        loss: Part of the loss that is drawn: label, reconstruction, unknown, kl or mmd.
    """
    from harps_dist.benchmarks.curves import draw_curves
    from harps_dist.console import console_for

    draw_curves(runs, out, loss)
    console_for().print(f"{out} and {out.with_suffix('.csv')}", soft_wrap=True)
    return 0


def main() -> int:
    commands: dict[str, Callable[..., int]] = {
        made.__name__: made
        for made in (
            *(models, speed, data, step, ranks, batches),
            *(growth, etc, ingest, predict, genuine, ridge, curves, nuisances, sensitivity),
        )
    }
    return tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
