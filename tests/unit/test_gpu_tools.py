"""What measures on a GPU, rehearsed without one: the whole of `make gpu`, and the bytes that kernels move."""

from __future__ import annotations

import json
import sys

import pytest

from tests.commands import run
from tests.gpu.count_bytes import RECIPES


@pytest.mark.slow
def test_kernels_move_little_more_than_must_be(tmp_path):
    """Counted, not timed: a kernel that read its input once more would be 1.2 and above for the ResNet."""
    pytest.importorskip("triton", reason="needs Triton")
    run(
        [sys.executable, "-m", "tests.gpu.count_bytes", "--out", "bytes.json", "--grid", "demo", "--batch", "2"],
        tmp_path,
    )
    steps = json.loads((tmp_path / "bytes.json").read_text())["steps"]
    assert set(steps) == set(RECIPES)
    for name, bound in zip(RECIPES, (1.6, 1.2, 1.3), strict=True):
        assert 0.9 < steps[name]["over_floor"] < bound, (name, steps[name])


@pytest.mark.slow
def test_everything_that_make_gpu_runs_runs(tmp_path):
    printed = run([sys.executable, "-m", "tests.gpu.measure", "--out", ".", "--rehearse"], tmp_path)
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    failed = [name for name, part in found.items() if isinstance(part, dict) and "failed" in part]
    assert not failed, (found[failed[0]], printed)
    name = RECIPES[0]
    assert found[f"step {name}"]["steps"][0]["part"] == "training"
    assert found[f"training {name}"]["chosen"]
    assert found[f"training {name}"]["spectra_per_s"] > 0
    assert found["profile"]["top"][0]["ms"] > 0
    assert found["data"]
    assert found["inference"]
    assert "skipped" in found["tests"]["summary"][0]
