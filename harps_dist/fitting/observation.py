"""A star's spectrum as HARPS records it, and its derivatives by everything that a fit looks for.

A star's flux is broadened and shifted in velocity: its model is brought onto a lattice of log wavelength, where both
are products in Fourier space, and from there onto the pixels of the spectra. Tellurics multiply it. Cubic B-splines
carry it between the lattices.

Tested in tests/unit/test_fit.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.fitting.stellar import StellarModel
from harps_dist.formats.telluric import packaged_depths
from harps_dist.spectra.doppler import C_KMS, bspline_coefficients
from harps_dist.spectra.grid import Grid

OF_OBSERVATION = ("variance", "rv", "berv", "airmass", "pwv")
ROOM = 64  # pixels on either side, so that tellurics are broadened at the ends too
PAD = 600  # pixels behind the star's spectrum, which lead from its last one back to the first
STEPS = {"teff": 20.0, "logg": 0.02, "mh": 0.02, "vmic": 0.05}  # for derivatives; what they miss is of second order


class Rendered(NamedTuple):
    """Simulated spectra without continuum, (batch, pixel), and derivatives, (batch, parameter, pixel)."""

    flux: Tensor
    derivatives: Tensor


class Observation:
    """Simulated observations on a grid.

    names: of all parameters in their order: the stellar model's labels, then `OF_OBSERVATION`: the variance [km²/s²] of
    a Gaussian that broadens the star's lines, its velocity rv and that of the Earth, berv [km/s], airmass and
    precipitable water [mm] of the tellurics.
    """

    def __init__(self, model: StellarModel, grid: Grid, device: torch.device | str, dtype: torch.dtype):
        self.model, self.grid, self.device, self.dtype = model, grid, torch.device(device), dtype
        self.names = (*model.labels, *OF_OBSERVATION)
        source = model.grid
        middle_aa = float(np.median(grid.wave_aa))
        self.step_kms = C_KMS * grid.step_aa / middle_aa
        first, last = source.wave_aa[0], source.wave_aa[-1]
        self._count = int(math.log(last / first) / (self.step_kms / C_KMS)) + 1
        at_aa = first * np.exp(np.arange(self._count) * self.step_kms / C_KMS)
        self._onto_log = self._taps((at_aa - first) / source.step_aa, source.length)
        self._length = _fast_length(self._count + PAD)
        onto = np.log(grid.wave_aa / first) / (self.step_kms / C_KMS)
        self._onto_grid = self._taps(onto, self._length)
        frequency = torch.fft.rfftfreq(self._length, dtype=torch.float64)
        self._square = (-2 * math.pi**2 * frequency**2 / self.step_kms**2).to(device, dtype)
        self._turn = (-2 * math.pi * frequency / self.step_kms).to(device, torch.float64)
        self._prefilter = (6 / (4 + 2 * torch.cos(2 * math.pi * frequency))).to(device, dtype)
        self._ramp = torch.linspace(0, 1, self._length - self._count + 2, dtype=dtype, device=device)[1:-1]
        self._telluric(middle_aa)

    def _telluric(self, middle_aa: float) -> None:
        self._lines_start, self._lines_step, *depths = packaged_depths()
        self._depths = bspline_coefficients(torch.as_tensor(np.stack(depths), dtype=torch.float64)).to(
            self.device, self.dtype
        )
        sigma_px = middle_aa / self.grid.instrument.resolution / (2 * math.sqrt(2 * math.log(2))) / self.grid.step_aa
        length = _fast_length(self.grid.length + 2 * ROOM)
        wave_aa = self.grid.wave_aa[0] + self.grid.step_aa * (np.arange(length) - ROOM)
        self._wave = torch.as_tensor(wave_aa, device=self.device)
        frequency = torch.fft.rfftfreq(length, dtype=torch.float64)
        self._sharpness = torch.exp(-2 * math.pi**2 * frequency**2 * sigma_px**2).to(self.device, self.dtype)
        self._slope = (2 * math.pi * frequency).to(self.device, self.dtype)

    def _taps(self, at: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Taps of cubic B-splines: (place, 4) indices of coefficients, mirrored at the ends, and their weights."""
        whole = np.floor(at).astype(np.int64)
        weights = _spline_weights(torch.as_tensor(at - whole))
        index = np.abs(whole[:, None] + np.arange(-1, 3))
        index = np.where(index >= length, 2 * (length - 1) - index, index)
        return (
            torch.as_tensor(index, device=self.device),
            torch.stack(weights, dim=1).to(self.device, self.dtype),
        )

    @staticmethod
    def _values(coefficients: Tensor, taps: tuple[Tensor, Tensor]) -> Tensor:
        """Splines (..., place) of coefficients (..., length), four of all splines read together."""
        index, weights = taps
        together = coefficients.flatten(0, -2).mT.contiguous()
        values = torch.nn.functional.embedding_bag(index, together, mode="sum", per_sample_weights=weights)
        return values.mT.contiguous().unflatten(0, coefficients.shape[:-1])

    def star(self, labels: Tensor, derivatives: bool = True) -> Tensor:
        """Spectra in Fourier space, neither broadened nor shifted, (batch, 1 + label, frequency) complex.

        The first is the flux, the others are its derivatives by the labels. labels: (batch, label) float64.
        """
        asked = [labels]
        steps = torch.tensor([STEPS[name] for name in self.model.labels], dtype=labels.dtype, device=labels.device)
        for number, name in enumerate(self.model.labels if derivatives else ()):
            inward = torch.where(labels[:, number] + steps[number] > self.model.ranges[name][1], -1.0, 1.0)
            moved = labels.clone()
            moved[:, number] += inward * steps[number]
            asked.append(moved)
        count, batch = len(asked), len(labels)
        log_flux = self.model.log_flux(torch.cat(asked))
        log_flux = self._values(bspline_coefficients(log_flux), self._onto_log).unflatten(0, (count, batch))
        flux = torch.exp(log_flux[0])
        parts = [flux]
        for number, moved in enumerate(asked[1:]):
            step = (moved - labels)[:, number, None].to(self.dtype)
            parts.append(flux * ((log_flux[1 + number] - log_flux[0]) / step))
        together = torch.stack(parts, dim=1)
        first, last = together[..., :1], together[..., -1:]
        return torch.fft.rfft(torch.cat([together, last + (first - last) * self._ramp], dim=-1))

    def render(self, parameters: Tensor, derivatives: bool = True) -> Rendered:
        """Spectra of parameters (batch, len(names)) float64, and all their derivatives, or none."""
        labels = len(self.model.labels)
        variance, rv, berv, airmass, pwv = parameters[:, labels:].unbind(1)
        star = self.star(parameters[:, :labels], derivatives)
        # a receding star's lines lie at longer wavelengths, further up the lattice
        shift = C_KMS * torch.log1p(rv / C_KMS)
        angle = torch.remainder(shift[:, None] * self._turn, 2 * math.pi).to(self.dtype)
        size = self._prefilter * torch.exp(self._square * variance[:, None].to(self.dtype))
        star = star * torch.polar(size, angle)[:, None]
        if derivatives:
            by_variance = star[:, :1] * self._square
            turn = self._turn.to(self.dtype) / (1 + rv[:, None] / C_KMS).to(self.dtype)
            by_rv = star[:, :1] * torch.complex(torch.zeros_like(turn), turn)[:, None]
            star = torch.cat([star, by_variance, by_rv], dim=1)
        star = self._values(torch.fft.irfft(star, n=self._length), self._onto_grid)
        air, of_air = self.transmission(berv, airmass, pwv, derivatives)
        flux = star[:, 0] * air
        if not derivatives:
            return Rendered(flux, flux[:, None][:, :0])
        return Rendered(flux, torch.cat([star[:, 1:] * air[:, None], of_air * star[:, :1]], dim=1))

    def transmission(
        self, berv: Tensor, airmass: Tensor, pwv: Tensor, derivatives: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Transmission of the air in the barycentric frame (batch, pixel), and derivatives by berv, airmass and pwv."""
        place = self._wave / (1 + berv[:, None] / C_KMS)
        place = (place - self._lines_start) / self._lines_step
        whole = place.floor().long().clamp(1, self._depths.shape[1] - 3)
        weights = _spline_weights((place - whole).to(self.dtype))
        h2o, o2 = (sum(depth[whole + k] * weight for k, weight in enumerate(weights, -1)) for depth in self._depths)
        airmass, pwv = airmass[:, None].to(self.dtype), pwv[:, None].to(self.dtype)
        depth = pwv * h2o + o2
        parts = torch.exp(-airmass * depth)[:, None]
        if derivatives:
            parts = torch.cat([parts, -parts * depth[:, None], -parts * (airmass * h2o)[:, None]], dim=1)
        seen = torch.fft.rfft(parts) * self._sharpness
        if derivatives:
            slope = seen[:, :1] * torch.complex(torch.zeros_like(self._slope), self._slope)
            seen = torch.cat([seen[:, :1], slope, seen[:, 1:]], dim=1)
        inside = slice(ROOM, ROOM + self.grid.length)
        seen = torch.fft.irfft(seen, n=len(self._wave))[..., inside]
        if derivatives:  # lines move by λ / c for a km/s
            seen[:, 1] *= (-self._wave[inside] / C_KMS / self.grid.step_aa).to(self.dtype)
        return seen[:, 0], seen[:, 1:]


def _spline_weights(t: Tensor) -> list[Tensor]:
    """Weights of the four coefficients about a place, a share t of the way from the second to the third."""
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    return [weight / 6 for weight in weights]


def _fast_length(least: int) -> int:
    """The next even length that is a product of 2, 3 and 5."""
    length = least + least % 2
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2
