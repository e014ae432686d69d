"""Fixtures that several test rooms share."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import settings

from harps_dist.progress import silent

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("same", derandomize=True)  # the same examples in every run
settings.load_profile("same")

MADE_UP = {"tiny_demo", "tiny_release", "tiny_runs", "tiny_exports"}  # releases, and what is trained on them
NO_NUMBERS = {  # files of tests whose verdict no rounding can change: who owns what, signals, pages, speeds
    *("test_ctrl_c", "test_data_speed", "test_drawing", "test_evaluation_page", "test_first_ingest", "test_launchers"),
    *("test_nothing_replaced", "test_outputs_again", "test_specutils", "test_step_speed", "test_stores"),
}
GENUINE = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses made-up releases and their numbers: `make test-processors` runs it as another processor computes
    too."""
    for item in items:
        if MADE_UP & set(getattr(item, "fixturenames", ())) and item.path.stem not in NO_NUMBERS:
            item.add_marker(pytest.mark.made_up)


@pytest.fixture(scope="session")
def genuine_data() -> Path:
    """Folder of genuine HARPS files, catalogues and the Appendix A oracle; skips where it is absent."""
    if not GENUINE.is_dir():
        pytest.skip(f"genuine data files are not at {GENUINE}")
    return GENUINE


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory) -> Path:
    """Folder of a small demo on the tiny grid: files, archive.zarr, release. Read only: copy before changing."""
    from preprocessing.demo import DemoSize, build_demo

    folder = tmp_path_factory.mktemp("demo")
    size = DemoSize(stars=16, visits=2.0, seds=40, etc_runs=4, cores=4, grid="tiny", split=(0.6, 0.2, 0.2), seed=3)
    build_demo(folder, size, progress=silent)
    return folder


@pytest.fixture(scope="session")
def tiny_release(tiny_demo) -> Path:
    """A small release with real and simulated samples on the tiny grid. Read only."""
    return tiny_demo / "release"


@pytest.fixture(scope="session")
def kept_formats_0_1(tmp_path_factory) -> Path:
    """Folder of what version 0.1 wrote, see tests/data/README.md: archive.zarr, release, run … Read only."""
    folder = tmp_path_factory.mktemp("kept") / "formats-0.1"
    with tarfile.open(Path(__file__).parent / "data" / "formats-0.1.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture
def formats_0_1(kept_formats_0_1, tmp_path) -> Path:
    """A copy of it, to be changed at will."""
    return shutil.copytree(kept_formats_0_1, tmp_path / "formats-0.1", symlinks=True)
