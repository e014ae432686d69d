"""A small release on another grid than the demo's: the demo's archive, its arrays repeated along the spectrum.

The demo's files reach over a tenth of HARPS; for speed and memory what counts is the length.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from harps_dist.formats.archive import Archive
from harps_dist.formats.columns import DATA, SCHEMAS
from harps_dist.progress import silent
from harps_dist.spectra.grid import named_grid
from preprocessing.demo import DemoSize, build_demo
from preprocessing.pack import pack


def build_full_grid(folder: Path, size: DemoSize, grid: str = "harps") -> Path:
    """Build the demo of a size and pack its samples, stretched to a grid; returns the release `folder`."""
    chosen = named_grid(grid)
    with tempfile.TemporaryDirectory() as scratch:
        build_demo(Path(scratch) / "demo", size, silent)
        source = Archive(Path(scratch) / "demo/archive.zarr")
        lengths = {group: source.data(group, 0).shape[-1] - source.grid.length for group in DATA if source.count(group)}
        with Archive.writing(Path(scratch) / "archive.zarr", chosen) as writer:
            for group in SCHEMAS:
                for number, row in enumerate(source.rows(group)):
                    data = source.data(group, number) if group in DATA else None
                    if data is not None:
                        pixels = np.resize(np.arange(data.shape[-1]), chosen.length + lengths[group])
                        data = data[..., pixels]
                    writer.append(group, [(row, data)])
        pack(Path(scratch) / "archive.zarr", folder)
    return folder
