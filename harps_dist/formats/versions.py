"""Versions of one spectrum: which of several is the newest.

Tested in tests/unit/test_identity.py.
"""

from __future__ import annotations

import re

import numpy as np


def version_order(pipeline: str) -> tuple[tuple[int, ...], str]:
    """What versions of a pipeline are ordered by: 'HARPS_3.10' is newer than 'HARPS_3.8'.

    ESO's pipelines, as 'espdr/3.0.0', are newer than all of the old one.
    """
    return ("/" in pipeline, *map(int, re.findall(r"\d+", pipeline))), pipeline


def newest_versions(keys: np.ndarray, pipelines: np.ndarray) -> np.ndarray:
    """Rows (n,) int64 of the newest version of every data product, in the order of rows."""
    newest: dict[str, int] = {}
    for row, (key, pipeline) in enumerate(zip(keys, pipelines, strict=True)):
        there = newest.get(key)
        if there is None or version_order(pipeline) >= version_order(pipelines[there]):
            newest[key] = row
    return np.array(sorted(newest.values()), np.int64)
