"""Fits of spectra on a grid: what is held, what moves within which range, where it begins.

Tested in tests/unit/test_fit.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from harps_dist.errors import ConfigError
from harps_dist.fitting.observation import Observation
from harps_dist.fitting.solve import Data, Settings, Solution, Solver
from harps_dist.fitting.start import LARGEST_KMS, USUAL, Start, berv_of
from harps_dist.fitting.stellar import PackagedModel, StellarModel
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import Grid, named_grid

RANGES = {
    "variance": (0.0, 900.0),  # km²/s²: broadening up to 30 km/s
    "rv": (-LARGEST_KMS - 20.0, LARGEST_KMS + 20.0),
    "berv": (-35.0, 35.0),
    "airmass": (0.5, 4.0),
    "pwv": (0.0, 60.0),
}
GRID = named_grid("demo")  # what the packaged model fills at all velocities


@dataclass(frozen=True)
class Held:
    """What a fit does not look for.

    values: of parameters by name, the same for all spectra, "variance" in km²/s². berv: whether that of the header is
    held where there is one.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    berv: bool = True


class Fitted(NamedTuple):
    """Fits of n spectra. names: of the parameters. held: (n, parameter) bool, which were not looked for."""

    names: tuple[str, ...]
    solution: Solution
    held: np.ndarray


class Fitter:
    """Fits spectra that lie on a grid, in batches, on a device.

    model: of stars; default is the packaged one. Raises ConfigError for a grid that the model does not fill at all
    velocities, and for held values that are no parameters, or out of range.
    """

    def __init__(
        self,
        grid: Grid = GRID,
        model: StellarModel | None = None,
        held: Held = Held(),
        settings: Settings = Settings(),  # noqa: B008
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.model = model if model is not None else PackagedModel(device, dtype)
        _check_room(grid, self.model.grid)
        self.grid, self.held, self.settings, self.dtype = grid, held, settings, dtype
        self.device = torch.device(device)
        self.observation = Observation(self.model, grid, device, dtype)
        self.names = self.observation.names
        self.ranges = {**self.model.ranges, **RANGES}
        for name, value in held.values.items():
            if name not in self.ranges:
                raise ConfigError(f"{name} is no parameter of a fit. Hold one of {', '.join(self.names)}.")
            low, high = self.ranges[name]
            if not low <= value <= high:
                raise ConfigError(f"{name} is held at {value:g}, expected {low:g}..{high:g}. Choose another value.")
        self._start = Start(self.model, grid)

    def fit(
        self,
        flux: np.ndarray,
        sigma: np.ndarray,
        berv_kms: Sequence[float],
        starts: Sequence[Mapping[str, float]] | None = None,
    ) -> Fitted:
        """Fit n spectra.

        flux, sigma: (n, pixel) in medians; sigma NaN where there are no data. berv_kms: (n,) of headers, NaN where not
        known. starts: where each begins, by parameter; what it lacks is found by cross-correlation.
        """
        usable = np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0) & self.grid.valid
        flux = np.where(usable, flux, 1.0)
        berv = [berv_of(self.grid.wave_aa, one, float(known)) for one, known in zip(flux, berv_kms, strict=True)]
        begins = [self._begin(*each) for each in zip(flux, usable, berv, starts or [{}] * len(flux), strict=True)]
        known = np.isfinite(np.asarray(berv_kms, np.float64)) & self.held.berv
        held = np.zeros((len(flux), len(self.names)), bool)
        held[:, [self.names.index(name) for name in self.held.values]] = True
        held[:, self.names.index("berv")] |= known
        parts, order = [], []
        for moving in (known, ~known):  # a batch moves the same parameters
            rows = np.flatnonzero(moving)
            if len(rows):
                parts.append(
                    self._solve(flux[rows], sigma[rows], usable[rows], [begins[row] for row in rows], held[rows[0]])
                )
                order.append(rows)
        back = torch.as_tensor(np.argsort(np.concatenate(order)), device=self.device)
        solution = Solution(*(torch.cat(fields)[back] for fields in zip(*parts, strict=True)))
        return Fitted(self.names, solution, held)

    def _solve(
        self, flux: np.ndarray, sigma: np.ndarray, usable: np.ndarray, begins: list[list[float]], held: np.ndarray
    ) -> Solution:
        def numbers(values: object) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float64, device=self.device)

        low, high = (numbers([self.ranges[name][end] for name in self.names]) for end in (0, 1))
        solver = Solver(self.observation, self.settings, torch.as_tensor(~held, device=self.device), low, high)
        noise = np.where(usable, sigma, 1.0)
        data = Data(
            torch.as_tensor(flux, dtype=self.dtype, device=self.device),
            torch.as_tensor(noise, dtype=self.dtype, device=self.device),
            torch.as_tensor(np.hypot(noise, self.settings.floor), dtype=self.dtype, device=self.device),
            torch.as_tensor(usable, device=self.device),
        )
        return solver.solve(data, numbers(begins))

    def _begin(self, flux: np.ndarray, usable: np.ndarray, berv: float, given: Mapping[str, float]) -> list[float]:
        """Parameters that a fit begins with, in their order; what is given takes the place of what is found."""
        found = {} if {"rv", *self.model.labels} <= given.keys() else self._start.of(flux, usable)
        begin = found | USUAL | {"berv": berv} | dict(given) | dict(self.held.values)
        return [begin[name] for name in self.names]


def fitting_grid(grid: Grid | None) -> Grid:
    """What of a network's grid is fitted: all of it where the packaged model fills it, else that model's own."""
    if grid is None:
        return GRID
    return grid if GRID.start <= grid.start and grid.stop <= GRID.stop else GRID


def _check_room(grid: Grid, source: Grid) -> None:
    room_aa = grid.wave_aa[-1] * RANGES["rv"][1] / C_KMS
    low, high = grid.wave_aa[0] - source.wave_aa[0], source.wave_aa[-1] - grid.wave_aa[-1]
    if not min(low, high) >= math.floor(room_aa):
        raise ConfigError(
            f"grid {grid.name} spans {grid.wave_aa[0]:.2f}-{grid.wave_aa[-1]:.2f} Å, and at {RANGES['rv'][1]:g} km/s"
            f" the stellar model should reach {room_aa:.1f} Å further, but it spans {source.wave_aa[0]:.2f}-"
            f"{source.wave_aa[-1]:.2f} Å. Fit a narrower grid."
        )
