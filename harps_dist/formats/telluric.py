"""Telluric lines in a spectrum: they stand still in the observer's frame, and so tell medium and frame of wavelengths.

The packaged lines of oxygen's γ band and of water about it (`assets/README.md`) are compared with the spectrum at all
velocities. Wavelengths in vacuum show them 83 km/s redward of air, a barycentric frame by the barycentric velocity.

Tested in tests/unit/test_telluric.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from harps_dist.spectra.medium import air_to_vacuum
from harps_dist.spectra.quantities import C_KMS

ASSET = Path(__file__).parent / "assets" / "telluric_5950_6360.npz"
STEP_AA = 0.01  # of the packaged lines
MEDIUM_KMS = float((air_to_vacuum(np.array(6300.0)) / 6300.0 - 1.0) * C_KMS)  # 82.9; to 0.1 km/s the same over the band
ACCURACY_KMS = 1.5  # the genuine files agree with their barycentric velocities to 0.5

_BAND_AA = 6270.0, 6335.0
_LEAST_AA = 35.0  # of the band that a spectrum must have
_LARGEST_KMS = 120.0  # 83 of vacuum and 33 of the barycentric velocity, and a little room
_STEP_KMS = 0.5
_AIRMASS, _WATER_MM = 1.3, 2.0  # of a usual night; only the places of the lines matter
_SMOOTH_KMS, _BROAD_KMS = 2.0, 60.0  # narrower is noise, broader is continuum
_DEEPEST = 0.3  # a star's deep lines must not outweigh the band
_LEAST_CORRELATION, _LEAST_LEAD = 0.2, 1.4  # genuine spectra: 0.25 and 1.45 at least; one of 200 without lines has it
_ROUNDING = 1e-9  # of a sum of squares, below which nothing varies
_APART_KMS = 6.0  # what is nearer belongs to the peak


def telluric_shift(wave_aa: np.ndarray, flux: np.ndarray) -> float:
    """How far telluric lines stand redward of their places in air in the observer's frame [km/s].

    wave_aa: (n,) increasing [Å]; flux: (n,), any unit, NaN where missing. NaN where no velocity leads without doubt, as
    for noise or a spectrum without 6270-6335 Å.
    """
    near = slice(*np.searchsorted(wave_aa, _BAND_AA))
    finite = np.isfinite(flux[near])
    wave_aa, flux = wave_aa[near][finite], flux[near][finite].astype(np.float64)
    if not len(wave_aa) or wave_aa[-1] - wave_aa[0] < _LEAST_AA:
        return math.nan
    log_wave = np.arange(math.log(wave_aa[0]), math.log(wave_aa[-1]), _STEP_KMS / C_KMS)
    reach = round(_LARGEST_KMS / _STEP_KMS)
    seen = _depth(np.interp(log_wave, np.log(wave_aa), flux))
    lines = _depth(_transmission(np.exp(log_wave)))[reach:-reach]
    lines -= lines.mean()
    sums, squares = (np.cumsum(np.pad(values, (1, 0))) for values in (seen, seen**2))
    mean, square = ((total[len(lines) :] - total[: -len(lines)]) / len(lines) for total in (sums, squares))
    variance = square - mean**2
    scatter = np.sqrt(np.where(variance > _ROUNDING * square, variance, 0)) * lines.std()
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(scatter > 0, np.correlate(seen, lines, "valid") / len(lines) / scatter, 0.0)
    velocity = (np.arange(len(correlation)) - reach) * _STEP_KMS
    best = int(correlation.argmax())
    next_best = correlation[np.abs(velocity - velocity[best]) > _APART_KMS].max()
    certain = correlation[best] >= max(_LEAST_CORRELATION, _LEAST_LEAD * next_best)
    return float(velocity[best]) if certain else math.nan


def packaged_depths() -> tuple[float, float, np.ndarray, np.ndarray]:
    """First air wavelength and step [Å], and zenith optical depths there, (n,) each: of water per mm, and of oxygen."""
    with np.load(ASSET) as asset:
        return float(asset["wave0_aa"]), STEP_AA, asset["h2o_depth"], asset["o2_depth"]


def _transmission(wave_aa: np.ndarray) -> np.ndarray:
    start_aa, step_aa, h2o_depth, o2_depth = packaged_depths()
    depth = _WATER_MM * h2o_depth + o2_depth
    return np.exp(-_AIRMASS * np.interp(wave_aa, start_aa + step_aa * np.arange(depth.size), depth))


def _depth(flux: np.ndarray) -> np.ndarray:
    """Depth below the mean of the neighbourhood, within _DEEPEST, smoothed."""
    broad = _mean(flux, _BROAD_KMS)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(broad > 0, 1 - flux / broad, 0.0)
    return _mean(depth.clip(-_DEEPEST, _DEEPEST), _SMOOTH_KMS)


def _mean(values: np.ndarray, width_kms: float) -> np.ndarray:
    """Running mean over a width, ends held."""
    half = round(width_kms / _STEP_KMS / 2)
    total = np.cumsum(np.pad(values, (half + 1, half), mode="edge"))
    return (total[2 * half + 1 :] - total[: -2 * half - 1]) / (2 * half + 1)
