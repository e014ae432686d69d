"""How long a file takes on one core from FITS to labels, beside the network's own share of that.

Tested in tests/integration/test_predict.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from harps_dist.errors import ConfigError
from harps_dist.inference.model import Exported
from harps_dist.inference.sources import Observed, find_items, read_items
from harps_dist.ownership import json_file, write_json

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PredictSpeed:
    """Milliseconds a file, the least of some repeats: reading (decompression, checks, regridding, standardising), the
    whole prediction from flux (labels, calibrated intervals, anomaly), and the network's forward pass alone.

    precision, convolutions: of the encoder, see `inference.precision.Computing`.
    """

    model: str
    grid: str
    files: int
    batch: int
    threads: int
    device: str
    read_ms: float
    predict_ms: float
    network_ms: float
    precision: str
    convolutions: str

    @property
    def files_per_s(self) -> float:
        """Files per second of one core that reads, prepares and predicts."""
        return 1e3 / (self.read_ms + self.predict_ms)


def predict_speed(exported: Exported, inputs: Sequence[str], batch: int = 16, repeats: int = 3) -> PredictSpeed:
    """Measure on one thread. Raises ConfigError where no input can be read, or the model reads no spectra."""
    exported.check_reads()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        items, _ = find_items(inputs)
        read_s, read = _least(lambda: list(read_items(items, exported.grid, 0)), repeats)
        good = [found for found in read if isinstance(found, Observed)]
        if not good:
            raise ConfigError(f"none of {', '.join(inputs)} can be read. Give spectra that predict.py predicts.")
        flux, noise = (np.stack([getattr(found, name) for found in good]) for name in ("flux", "noise"))
        predict_s, _ = _least(lambda: exported.predict_flux(flux, noise, batch), repeats)
        tensors = torch.from_numpy(np.asarray(flux, np.float32)).to(exported.device).split(batch)
        network_s, _ = _least(lambda: [exported.raw(part) for part in tensors], repeats)
    finally:
        torch.set_num_threads(threads)
    return PredictSpeed(
        exported.description.name,
        exported.grid.name,
        len(good),
        batch,
        1,
        str(exported.device),
        1e3 * read_s / len(read),
        1e3 * predict_s / len(good),
        1e3 * network_s / len(good),
        exported.computing.precision,
        exported.computing.convolutions,
    )


def _least(work: Callable[[], object], repeats: int) -> tuple[float, list]:
    found: list = []
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        found = work()  # type: ignore[assignment]
        seconds.append(time.perf_counter() - started)
    return min(seconds), found


_FIELDS = {field.name for field in fields(PredictSpeed)} - {"precision", "convolutions"}  # which older files lack
SPEED = json_file("speed of predictions", "--json", {"files_per_s", *_FIELDS})


def write_speed(speed: PredictSpeed, path: Path | None) -> None:
    write_json(path, SPEED, asdict(speed) | {"files_per_s": speed.files_per_s})


def speed_table(speed: PredictSpeed) -> Table:
    """Speeds as a table for the console; ratios to the network's forward pass."""
    from rich.table import Table

    title = f"{speed.model}, {speed.files} files, one core, encoder in {speed.precision}, {speed.convolutions}"
    table = Table("", "ms a file", "over the network's", title=title)
    for what, value in (("read", speed.read_ms), ("predict", speed.predict_ms), ("network alone", speed.network_ms)):
        table.add_row(what, f"{value:.1f}", f"{value / speed.network_ms:.2f}")
    table.caption = f"{speed.files_per_s:.1f} files a second and core"
    return table
