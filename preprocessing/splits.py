"""How many stars a release has in each split, and with which labels: what can be trained on, and judged by.

Tested in tests/unit/test_splits.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harps_dist.data.manifest import Index
from harps_dist.data.split import SPLITS, SplitName
from harps_dist.spectra.labels import CATALOGUED, LABELS

if TYPE_CHECKING:
    from rich.table import Table

LEAST_STARS = 5  # that an error by star takes; gates ask for as many


class Split(NamedTuple):
    """What a split has of observed spectra. labelled: stars with a value, by label that a catalogue gives."""

    name: SplitName
    spectra: int
    stars: int
    labelled: dict[str, int]


def splits_of(index: Index) -> list[Split]:
    """The splits of a release's observed spectra, in the order of `SPLITS`."""
    found = []
    for name in SPLITS:
        rows = index.rows("real", name)
        stars, labels = index["star"][rows].astype(str), index.labels[rows]
        labelled = {
            label.name: len(np.unique(stars[~np.isnan(labels[:, column])]))
            for column, label in enumerate(LABELS)
            if label.columns
        }
        found.append(Split(name, len(rows), len(np.unique(stars)), labelled))
    return found


def split_table(splits: list[Split]) -> Table:
    """The splits as a table of 80 columns at most: spectra, stars, and stars by label."""
    from rich.table import Table

    table = Table(title="observed spectra, their stars, and stars with a label")
    for title in ("split", "spectra", "stars", *CATALOGUED):
        table.add_column(title, justify="left" if title == "split" else "right")
    for split in splits:
        table.add_row(split.name, *(f"{n:,}" for n in (split.spectra, split.stars, *split.labelled.values())))
    return table


def shortages(splits: list[Split]) -> list[str]:
    """A sentence for each held-out split in which a label of the training split has fewer stars than `LEAST_STARS`."""
    trained = {label for split in splits if split.name == "train" for label, stars in split.labelled.items() if stars}
    said = []
    for split in splits:
        few = [
            f"{label} {stars}" for label, stars in split.labelled.items() if label in trained and stars < LEAST_STARS
        ]
        if split.name != "train" and few:
            said.append(
                f"few stars in the {split.name} split: {', '.join(few)}. Errors by star, and a gate's verdict, take "
                f"{LEAST_STARS}. More stars help, or a larger share (--split) where a release is packed anew."
            )
    return said
