"""Columns of a Parquet file.

Tested in tests/integration/test_reproduce.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_columns(path: Path) -> dict[str, np.ndarray] | None:
    """Columns of a Parquet file; None where there is none."""
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    table = pq.read_table(path)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
