"""Where a fit begins: what a network reads, or the best of a few model spectra at any velocity.

Tested in tests/unit/test_fit.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from harps_dist.fitting.stellar import StellarModel
from harps_dist.formats.telluric import telluric_shift
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.microturbulence import realistic_vmic

LARGEST_KMS = 200.0  # of a star's velocity
STEP_KMS = 1.0
BEFORE_TELLURICS_AA = 6270.0  # lines beyond stand still in another frame
TEMPLATES = [{"teff": teff, "logg": 4.4, "mh": -0.1} for teff in (4300.0, 5000.0, 5700.0, 6400.0, 7400.0)]
USUAL = {"variance": 4.0, "airmass": 1.3, "pwv": 3.0}  # until the fit knows better
_DEEPEST = 0.5  # deep lines must not outweigh the others
_BROAD_KMS = 300.0  # what is broader is continuum


class _Template(NamedTuple):
    labels: dict[str, float]
    lines: np.ndarray  # (velocity step,) depths about their mean


class Start:
    """Finds where to begin on a grid, by cross-correlation with templates over ±200 km/s."""

    def __init__(self, model: StellarModel, grid: Grid):
        self.model, self.grid = model, grid
        low_aa = model.grid.wave_aa[0]
        high_aa = min(model.grid.wave_aa[-1], BEFORE_TELLURICS_AA)
        self._log_wave = np.arange(math.log(low_aa), math.log(high_aa), STEP_KMS / C_KMS)
        inside = np.exp(self._log_wave)
        last_aa = min(grid.wave_aa[-1], BEFORE_TELLURICS_AA)
        self._seen = (inside >= grid.wave_aa[0]) & (inside <= last_aa)
        self._templates = [self._template(labels) for labels in TEMPLATES]

    def _template(self, labels: dict[str, float]) -> _Template:
        labels = labels | {"vmic": realistic_vmic(**{f"{k}_k" if k == "teff" else k: v for k, v in labels.items()})}
        held = [min(max(labels[name], low), high) for name, (low, high) in self.model.ranges.items()]
        asked = torch.tensor([held], dtype=torch.float64)
        log_flux = self.model.log_flux(asked)[0].double().cpu().numpy()
        flux = np.exp(np.interp(self._log_wave, np.log(self.model.grid.wave_aa), log_flux))
        return _Template(dict(zip(self.model.ranges, held, strict=True)), _lines(flux))

    def of(self, flux: np.ndarray, usable: np.ndarray) -> dict[str, float]:
        """Labels and rv [km/s] of one spectrum: flux (pixel,) in medians, usable (pixel,) bool."""
        seen = np.interp(self._log_wave[self._seen], np.log(self.grid.wave_aa[usable]), flux[usable])
        lines = np.zeros(len(self._log_wave))
        lines[self._seen] = _lines(seen)
        reach = round(LARGEST_KMS / STEP_KMS)
        length = 2 ** math.ceil(math.log2(len(lines) + 2 * reach))
        of_star, of_seen = np.fft.rfft(lines, length), np.fft.rfft(self._seen.astype(np.float64), length)
        best: tuple[float, dict[str, float], int] = (-math.inf, {}, 0)
        for template in self._templates:
            product, energy = (
                np.fft.irfft(one * np.fft.rfft(other, length).conj(), length)
                for one, other in ((of_star, template.lines), (of_seen, template.lines**2))
            )
            correlation = product / np.sqrt(energy.clip(1e-6 * energy.max()))  # as least squares of a scaled template
            correlation = np.concatenate([correlation[-reach:], correlation[: reach + 1]])
            peak = int(correlation.argmax())
            best = max(best, (float(correlation[peak]), template.labels, peak - reach), key=lambda found: found[0])
        return best[1] | {"rv": C_KMS * math.expm1(best[2] * STEP_KMS / C_KMS)}


def _lines(flux: np.ndarray) -> np.ndarray:
    """Depths below the neighbourhood, the deepest held, about their mean."""
    half = round(_BROAD_KMS / STEP_KMS / 2)
    total = np.cumsum(np.pad(flux, (half + 1, half), mode="edge"))
    level = (total[2 * half + 1 :] - total[: -2 * half - 1]) / (2 * half + 1)
    depths = np.clip(1 - flux / np.where(level > 0, level, np.inf), -_DEEPEST, _DEEPEST)
    return depths - depths.mean()


def berv_of(wave_aa: np.ndarray, flux: np.ndarray, header_kms: float) -> float:
    """Barycentric velocity [km/s] of the header, else of the telluric lines, else 0. wave_aa, flux: (pixel,)."""
    if math.isfinite(header_kms):
        return header_kms
    found = telluric_shift(wave_aa, flux)
    return found if math.isfinite(found) else 0.0
