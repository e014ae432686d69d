"""Medians by counting in Triton are those of sorting, of any floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harps_dist.kernels import median
from harps_dist.kernels.median import valid_median
from tests.kernels import SHARED_BYTES, compiled_launches, interpreted

KINDS = ("spread", "ties", "zeros", "any bits", "infinite", "nan")


def drawn(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Floats of a kind, (batch, pixel) float32."""
    if kind == "any bits":
        bits = random.integers(0, 2**32, shape, np.uint64).astype(np.uint32).view(np.float32)
        return np.nan_to_num(bits, nan=1.0)
    values = random.normal(size=shape).astype(np.float32)
    if kind == "ties":
        values = np.round(values)
    elif kind == "zeros":
        values = np.copysign(np.float32(0), values)
    elif kind == "infinite":
        values = np.where(np.abs(values) < 1, np.copysign(np.float32(np.inf), values), values)
    elif kind == "nan":  # of either sign
        values[0, random.integers(shape[1])] = np.copysign(np.float32(np.nan), values[0, 0])
    return values


@interpreted
@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 3),
    pixels=st.integers(1, 200),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@example(kind="spread", batch=2, pixels=300, share=1.0, seed=0)
@example(kind="nan", batch=2, pixels=130, share=1.0, seed=1)
@example(kind="nan", batch=2, pixels=130, share=1.0, seed=2)
@example(kind="any bits", batch=1, pixels=257, share=0.0, seed=3)
def test_the_median_is_that_of_sorting(kind, batch, pixels, share, seed):
    random = np.random.default_rng(seed)
    flux = drawn(kind, (batch, pixels), random)
    valid = random.random(pixels) < share
    valid[random.integers(pixels)] = True
    flux[:, ~valid] = np.nan  # no part of it
    kept = int(valid.sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(median, "BLOCK", 64)  # several programs, the last one ragged
        found = valid_median(torch.from_numpy(flux), torch.from_numpy(valid.astype(np.int8)), kept)
    among = flux[:, valid]
    np.testing.assert_array_equal(found, torch.from_numpy(among).median(dim=1).values)
    numbers = ~np.isnan(among).any(axis=1)
    middle = (kept - 1) // 2
    np.testing.assert_array_equal(found.numpy()[numbers], np.partition(among[numbers], middle, axis=1)[:, middle])


@pytest.mark.parametrize("architecture", SHARED_BYTES)
def test_compiles_without_spills(monkeypatch, architecture):
    launches = compiled_launches(monkeypatch, architecture, "triton_median", "count_digit", "write_medians")
    valid_median(torch.empty(2, 327_680), torch.empty(327_680, dtype=torch.int8), 309_060)
    assert [launch.kernel for launch in launches] == 4 * ["count_digit"] + ["write_medians"]
    assert all(launch.stack == 0 and launch.shared <= SHARED_BYTES[architecture] for launch in launches)
