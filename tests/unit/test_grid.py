"""The lattice, its windows, and what fills pixels without data."""

from __future__ import annotations

import numpy as np
import pytest

from harps_dist.errors import GridError
from harps_dist.spectra.grid import HARPS, Grid, fill_invalid, fill_plan, named_grid


def test_harps_grid_has_the_published_numbers():
    assert HARPS.length == 327_680 == 20 * 2**14
    assert HARPS.wave_aa[7_589] == pytest.approx(3785.00, abs=1e-9)
    assert HARPS.wave_aa[7_589 + 312_500] == pytest.approx(6910.00, abs=1e-9)
    assert HARPS.valid.sum() == 309_060
    invalid = np.flatnonzero(~HARPS.valid)
    expected = np.r_[0:7_589, 159_453:162_894, 320_090:327_680]
    np.testing.assert_array_equal(invalid, expected)
    assert HARPS.wave_aa[159_453] == pytest.approx(5303.64, abs=1e-9)
    assert HARPS.wave_aa[162_893] == pytest.approx(5338.04, abs=1e-9)


def test_windows_are_slices_of_the_full_grid():
    for grid in map(named_grid, HARPS.instrument.windows):
        window = grid.within(HARPS)
        np.testing.assert_array_equal(HARPS.wave_aa[window], grid.wave_aa)
        np.testing.assert_array_equal(HARPS.valid[window], grid.valid)
    assert named_grid("demo").wave_aa[0] == pytest.approx(5990.00, abs=1e-9)
    with pytest.raises(GridError, match="only has"):
        HARPS.widened(10).within(HARPS)
    with pytest.raises(GridError, match="known grids are harps"):
        named_grid("nosuch")


def test_wave_slice_includes_both_ends():
    window = named_grid("demo").wave_slice(6050.0, 6250.0)
    assert named_grid("demo").wave_aa[window][[0, -1]] == pytest.approx([6050.0, 6250.0], abs=1e-9)


def test_fill_bridges_the_gap_and_mirrors_into_the_pads():
    flux = np.where(HARPS.valid, HARPS.wave_aa, np.nan)
    filled = fill_invalid(flux, HARPS)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[HARPS.valid], flux[HARPS.valid])
    gap = slice(HARPS.instrument.gap[0] - HARPS.start, HARPS.instrument.gap[1] - HARPS.start)
    np.testing.assert_allclose(filled[gap], HARPS.wave_aa[gap], atol=1e-6)  # a straight line stays one
    np.testing.assert_array_equal(filled[:7_589], filled[7_590 : 2 * 7_589 + 1][::-1])
    last = 320_089
    np.testing.assert_array_equal(filled[last + 1 :], filled[last - 7_590 : last][::-1])


@pytest.mark.parametrize("start", [HARPS.instrument.gap[0] - 1_000, HARPS.instrument.gap[0] + 1_000])
def test_fill_where_a_window_ends_or_begins_in_the_gap(start):
    grid = Grid("edge", start, 4_096 if start > HARPS.instrument.gap[0] else 3_000)
    filled = fill_invalid(np.where(grid.valid, 2.0, np.nan), grid)
    np.testing.assert_allclose(filled, 2.0)


def test_a_window_of_mostly_padding_is_refused():
    with pytest.raises(GridError, match="more padding than flux"):
        fill_plan(Grid("pad", -4_000, 4_096))
    with pytest.raises(GridError, match="more padding than flux"):
        fill_plan(Grid("gap", HARPS.instrument.gap[0] + 10, 100))
