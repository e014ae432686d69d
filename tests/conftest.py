"""Fixtures that several test rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

GENUINE = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def genuine_data() -> Path:
    """Folder of genuine HARPS files, catalogues and the Appendix A oracle; skips where it is absent."""
    if not GENUINE.is_dir():
        pytest.skip(f"genuine data files are not at {GENUINE}")
    return GENUINE
