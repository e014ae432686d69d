"""What a model costs before it meets any data: its parameters and its arithmetic.

Tested in tests/integration/test_benchmark.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import nn

from harps_dist.models.build import build_model
from harps_dist.models.cost import forward_flops
from harps_dist.ownership import json_file, write_json
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.spectra.grid import Grid

if TYPE_CHECKING:
    from rich.table import Table

    from harps_dist.models.config import Model

CONVENTION = (
    "forward pass of one spectrum; a multiply-add is 2 FLOPs; biases, norms and activations not counted. "
    "GFLOP: the layers as published, a transposed convolution using each weight once per input pixel. "
    "GFLOP executed: as computed here, transposed convolutions as convolutions at low resolution, some taps zero."
)


@dataclass(frozen=True)
class ModelCost:
    """Size and arithmetic of one model; CONVENTION says how FLOPs are counted.

    recipes: names that share this model. architecture, bottleneck: None where a model of this kind has none.
    parameters: all of them, frozen ones included. gflop, gflop_executed: 1e9 FLOPs.
    """

    recipes: tuple[str, ...]
    kind: str
    architecture: str | None
    bottleneck: int | None
    labels: int
    parameters: int
    gflop: float
    gflop_executed: float


def model_costs(grid: Grid, names: Iterable[str] = (), demo: bool = False) -> list[ModelCost]:
    """The cost of every distinct model among the recipes `names`; of all recipes, demo ones on request, where empty.

    Raises ConfigError for an unknown recipe, or a grid that a model cannot be built on.
    """
    recipes: dict[Model, list[str]] = {}
    for name in dict.fromkeys(names) or [name for name in RECIPES if demo or not name.startswith("demo-")]:
        recipes.setdefault(find_recipe(name).model, []).append(name)
    return [model_cost(config, grid, tuple(sharing)) for config, sharing in recipes.items()]


def model_cost(config: Model, grid: Grid, recipes: tuple[str, ...] = ()) -> ModelCost:
    """Build the model on fake tensors, which have shapes but no memory, and count."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        model = build_model(config, grid)
        inputs = torch.zeros(1, grid.length if config.reads else len(config.labels))
        executed = forward_flops(model.passed, inputs) / 1e9
        for module in model.modules():
            if isinstance(module, nn.ConvTranspose1d):  # undo the faster road that layers.ConvTranspose1d takes
                module.forward = MethodType(nn.ConvTranspose1d.forward, module)  # type: ignore[method-assign]
        published = forward_flops(model.passed, inputs) / 1e9
    return ModelCost(
        recipes=recipes,
        kind=config.kind,
        architecture=getattr(config, "architecture", None),
        bottleneck=getattr(config, "bottleneck", None),
        labels=len(config.labels),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflop=published,
        gflop_executed=executed,
    )


def cost_table(costs: Iterable[ModelCost], grid: Grid) -> Table:
    """The costs as a rich table, the convention in its caption."""
    from rich.table import Table

    table = Table(title=f"Models on grid {grid.name}, {grid.length:,} pixels", caption=CONVENTION)
    for header in ("recipes", "kind", "architecture"):
        table.add_column(header)
    for header in ("bottleneck", "labels", "parameters", "GFLOP", "GFLOP executed"):
        table.add_column(header, justify="right")
    for cost in costs:
        table.add_row(
            ", ".join(cost.recipes),
            cost.kind,
            cost.architecture or "–",
            str(cost.bottleneck or "–"),
            str(cost.labels),
            f"{cost.parameters:,}",
            f"{cost.gflop:.3f}",
            f"{cost.gflop_executed:.3f}",
        )
    return table


COSTS = json_file("costs of models", "--json", {"grid", "convention", "models"})


def write_costs(costs: Iterable[ModelCost], grid: Grid, path: Path | None) -> None:
    """Write the costs, the grid and the convention; see `ownership.write_json`."""
    content = {"grid": grid.name, "convention": CONVENTION, "models": [asdict(cost) for cost in costs]}
    write_json(path, COSTS, content)
