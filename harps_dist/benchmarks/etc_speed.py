"""What it costs to take runs of the exposure time calculator into an archive, beside parsing their files.

Tested in tests/integration/test_benchmark.py.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harps_dist.formats.etc_json import parse_quickly, read_document
from harps_dist.formats.sed import write_sed
from harps_dist.ownership import json_file, write_json
from harps_dist.spectra.grid import named_grid
from preprocessing.etc import ingest_etc
from preprocessing.simulator.etc_files import EtcSettings, Generation, write_etc
from preprocessing.simulator.instrument import ORDERS, observe

if TYPE_CHECKING:
    from rich.table import Table

GENERATIONS: tuple[Generation, ...] = ("2023", "2026")
_WAVE_AA = np.arange(3770.0, 6930.0, 0.01)  # of an SED; all orders lie within
_ASKED = EtcSettings("star.fits", airmass=1.3, pwv_mm=5.0, mag=7.0, exptime_s=300.0)


@dataclass(frozen=True)
class EtcCost:
    """generation: of the JSON output; runs: how many were taken in; megabytes: of one. cpu_s: seconds of one core from
    a file to its row in the archive, parse_s: to read and parse it alone; peak_mb: most memory of the process."""

    generation: str
    runs: int
    megabytes: float
    cpu_s: float
    parse_s: float
    peak_mb: float


def etc_costs(runs: int, orders: Sequence[int] = ORDERS, grid: str = "harps") -> list[EtcCost]:
    """Measure made-up runs of those orders of either generation, one core, in a folder that goes away."""
    costs = []
    lines = 1 - 0.5 * np.cos(_WAVE_AA * 9) ** 8
    outputs = observe(_WAVE_AA, 1e6 * lines, 1.3, 5.0, 7.0, 300.0, orders=orders)
    for generation in GENERATIONS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for part in ("first", "etc", "sed"):
                (folder / part).mkdir()
            write_sed(folder / "sed" / _ASKED.sed_name, _WAVE_AA, 1e6 * lines, 5000.0, 4.5, 0.0, 2.0)
            write_etc(folder / "first" / "run.json", outputs, _ASKED, generation)
            for number in range(runs):
                shutil.copy(folder / "first" / "run.json", folder / "etc" / f"{number}.json")
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:  # whose memory is that of this alone
                costs.append(alone.submit(_measured, folder, generation, grid).result())
    return costs


def _measured(folder: Path, generation: str, grid: str) -> EtcCost:
    archive, paths = folder / "A.zarr", sorted((folder / "etc").iterdir())
    ingest_etc(folder / "first", archive, named_grid(grid), folder / "sed")  # imports what it needs
    started = time.process_time()
    added = ingest_etc(folder / "etc", archive, named_grid(grid), folder / "sed").added
    taken_in = time.process_time()
    for path in paths:
        parse_quickly(read_document(path))
    parsed = time.process_time()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    megabytes = paths[0].stat().st_size / 1e6
    return EtcCost(generation, added, megabytes, (taken_in - started) / added, (parsed - taken_in) / added, peak_mb)


COSTS = json_file("costs of taking in ETC runs", "--json")


def write_costs(costs: Sequence[EtcCost], path: Path | None) -> None:
    write_json(path, COSTS, {"costs": [asdict(cost) for cost in costs]})


def etc_table(costs: Sequence[EtcCost]) -> Table:
    """Costs of a run as a table for the console."""
    from rich.table import Table

    table = Table("generation", "runs", "a file", "a run and core", "of it parsing", "an hour and core", "memory")
    for cost in costs:
        seconds = (f"{cost.cpu_s:.3f} s", f"{cost.parse_s:.3f} s", f"{3600 / cost.cpu_s:,.0f} runs")
        table.add_row(cost.generation, f"{cost.runs}", f"{cost.megabytes:.1f} MB", *seconds, f"{cost.peak_mb:,.0f} MB")
    return table
