"""How libraries are made to compute as on another processor, for tests that must come out alike on any."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def _flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system than Linux
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def core_types() -> tuple[str, str]:
    """The two of OpenBLAS's core types with the widest instructions that this processor can run; others crash.

    SkylakeX has AVX-512, Haswell AVX2, Nehalem SSE4.2, Prescott SSE3.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return ("ARMV8", "NEOVERSEN1")
    flags = _flags()
    if flags >= _AVX512:
        return ("SkylakeX", "Haswell")
    return ("Haswell", "Nehalem") if flags >= {"avx2", "fma"} else ("Nehalem", "Prescott")


def environments() -> dict[str, dict[str, str]]:
    """Variables of processes by what they compute as: this processor, one with less, and the least of its kind."""
    from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched

    wide, narrow = core_types()
    widest = [name for name in dispatched if name.startswith(("AVX512", "X86_V4"))]
    return {
        "this": {"OPENBLAS_CORETYPE": wide},
        "less": {
            "OPENBLAS_CORETYPE": narrow,
            "NPY_DISABLE_CPU_FEATURES": " ".join(widest),
            "ATEN_CPU_CAPABILITY": "avx2",
        },
        "least": {
            "OPENBLAS_CORETYPE": "Prescott" if platform.machine() in ("x86_64", "AMD64") else "ARMV8",
            "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched),
            "ATEN_CPU_CAPABILITY": "default",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",  # the C library's exp, sin, …
        },
    }


def computes_as() -> str:
    """The kernels that differ from processor to processor, told by what they round to."""
    import hashlib
    import math

    draw = np.random.default_rng(0)
    values, matrix = draw.uniform(-9, 9, 40_000), draw.uniform(-1, 1, (200, 200))
    libm = np.array([math.sin(value) for value in values.tolist()])
    parts = (np.exp(values), np.exp(values.astype(np.float32)), matrix @ matrix, libm)
    return " ".join(hashlib.sha256(part.tobytes()).hexdigest()[:8] for part in parts)


if __name__ == "__main__":
    print(core_types()[1])  # the first is what OpenBLAS chooses by itself
