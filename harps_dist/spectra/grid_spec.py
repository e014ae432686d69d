"""A grid as archives, releases and runs have it on record.

Tested in tests/unit/test_grid.py.
"""

from __future__ import annotations

from harps_dist.frozen import Frozen
from harps_dist.spectra.grid import HARPS, Grid
from harps_dist.spectra.instrument import named_instrument


class GridSpec(Frozen):
    """A `Grid` as JSON. instrument: by its name."""

    name: str
    start: int
    length: int
    instrument: str = HARPS.name

    def grid(self) -> Grid:
        """The grid; raises GridError for an instrument that this code does not know."""
        return Grid(self.name, self.start, self.length, named_instrument(self.instrument))

    @classmethod
    def of(cls, grid: Grid) -> GridSpec:
        return cls(name=grid.name, start=grid.start, length=grid.length, instrument=grid.instrument.name)
