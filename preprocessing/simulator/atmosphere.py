"""Transmission of the Earth's atmosphere above La Silla, at the resolution of HARPS, in air wavelengths.

Continuum: Rayleigh scattering and the Chappuis band of ozone, closed forms. Lines: water vapour and oxygen,
zenith optical depths summed from a line list through a layered atmosphere (`line_depth`). The packaged asset
holds them for 5950-6360 Å; it was computed for this package from the HITRAN 2020 parameters (Gordon et al.
2022, JQSRT 277, 107949) with `Atmosphere.from_line_lists(...).save(...)`.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from harps_dist.files import atomic_write
from harps_dist.formats.hdus import BEGINS, open_hdus
from harps_dist.formats.telluric import ASSET, STEP_AA
from harps_dist.intake import read_file
from harps_dist.spectra.exact import exp, gaussian_blur
from harps_dist.spectra.medium import vacuum_to_air
from harps_dist.spectra.spline import linear

MAX_LIST_BYTES = 2**30  # of a list of lines
RESOLUTION = 115_000.0
PRESSURE_ATM = 0.76  # La Silla, 2400 m
H2O_PER_MM = 3.343e21  # molecules / cm² in 1 mm of precipitable water
O2_COLUMN = 0.2095 * 2.15e25 * PRESSURE_ATM  # molecules / cm² at the zenith


@dataclass(frozen=True, eq=False)
class Atmosphere:
    """Zenith optical depths of the telluric lines on a uniform air grid; (n,) each, unbroadened."""

    wave_aa: np.ndarray
    h2o_depth: np.ndarray  # per mm of precipitable water
    o2_depth: np.ndarray

    @classmethod
    @cache
    def packaged(cls) -> Atmosphere:
        """The packaged 5950-6360 Å; the same object every time."""
        with np.load(ASSET) as asset:
            wave_aa = float(asset["wave0_aa"]) + STEP_AA * np.arange(asset["h2o_depth"].size)
            return cls(wave_aa, asset["h2o_depth"], asset["o2_depth"])

    @classmethod
    def from_line_lists(cls, h2o: Path, o2: Path, low_aa: float, high_aa: float) -> Atmosphere:
        """Sum HITRAN lines over [low_aa, high_aa], any range the lists cover.

        h2o, o2: FITS; extension 1 with columns wave_number [1/cm], Intensity [cm/molecule at 296 K],
        gamma_air [1/cm/atm], N, delta [1/cm/atm], Epp [1/cm]; extension 2 with Temperature [K] and Qt.
        """
        wave_aa = low_aa + STEP_AA * np.arange(round((high_aa - low_aa) / STEP_AA) + 1)
        h2o_depth = H2O_PER_MM * line_depth(wave_aa, h2o, mass_u=18.0, scale_height_km=2.0)
        o2_depth = O2_COLUMN * line_depth(wave_aa, o2, mass_u=32.0, scale_height_km=8.0)
        return cls(wave_aa, h2o_depth.astype(np.float32), o2_depth.astype(np.float32))

    def save(self, path: Path) -> None:
        """Write the form `packaged` reads."""
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.savez_compressed(
                file,
                wave0_aa=self.wave_aa[0],
                h2o_depth=self.h2o_depth,
                o2_depth=self.o2_depth,
                origin="computed from HITRAN 2020 line parameters by preprocessing/simulator/atmosphere.py",
            )

    def transmission(self, wave_aa: np.ndarray, airmass: float, pwv_mm: float) -> np.ndarray:
        """Transmission at air wavelengths [Å] in the observer's frame, any shape; in (0, 1).

        pwv_mm: precipitable water at the zenith. Lines follow T^airmass for O2, T^(airmass pwv) for H2O, then
        are broadened to R = 115,000. Beyond the range of `self.wave_aa` only the continuum absorbs.
        """
        lines = exp(-airmass * (pwv_mm * self.h2o_depth + self.o2_depth))
        middle_aa = (self.wave_aa[0] + self.wave_aa[-1]) / 2
        lines = gaussian_blur(lines, middle_aa / RESOLUTION / 2.3548 / STEP_AA)
        continuum = exp(-airmass * (rayleigh_depth(wave_aa) + ozone_depth(wave_aa)))
        inside = (wave_aa >= self.wave_aa[0]) & (wave_aa <= self.wave_aa[-1])
        return continuum * np.where(inside, linear(self.wave_aa, lines, wave_aa), 1.0)


def rayleigh_depth(wave_aa: np.ndarray) -> np.ndarray:
    """Zenith optical depth of Rayleigh scattering above La Silla (Hansen & Travis 1974)."""
    inverse = (1e4 / np.asarray(wave_aa)) ** 2  # 1/µm²
    return PRESSURE_ATM * 0.008569 * inverse**2 * (1 + 0.0113 * inverse + 0.00013 * inverse**2)


def ozone_depth(wave_aa: np.ndarray, dobson: float = 260.0) -> np.ndarray:
    """Zenith optical depth of ozone's Chappuis band, a Gaussian of its peak and width (Serdyuchenko 2014)."""
    column = dobson * 2.687e16  # molecules / cm²
    return column * 4.9e-21 * exp(-0.5 * ((np.asarray(wave_aa) - 6000.0) / 510.0) ** 2)


