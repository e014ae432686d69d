"""Without Triton or CUDA nothing breaks before a kernel is launched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harps_dist.errors import ConfigError
from harps_dist.kernels.availability import available, check_kernels
from tests.commands import ROOT, environment

KERNELS = ROOT / "harps_dist" / "kernels"
LIGHT = [
    f"harps_dist.kernels.{path.stem}" for path in KERNELS.glob("*.py") if not path.stem.startswith(("triton_", "__"))
]


def test_nothing_imports_triton_before_a_launch():
    code = (
        f"import sys; sys.modules['triton'] = None; import {', '.join(LIGHT)}; print('triton.language' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "False"


def test_available_only_with_cuda():
    assert isinstance(available(), bool)
    assert not available() or torch.cuda.is_available()


@pytest.mark.skipif(available(), reason="they are available")
def test_asking_for_what_is_missing_says_what_to_choose():
    check_kernels("torch")
    with pytest.raises(ConfigError, match="Choose kernels torch"):
        check_kernels("triton")
