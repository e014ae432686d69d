"""Benchmarks of what simulated spectra show that their labels do not tell: a command each of `harps-dist benchmark`.

Example: `harps-dist benchmark nuisances rich`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from harps_dist.ownership import check


def nuisances(
    name: tyro.conf.Positional[Literal["plain", "rich"]] = "rich",
    release: str = "demo",
    device: Literal["cpu", "cuda"] = "cpu",
    out: Path = Path("nuisances.png"),
) -> int:
    """Draw what each nuisance of a set does to simulated spectra, alone and all together, and say what it costs.

    Example: `harps-dist benchmark nuisances rich --out nuisances.png`.

    Args:
        name: Set of nuisances, as training takes it.
        release: Release in a folder, or demo.
        device: Device that makes the spectra.
        out: PNG to write.
    """
    import torch

    from harps_dist.benchmarks.nuisance_costs import FIGURE, draw_effects, effect_table, nuisance_effects
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.data.augment import named_nuisance
    from harps_dist.ranks.world import World

    check(out, FIGURE)
    opened = open_release(World.alone(), release)
    effects = nuisance_effects(opened, named_nuisance(name), torch.device(device))
    draw_effects(effects, opened, out)
    console_for().print(effect_table(effects), f"{out}", soft_wrap=True)
    return 0


def sensitivity(
    model: tyro.conf.Positional[Path],
    release: str = "demo",
    nuisance: Literal["plain", "rich"] = "rich",
    lines: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: Path | None = None,
) -> int:
    """How far each nuisance moves what a network reads of cool, Sun-like and warm stars: simulated pairs without noise.

    The first row, none, says what the network is off by without any; no noise is added anywhere.

    Example: `harps-dist benchmark sensitivity model --release R1 --lines lines.npz`.

    Args:
        model: Folder that export.py wrote.
        release: Release in a folder, or demo; its simulated spectra are seen with and without each nuisance.
        nuisance: Set of nuisances, as training takes it.
        lines: Corrections of line depths that `harps-dist lines` learned from a star, as one nuisance more.
        device: Device that makes and reads the spectra; auto is a GPU where there is one.
        json: File for all shifts, with their errors.
    """
    from harps_dist.benchmarks.sensitivity import SENSITIVITY, sensitivity_tables, write_sensitivity
    from harps_dist.benchmarks.sensitivity import sensitivity as measured
    from harps_dist.benchmarks.step_speed import wanted_device
    from harps_dist.commands.releases import open_release
    from harps_dist.console import console_for
    from harps_dist.data.augment import named_nuisance
    from harps_dist.inference.model import load
    from harps_dist.ranks.world import World
    from harps_dist.text import command_of

    check(json, SENSITIVITY)
    network = load(model, wanted_device(device))
    drawn = named_nuisance(nuisance).model_copy(update={"lines": str(lines)} if lines else {})
    shifts = measured(open_release(World.alone(network.device), release), network, drawn)
    console_for().print(sensitivity_tables(shifts), soft_wrap=True)
    how = command_of("sensitivity", model, release=release, nuisance=nuisance, lines=lines)
    write_sensitivity(shifts, how, network, json)
    return 0
