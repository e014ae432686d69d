"""Outputs of the exposure time calculator for tests: three orders, in both generations, and changed ones."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from harps_dist.formats.etc import EtcRecord
from harps_dist.formats.sed import SedGrid, write_sed
from preprocessing.simulator.etc_files import EtcSettings, write_etc
from preprocessing.simulator.instrument import observe

ORDERS = (101, 100, 99)
SETTINGS = EtcSettings("star.fits", airmass=1.4, pwv_mm=6.5, mag=7.25, exptime_s=600.0, fli=0.5)
GENERATIONS = ("2023", "2026")


def write_runs(folder: Path) -> None:
    """Write one run in both generations, 2023.json and 2026.json, and its SED, star.fits."""
    grid = SedGrid.packaged()
    flux = grid.sample(5432.0, 4.3, -0.2)[0]
    write_sed(folder / "star.fits", grid.wave_aa, flux, 5432.0, 4.3, -0.2, 2.0)
    outputs = observe(grid.wave_aa, flux, 1.4, 6.5, 7.25, 600.0, orders=ORDERS, fli=0.5, ndit=2)
    for generation in GENERATIONS:
        write_etc(folder / f"{generation}.json", outputs, SETTINGS, generation)


def edited(run: Path, generation: str, tmp_path: Path, edit) -> Path:
    """A copy of a run with its document changed by `edit(document, orders)`."""
    document = json.loads((run / f"{generation}.json").read_bytes())
    data = document["data"]
    edit(document, data["orders"] if generation == "2023" else data["plots"]["spectra"])
    path = tmp_path / f"edited_{generation}.json"
    path.write_text(json.dumps(document))
    return path


def first_data(orders: list) -> dict:
    return orders[0]["detectors"][0]["data"]


def same(a: EtcRecord, b: EtcRecord) -> bool:
    def arrays(record: EtcRecord) -> list[np.ndarray]:
        return [getattr(order, field.name) for order in record.orders for field in fields(order)]

    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))
