"""What growing a release costs, beside how large it is: the same new spectra on parents of several sizes.

Tested in tests/integration/test_benchmark.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.data.manifest import INDEX
from harps_dist.data.reader import Release
from harps_dist.formats.archive import SCHEMAS, Archive
from harps_dist.ownership import json_file, write_json
from harps_dist.spectra.grid import Grid, named_grid
from preprocessing.growth import grow
from preprocessing.pack import pack

if TYPE_CHECKING:
    from rich.table import Table

_APPENDED = 1000  # rows at once
_VISITS = 10


@dataclass(frozen=True)
class GrowthCost:
    """parent: spectra it holds; fresh: new ones. pack_s: to write the parent, grow_s: to write its successor, reading
    what the archive holds included; bytes written by the latter in shards, and in its index."""

    parent: int
    fresh: int
    pack_s: float
    grow_s: float
    shard_bytes: int
    index_bytes: int


def growth_costs(sizes: Sequence[int], fresh: int) -> list[GrowthCost]:
    """Measure growth by so many spectra of 4,096 pixels, on archives of noise made here, in a folder that goes away."""
    grid, costs = named_grid("tiny"), []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            archive = Path(folder) / f"{size}.zarr"
            _append(archive, grid, 0, size)
            parent, grown = Path(folder) / f"{size}", Path(folder) / f"{size}-grown"
            started = time.perf_counter()
            pack(archive, parent)
            packed = time.perf_counter() - started
            _append(archive, grid, size, fresh)
            started = time.perf_counter()
            manifest = grow(archive, parent, grown)
            seconds = time.perf_counter() - started
            old = {shard.name for shard in Release(parent).manifest.shards}
            written = sum(shard.bytes for shard in manifest.shards if shard.name not in old)
            costs.append(GrowthCost(size, fresh, packed, seconds, written, (grown / INDEX).stat().st_size))
    return costs


def _append(archive: Path, grid: Grid, first: int, count: int) -> None:
    noise = np.random.default_rng(first)
    texts = {name: "" for name, column in SCHEMAS["real"].items() if column.dtype == "str"}
    numbers = {name: np.nan for name, column in SCHEMAS["real"].items() if column.dtype != "str"}
    with Archive.writing(archive, grid) as writer:
        for start in range(first, first + count, _APPENDED):
            rows: list[tuple[dict[str, Any], np.ndarray]] = []
            for number in range(start, min(start + _APPENDED, first + count)):
                own = {"key": f"{number:08d}", "source": f"{number}.fits", "target": f"star {number // _VISITS}"}
                flux = 1 + 0.01 * noise.standard_normal(grid.length)
                rows.append((texts | numbers | own | {"teff": 5000.0 + number % 1000}, flux))
            writer.append("real", rows)


COSTS = json_file("costs of growing", "--json")


def write_costs(costs: Sequence[GrowthCost], path: Path | None) -> None:
    write_json(path, COSTS, {"costs": [asdict(cost) for cost in costs]})


def growth_table(costs: Sequence[GrowthCost]) -> Table:
    """Times of growing as a table for the console; the last column against the first row."""
    from rich.table import Table

    table = Table("spectra before", "new", "pack", "grow", "shards written", "index", "grow, against the first")
    for cost in costs:
        written = (f"{cost.shard_bytes / 1e6:.2f} MB", f"{cost.index_bytes / 1e6:.2f} MB")
        ratio = f"{cost.grow_s / costs[0].grow_s:.1f}"
        table.add_row(
            f"{cost.parent:,}", f"{cost.fresh:,}", f"{cost.pack_s:.2f} s", f"{cost.grow_s:.2f} s", *written, ratio
        )
    return table
