"""Which rows stand among spectra that were predicted: one for a data product, and one for an exposure.

An exposure may come in several forms, of which one has a row, see `formats.standing`. All forms are predicted and kept;
which of them stands is decided anew whenever the table is made, so that what comes later, or after a kill, counts.

Tested in tests/integration/test_predict_forms.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harps_dist.formats.standing import exposures, form_order
from harps_dist.inference.table import Columns

NEAR_DEG = 2 / 60  # two forms' positions, of which one may be the target's, the other the telescope's


class Forms(NamedTuple):
    """What stands among n rows. duplicate_of: rows whose data product another row holds, each with that row. form_of:
    rows that are another form of an exposure, each with the row that stands for it."""

    duplicate_of: dict[int, int]
    form_of: dict[int, int]


def forms(columns: Columns) -> Forms:
    """What stands: of every data product the newest version, and of every exposure the form of the newest pipeline, a
    Phase 3 product before an image; of equals the first.

    columns: (n,) arrays `dp_id`, `object`, `ra`, `dec` [deg], `mjd`, `pipeline` and `product`, of one instrument.
    """
    dp_id, pipelines, products = (columns[name] for name in ("dp_id", "pipeline", "product"))

    def stands(rows: list[int]) -> int:
        return max(rows, key=lambda row: (form_order(pipelines[row], products[row]), -row))

    of_product: dict[str, list[int]] = {}
    for row, key in enumerate(dp_id):
        of_product.setdefault(key, []).append(row)
    chosen = {row: stands(rows) for rows in of_product.values() for row in rows}
    duplicate_of = {row: first for row, first in chosen.items() if row != first}

    left = np.array(sorted(chosen.keys() - duplicate_of.keys()), np.int64)
    starts = columns["mjd"][left].astype(float)
    begun: dict[int, list[list[int]]] = {}  # what began in a second, by its star
    for row, number in zip(left.tolist(), exposures(np.full(len(left), ""), starts).tolist(), strict=True):
        stars = begun.setdefault(number, [])
        known = next((star for star in stars if _one_star(columns, star[0], row)), None)
        if known is None:
            stars.append([row])
        else:
            known.append(row)
    groups = [star for stars in begun.values() for star in stars]
    return Forms(duplicate_of, {row: stands(rows) for rows in groups for row in rows if row != stands(rows)})


def _one_star(columns: Columns, one: int, other: int) -> bool:
    """Whether two rows name one star or lie at one place, or nothing can be compared."""
    names = columns["object"][one], columns["object"][other]
    (ra, dec), (other_ra, other_dec) = ((columns["ra"][row], columns["dec"][row]) for row in (one, other))
    placed = bool(np.isfinite([ra, dec, other_ra, other_dec]).all())
    if names[0] and names[0] == names[1]:
        return True
    if placed:
        east = ((ra - other_ra + 180) % 360 - 180) * np.cos(np.radians(dec))
        return bool(np.hypot(east, dec - other_dec) < NEAR_DEG)
    return not all(names)
