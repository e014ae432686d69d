"""Rows of an archive that stand: one for every exposure, neither withdrawn nor superseded.

An exposure comes in several forms: a Phase 3 product, the image that it was made from, either again under another id
after reprocessing. One of them stands.

Tested in tests/integration/test_exposures.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from harps_dist.formats.archive import Archive
from harps_dist.formats.layouts import REWRITTEN
from harps_dist.formats.versions import newest_versions, version_order

SAME_START_S = 1.0  # starts that differ by less are one exposure's; the shortest one takes longer, with its read-out
SECONDS_A_DAY = 86_400.0
PHASE_3 = ("ADP", "S1D_FINAL_A")  # of the column `product`


class Standing(NamedTuple):
    """What stands in an archive, and why the rest does not.

    rows: (n,) int64 of `real`, in their order. withdrawn: data products with the reason for it. other_forms: data
    products that are an exposure's other forms, each with the product that stands for it.
    """

    rows: np.ndarray
    withdrawn: dict[str, str]
    other_forms: dict[str, str]


def standing(archive: Archive) -> Standing:
    """The rows of `real` that stand: of every exposure the form of the newest pipeline, a Phase 3 product before an
    image, what came last before what came first.

    Who withdraws a product withdraws its exposure, in all forms up to that version of the pipeline.
    """
    names = ("key", "pipeline", "product", "target", "mjd")
    keys, pipelines, products, targets, starts = (archive.column("real", name) for name in names)
    withdrawn = _withdrawn(archive)
    newest = newest_versions(keys, pipelines)
    numbers = exposures(targets[newest], starts[newest])

    forms: dict[int, list[int]] = {}
    for row, number in zip(newest.tolist(), numbers.tolist(), strict=True):
        forms.setdefault(number, []).append(row)
    rows: list[int] = []
    reasons: dict[str, str] = {}
    others: dict[str, str] = {}
    for of_exposure in forms.values():
        tombstones = [withdrawn[keys[row]] for row in of_exposure if keys[row] in withdrawn]
        good = of_exposure
        if tombstones:
            until, reason = max(tombstones, key=lambda stone: version_order(stone[0]))
            good = [row for row in of_exposure if version_order(pipelines[row]) > version_order(until)]
            reasons |= {keys[row]: withdrawn.get(keys[row], ("", reason))[1] for row in of_exposure if row not in good}
        if good:
            first = max(good, key=lambda row: (form_order(pipelines[row], products[row]), row))
            rows.append(first)
            others |= {keys[row]: keys[first] for row in good if row != first}
    return Standing(np.array(sorted(rows), np.int64), reasons, others)


def form_order(pipeline: Any, product: Any) -> tuple[bool, Any, bool]:
    """What forms of one exposure are ordered by; the largest stands. pipeline: its version. product: its name.

    What was rewritten since the pipeline made it comes last.
    """
    return str(product) != REWRITTEN, version_order(str(pipeline)), str(product) in PHASE_3


def exposures(targets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n,) int64 number of the exposure that each of n spectra shows: the same star from the same second on.

    targets: (n,) stars. starts: (n,) MJD; a spectrum whose start is NaN is an exposure of its own.
    """
    order = np.lexsort((starts, targets.astype(str)))
    with np.errstate(invalid="ignore"):
        later = np.diff(starts[order]) * SECONDS_A_DAY < SAME_START_S  # false beside NaN
    same = later & (targets[order][1:] == targets[order][:-1])
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(~same)])[: len(order)]
    return numbers


def _withdrawn(archive: Archive) -> dict[str, tuple[str, str]]:
    """Version up to which, and why, by product; what was said last counts."""
    return {row["key"]: (row["pipeline"], row["reason"]) for row in archive.rows("withdrawn")}