def line_depth(wave_aa: np.ndarray, lines: Path, mass_u: float, scale_height_km: float) -> np.ndarray:
    """Optical depth of one molecule per cm², on a uniform air grid [Å], (n,) float64.

    The molecules decay with height by `scale_height_km`, pressure by 8 km, temperature by 6.5 K a km down to
    217 K; ten layers of equal column, Voigt profiles, intensities scaled by the list's own partition sums.
    """
    from scipy.special import wofz

    with open_hdus(read_file(lines, MAX_LIST_BYTES, BEGINS), count=3, most=MAX_LIST_BYTES) as hdus:
        table, partition = np.asarray(hdus[1].data), np.asarray(hdus[2].data)
    nu, intensity, gamma_air = table["wave_number"], table["Intensity"], table["gamma_air"]
    width, shift, lower = table["N"], table["delta"], table["Epp"]
    kept = np.flatnonzero((nu > 1e8 / (wave_aa[-1] + 20)) & (nu < 1e8 / (wave_aa[0] - 20)))

    def partition_sum(kelvin: float) -> float:
        return float(np.interp(kelvin, partition["Temperature"], partition["Qt"]))

    layers = 10
    depth = np.zeros(wave_aa.size)
    wing = round(4.0 / STEP_AA)
    for layer in range(layers):
        height_km = -scale_height_km * np.log((layer + 0.5) / layers)
        pressure = PRESSURE_ATM * np.exp(-height_km / 8.0)
        kelvin = max(217.0, 285.0 - 6.5 * height_km)
        c2 = 1.4387769  # cm K
        boltzmann = np.exp(-c2 * lower * (1 / kelvin - 1 / 296.0))
        stimulated = -np.expm1(-c2 * nu / kelvin) / -np.expm1(-c2 * nu / 296.0)
        strength = intensity * partition_sum(296.0) / partition_sum(kelvin) * boltzmann * stimulated
        lorentz = gamma_air * pressure * (296.0 / kelvin) ** width
        doppler = nu * 4.301e-7 * np.sqrt(kelvin / mass_u)  # 1/e half-width
        centre = nu + shift * pressure
        for k in kept:
            air_aa = float(vacuum_to_air(1e8 / centre[k]))
            middle = round((air_aa - wave_aa[0]) / STEP_AA)
            near = slice(max(0, middle - wing), max(0, middle + wing + 1))
            offset = (air_aa - wave_aa[near]) / air_aa * centre[k]  # 1/cm; the air index is constant over a line
            voigt = wofz((offset + 1j * lorentz[k]) / doppler[k]).real / (doppler[k] * np.sqrt(np.pi))
            depth[near] += strength[k] * voigt / layers
    return depth
