"""The list of a generative set's members, as a CSV file beside them.

Tested in tests/unit/test_generative.py.
"""

from __future__ import annotations

import csv
from pathlib import Path

from harps_dist.data.split import SplitName
from harps_dist.files import atomic_write

DESIGN = "design.csv"


def write_design(path: Path, rows: list[tuple[str, str, str, SplitName, str]]) -> None:
    """Write a design: file name, core, varied label, split and ETC run of every SED."""
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(rows)


FIELDS = ("sed", "core", "varied", "split", "etc_run")
