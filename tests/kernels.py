"""Tests of Triton kernels without a GPU: in Triton's interpreter, and compiled for a GPU that is not there."""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.commands import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
}


def interpreted(test: Callable) -> Callable:
    """Run a test in a process of its own, whose Triton interprets: Triton reads that when it is first imported.

    There every tensor that is made without values is filled with NaN, so that what a kernel leaves out is found.
    """
    if INTERPRETED:
        torch.use_deterministic_algorithms(True)
        return test

    @functools.wraps(test)
    def in_a_process() -> None:
        pytest.importorskip("triton", reason="needs Triton")
        name = f"{sys.modules[test.__module__].__file__}::{test.__name__}"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", name]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

    del in_a_process.__wrapped__  # pytest would ask for the arguments of the test, which hypothesis draws there
    return in_a_process


def error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖; NaN and infinity count as infinite."""
    value = float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())
    return value if value < float("inf") else float("inf")


class Compiled(NamedTuple):
    """One launch, compiled.

    shared: bytes of shared memory. stack: bytes that a thread keeps in memory, for want of registers.
    atomics: whether there are any, whose order and so whose bits differ from run to run.
    """

    kernel: str
    shared: int
    registers: int
    stack: int
    atomics: bool


def compiled_launches(monkeypatch: pytest.MonkeyPatch, architecture: int, module: str, *kernels: str) -> list[Compiled]:
    """From here on, launches of these kernels of a module compile for sm_`architecture` and run nothing."""
    if INTERPRETED:
        pytest.skip("needs Triton's compiler")
    pytest.importorskip("triton", reason="needs Triton")
    found: list[Compiled] = []

    class Launch:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable:
            assert all(0 < n < 2**31 for n in grid)
            return lambda *arguments, **options: found.append(_compiled(self.kernel, arguments, options, architecture))

    home = importlib.import_module(f"harps_dist.kernels.{module}")
    for name in kernels:
        monkeypatch.setattr(home, name, Launch(getattr(home, name)))
    return found


def _compiled(kernel: Any, arguments: tuple, options: dict[str, int], architecture: int) -> Compiled:
    from triton import compile, knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, divisible = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            assert value.is_contiguous()
            signature[parameter.name], divisible[(i,)] = f"*{NAMES[value.dtype]}", [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                divisible[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    done = compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match
    atomics = re.search(r"\b(atom|red)\.", done.asm["ptx"]) is not None
    return Compiled(kernel.__name__, done.metadata.shared, int(match[1]), int(match[2]), atomics)
