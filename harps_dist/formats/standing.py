"""Rows of an archive that stand: neither withdrawn nor superseded.

Tested in tests/integration/test_archive.py.
"""

from __future__ import annotations

import numpy as np

from harps_dist.formats.archive import Archive
from harps_dist.formats.versions import newest_versions, version_order


def standing(archive: Archive) -> tuple[np.ndarray, dict[str, str]]:
    """Rows (n,) int64 of `real` whose spectra stand: the newest version of each product, unless it is withdrawn.

    And the withdrawn products with their reasons.
    """
    keys, pipelines = archive.column("real", "key"), archive.column("real", "pipeline")
    withdrawn = _withdrawn(archive)
    rows, reasons = [], {}
    for row in newest_versions(keys, pipelines):
        until, reason = withdrawn.get(keys[row], ("", None))
        if reason is None or version_order(pipelines[row]) > version_order(until):
            rows.append(row)
        else:
            reasons[keys[row]] = reason
    return np.array(rows, np.int64), reasons


def _withdrawn(archive: Archive) -> dict[str, tuple[str, str]]:
    """Version up to which, and why, by product; what was said last counts."""
    return {row["key"]: (row["pipeline"], row["reason"]) for row in archive.rows("withdrawn")}
