"""The HARPS wavelength lattice and the windows cut from it.

All grids share one lattice: air wavelengths 3785.00 + 0.01 k Å, barycentric frame, stellar velocity left
in. A `Grid` is a run of that lattice, so two grids differ by a whole number of pixels and data pass between
them by slicing, never by resampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from harps_dist.errors import GridError

ORIGIN_AA = 3785.00
STEP_AA = 0.01
DATA_PIXELS = 312_501  # 3785.00 .. 6910.00 Å
CCD_GAP = (151_864, 155_305)  # lattice pixels [first, end) without data: 5303.64 .. 5338.04 Å


@dataclass(frozen=True)
class Grid:
    """A run of `length` lattice pixels beginning at lattice pixel `start` (negative inside the left pad)."""

    name: str
    start: int
    length: int

    @property
    def wave0_aa(self) -> float:
        """Air wavelength of the first pixel [Å]."""
        return ORIGIN_AA + STEP_AA * self.start

    @property
    def stop(self) -> int:
        """Lattice pixel behind the last one."""
        return self.start + self.length

    @cached_property
    def wave_aa(self) -> np.ndarray:
        """(length,) float64 air wavelengths [Å]."""
        return ORIGIN_AA + STEP_AA * np.arange(self.start, self.stop)

    @cached_property
    def valid(self) -> np.ndarray:
        """(length,) bool: pixels inside 3785-6910 Å and outside the CCD gap."""
        pixel = np.arange(self.start, self.stop)
        gap = (pixel >= CCD_GAP[0]) & (pixel < CCD_GAP[1])
        return (pixel >= 0) & (pixel < DATA_PIXELS) & ~gap

    def widened(self, margin: int) -> Grid:
        """The same grid with `margin` more pixels at either end, room for a Doppler shift to draw from."""
        return Grid(f"{self.name}+{margin}", self.start - margin, self.length + 2 * margin)

    def within(self, other: Grid) -> slice:
        """The slice of `other` that this grid covers.

        Raises GridError where this grid reaches beyond `other`.
        """
        first = self.start - other.start
        if first < 0 or self.stop > other.stop:
            raise GridError(
                f"grid {self.name} covers lattice pixels {self.start}..{self.stop}, but {other.name} only has "
                f"{other.start}..{other.stop}. Choose a smaller window or data on a wider grid."
            )
        return slice(first, first + self.length)

    def wave_slice(self, low_aa: float, high_aa: float) -> slice:
        """Pixels whose wavelength lies in [low_aa, high_aa]."""
        first, end = np.searchsorted(self.wave_aa, [low_aa - STEP_AA / 4, high_aa + STEP_AA / 4])
        return slice(int(first), int(end))


HARPS = Grid("harps", -7_589, 327_680)
GRIDS = {
    grid.name: grid
    for grid in (
        HARPS,
        Grid("demo", 220_500, 32_768),  # 5990.00-6317.67 Å: RVIS range, Ca I 6122 and 6162, telluric O2 gamma
        Grid("tiny", 231_000, 4_096),  # 6095.00-6135.95 Å: Ca I 6102 and 6122, for smoke tests
    )
}


def named_grid(name: str) -> Grid:
    """Look a grid up by name; raises GridError with the known names."""
    try:
        return GRIDS[name]
    except KeyError:
        raise GridError(f"unknown grid {name!r}; known grids are {', '.join(GRIDS)}.") from None


def fill_plan(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How to fill what no spectrograph pixel covers: pixel i becomes (1 - w_i) flux[a_i] + w_i flux[b_i].

    The CCD gap becomes a straight line between its edges, the pads mirror the neighbouring flux, valid pixels
    stay (a = b = i, w = 0). Source: the paper's public preprocessing. Returns a, b (length,) int64 and
    w (length,) float64. Raises GridError where a window holds too little valid flux to fill its pads from.
    """
    left = np.arange(grid.length)
    lattice = left + grid.start
    mirrored = np.where(lattice < 0, -lattice, lattice)
    mirrored = np.where(mirrored >= DATA_PIXELS, 2 * (DATA_PIXELS - 1) - mirrored, mirrored)
    left = mirrored - grid.start
    right, weight = left.copy(), np.zeros(grid.length)
    gap = (mirrored >= CCD_GAP[0]) & (mirrored < CCD_GAP[1])
    left[gap], right[gap] = CCD_GAP[0] - 1 - grid.start, CCD_GAP[1] - grid.start
    weight[gap] = (mirrored[gap] - (CCD_GAP[0] - 1)) / (CCD_GAP[1] - CCD_GAP[0] + 1)
    if grid.start > CCD_GAP[0] - 1:  # the window begins inside the gap
        left[gap] = right[gap]
    if grid.stop <= CCD_GAP[1]:  # the window ends inside the gap
        right[gap] = left[gap]
    if not (grid.valid[left.clip(0, grid.length - 1)].all() and left.min() >= 0 and left.max() < grid.length):
        raise GridError(
            f"grid {grid.name} ({grid.wave0_aa:.2f} Å, {grid.length} px) has more padding than flux to mirror. "
            f"Choose a window with more pixels between 3785 and 6910 Å."
        )
    return left, right, weight


def fill_invalid(flux: np.ndarray, grid: Grid) -> np.ndarray:
    """Fill invalid pixels by `fill_plan`. flux: (..., grid.length), any float dtype. Returns a new array."""
    left, right, weight = fill_plan(grid)
    weight = weight.astype(flux.dtype)
    return flux[..., left] * (1 - weight) + flux[..., right] * weight
