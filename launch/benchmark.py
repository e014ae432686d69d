"""What the recipes cost: `python launch/benchmark.py models [RECIPE …] [--grid harps] [--demo] [--json FILE]`."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from harps_dist.errors import HarpsDistError


def models(
    recipes: tyro.conf.Positional[tuple[str, ...]] = (),
    grid: str = "harps",
    demo: bool = False,
    json: Path | None = None,
) -> int:
    """Parameters and forward FLOPs of every distinct model of the recipes.

    Args:
        recipes: Names of recipes; default is all of them.
        grid: harps, demo or tiny.
        demo: Whether the demo recipes count among all.
        json: File to write the numbers to.
    """
    from harps_dist.console import console_for
    from harps_dist.evaluation.benchmark import cost_table, model_costs, write_costs
    from harps_dist.spectra.grid import named_grid

    chosen = named_grid(grid)
    costs = model_costs(chosen, recipes, demo)
    console_for().print(cost_table(costs, chosen))
    if json:
        write_costs(costs, chosen, json)
    return 0


def main() -> int:
    return tyro.extras.subcommand_cli_from_dict({"models": models}, prog="benchmark.py", description=__doc__)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HarpsDistError as error:
        sys.exit(f"{type(error).__name__}: {error}")
