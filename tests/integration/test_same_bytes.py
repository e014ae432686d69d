"""The same seed makes the same bytes on every processor, from files to a release's digest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.commands import ROOT, environment
from tests.processors import core_types, environments


def test_made_up_files_and_releases_are_the_same_bytes_on_every_processor(tmp_path):
    processes = {
        name: subprocess.Popen(
            [sys.executable, str(ROOT / "tests/integration/worker_same_bytes.py"), str(tmp_path / name)],
            env=environment() | changed, stdout=subprocess.PIPE, text=True,
        )
        for name, changed in environments().items()
    }  # fmt: skip
    printed = {name: process.communicate()[0] for name, process in processes.items()}
    assert {process.returncode for process in processes.values()} == {0}
    found = {name: json.loads(text.splitlines()[-1]) for name, text in printed.items()}
    if core_types()[1] != "Prescott":  # else nothing is left to leave out
        assert found["this"]["computes_as"] != found["least"]["computes_as"], "the same kernels ran in both"
    # The archive notes when a file was last written.
    expected = {name: digest for name, digest in found["this"]["files"].items() if "/real/stamp/" not in name}
    kinds = {name.split("/")[0] for name in expected}
    written = {"files", "archive.zarr", "archive.zarr.stars.csv", "release", "delivery-1"}
    assert kinds == written | {k for k in kinds if k.startswith(".")}
    for name in ("less", "least"):
        differing = [path for path, digest in expected.items() if found[name]["files"].get(path) != digest]
        assert differing == [], f"{name}: {environments()[name]}"


@pytest.mark.parametrize("core_type", core_types())
def test_core_types_are_ones_that_this_processor_runs(core_type):
    code = "import numpy as np; np.ones((200, 200)) @ np.ones((200, 200))"
    subprocess.run([sys.executable, "-c", code], env=environment() | {"OPENBLAS_CORETYPE": core_type}, check=True)
