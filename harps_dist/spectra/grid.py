"""The wavelength lattice of an instrument and the windows cut from it.

All grids of an instrument share one lattice: for HARPS air wavelengths 3785.00 + 0.01 k Å, barycentric frame, stellar
velocity left in. A `Grid` is a run of that lattice, so two grids differ by a whole number of pixels and data pass
between them by slicing, never by resampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from harps_dist.errors import GridError
from harps_dist.spectra import instrument as instruments
from harps_dist.spectra.instrument import INSTRUMENTS, Instrument

MARGIN = 480  # pixels a source grid needs beyond the target at either end: |velocity| up to 208 km/s at 6910 Å


@dataclass(frozen=True)
class Grid:
    """A run of `length` lattice pixels beginning at lattice pixel `start` (negative inside the left pad)."""

    name: str
    start: int
    length: int
    instrument: Instrument = instruments.HARPS

    @property
    def step_aa(self) -> float:
        """Wavelength of a pixel [Å]."""
        return self.instrument.step_aa

    @property
    def wave0_aa(self) -> float:
        """Air wavelength of the first pixel [Å]."""
        return self.instrument.wave_aa(self.start)

    @property
    def stop(self) -> int:
        """Lattice pixel behind the last one."""
        return self.start + self.length

    @cached_property
    def wave_aa(self) -> np.ndarray:
        """(length,) float64 air wavelengths [Å]."""
        return self.instrument.origin_aa + self.step_aa * np.arange(self.start, self.stop)

    @cached_property
    def valid(self) -> np.ndarray:
        """(length,) bool: pixels that the instrument has data for, outside the gap between its detectors."""
        pixel = np.arange(self.start, self.stop)
        first, end = self.instrument.gap or (0, 0)
        return (pixel >= 0) & (pixel < self.instrument.data_pixels) & ~((pixel >= first) & (pixel < end))

    def widened(self, margin: int) -> Grid:
        """This grid with `margin` more pixels at either end, room for a Doppler shift to draw from."""
        return Grid(f"{self.name}+{margin}", self.start - margin, self.length + 2 * margin, self.instrument)

    def within(self, other: Grid) -> slice:
        """The slice of `other` that this grid covers.

        Raises GridError where this grid reaches beyond `other`, or is of another instrument.
        """
        if self.instrument != other.instrument:
            raise GridError(
                f"grid {self.name} is of {self.instrument.name}, but {other.name} is of {other.instrument.name}. "
                f"Choose data of the same instrument."
            )
        first = self.start - other.start
        if first < 0 or self.stop > other.stop:
            raise GridError(
                f"grid {self.name} spans {self.wave_aa[0]:.2f}-{self.wave_aa[-1]:.2f} Å, but {other.name} only has "
                f"{other.wave_aa[0]:.2f}-{other.wave_aa[-1]:.2f} Å. Choose a smaller window or data on a wider grid."
            )
        return slice(first, first + self.length)

    def wave_slice(self, low_aa: float, high_aa: float) -> slice:
        """Pixels whose wavelength lies in [low_aa, high_aa]."""
        first, end = np.searchsorted(self.wave_aa, [low_aa - self.step_aa / 4, high_aa + self.step_aa / 4])
        return slice(int(first), int(end))


def named_grid(name: str) -> Grid:
    """A named window of an instrument; raises GridError with the known names."""
    known = [window for instrument in INSTRUMENTS.values() for window in instrument.windows]
    for instrument in INSTRUMENTS.values():
        if name in instrument.windows:
            return Grid(name, *instrument.windows[name], instrument)
    raise GridError(f"unknown grid {name!r}; known grids are {', '.join(known)}.")


def grid_within(low_aa: float, high_aa: float, least: float, beside: str = "harps") -> Grid | None:
    """The longest named grid of whose valid pixels a share of `least` lies in a span of wavelengths; None without.

    beside: a named grid, of whose instrument it is.
    """
    grids = [named_grid(name) for name in named_grid(beside).instrument.windows]
    fitting = [
        grid for grid in grids if ((low_aa <= grid.wave_aa) & (grid.wave_aa <= high_aa))[grid.valid].mean() >= least
    ]
    return max(fitting, key=lambda grid: grid.length, default=None)


HARPS = named_grid("harps")


@lru_cache(maxsize=4)
def fill_plan(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How to fill what no spectrograph pixel covers: pixel i becomes (1 - w_i) flux[a_i] + w_i flux[b_i].

    The gap between detectors becomes a straight line between its edges, the pads mirror the neighbouring flux, valid
    pixels stay (a = b = i, w = 0). Source: the paper's public preprocessing. Returns a, b (length,) int64 and w
    (length,) float64, shared and not to be written to. Raises GridError where a window holds too little valid flux to
    fill its pads from.
    """
    instrument = grid.instrument
    left = np.arange(grid.length)
    lattice = left + grid.start
    mirrored = np.where(lattice < 0, -lattice, lattice)
    beyond = mirrored >= instrument.data_pixels
    mirrored = np.where(beyond, 2 * (instrument.data_pixels - 1) - mirrored, mirrored)
    left = mirrored - grid.start
    right, weight = left.copy(), np.zeros(grid.length)
    if instrument.gap:
        first, end = instrument.gap
        inside = (mirrored >= first) & (mirrored < end)
        left[inside], right[inside] = first - 1 - grid.start, end - grid.start
        weight[inside] = (mirrored[inside] - (first - 1)) / (end - first + 1)
        if grid.start > first - 1:  # the window begins inside the gap
            left[inside] = right[inside]
        if grid.stop <= end:  # the window ends inside the gap
            right[inside] = left[inside]
    if not (grid.valid[left.clip(0, grid.length - 1)].all() and left.min() >= 0 and left.max() < grid.length):
        raise GridError(
            f"grid {grid.name} ({grid.wave0_aa:.2f} Å, {grid.length} px) has more padding than flux to mirror. "
            f"Choose a window with more pixels between {instrument.wave_aa(0):.0f} and "
            f"{instrument.wave_aa(instrument.data_pixels - 1):.0f} Å."
        )
    return left, right, weight


def fill_invalid(flux: np.ndarray, grid: Grid) -> np.ndarray:
    """Fill invalid pixels by `fill_plan`. flux: (..., grid.length), any float dtype. Returns a new array."""
    left, right, weight = fill_plan(grid)
    weight = weight.astype(flux.dtype)
    return flux[..., left] * (1 - weight) + flux[..., right] * weight
