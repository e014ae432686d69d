"""The simulator of a run or of an export.

Tested in tests/integration/test_simulating.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harps_dist.inference.description import CONFIG
from harps_dist.inference.model import load
from harps_dist.inference.simulator import Part, Simulator

if TYPE_CHECKING:
    from harps_dist.runs.run import Which


def open_simulator(
    folder: str | Path, which: Which = "best", device: torch.device | str = "cpu", part: Part = "spectrum"
) -> Simulator:
    """The simulator of a run (its best or newest checkpoint) or of an export; its release is not needed.

    part: of a spectrum that is drawn, see `Simulator`. Raises ConfigError where the folder is neither, or holds a model
    that draws no spectra, or does not know that part.
    """
    from harps_dist.runs.checkpoint import MODEL
    from harps_dist.runs.run import Run

    folder = Path(folder)
    if (folder / CONFIG).is_file():
        return load(folder, device, "fp32").simulator_of(part)
    run = Run(folder)
    model, sha256 = run.model(which).to(device).requires_grad_(False), run.checkpoint(which).state["sha256"]
    return Simulator(model, run.saved.grid.grid(), run.name, sha256[MODEL], run.saved.label_ranges, part)
