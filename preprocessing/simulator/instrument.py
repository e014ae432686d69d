"""A HARPS-like spectrograph seen the way ESO's exposure time calculator (ETC 2.0) reports it.

The order layout, the blaze and the constant dispersion of an order are those that public ETC-derived HARPS
data show; efficiency, sky and detector are round numbers, scaled to the S/N of the HARPS manual. Everything
is SIMULATED by this package; it is no product of ESO.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harps_dist.formats.sed import interpolate_sed
from harps_dist.spectra.exact import exp, mean, power, sin_cos
from harps_dist.spectra.instrument import HARPS
from preprocessing.simulator.atmosphere import Atmosphere

GRATING_AA = HARPS.order_centre_aa
GAP_ORDER = 115  # falls between the two detectors
ORDERS = HARPS.orders
PIXELS = 4096
RELATIVE_SPAN = 0.01121  # an order's length over its central wavelength; 12 % overlap at order 100, 30 % at 116

PHOTON_ERG_AA = 1.98645e-8  # h c
VEGA_V = 3.63e-9  # erg/s/cm²/Å at V = 0
COLLECTING_CM2 = 8.86e4  # 3.57 m, less the secondary mirror
FIBRE_ARCSEC = 1.0
SEEING_ARCSEC = 1.0  # at the zenith
# of telescope, spectrograph and CCD at 6200 Å, for S/N 110 at 5500 Å with V = 6, 60 s, airmass 1.2
EFFICIENCY = 0.1182
NSPAT, NSPEC = 4, 1  # pixels summed across and along the order
READOUT_E = 6.0  # electrons a pixel
DARK_E_S = {"blue": 1.4e-4, "red": 2.8e-4}  # electrons a second and pixel


@dataclass(frozen=True, eq=False)
class OrderOutput:
    """One echelle order of an ETC run; (n,) arrays, one value an extracted pixel, wavelength increasing.

    Paper, App. A: T = target / sed, h = blaze · dispersion / (largest dispersion of all orders),
    n = nspat · nspec · ndit · (dit · dark + ron²), B = sky. Electrons are those of the whole exposure.
    """

    order: int
    detector: str  # 'blue' (m > 115) or 'red'
    wave_aa: np.ndarray  # air, observer's (topocentric) frame
    sed: np.ndarray  # erg/s/cm²/Å above the atmosphere, scaled to the magnitude
    target: np.ndarray  # electrons a pixel
    sky: np.ndarray  # electrons a pixel
    blaze: np.ndarray  # 0..1
    dispersion_m_per_px: np.ndarray
    atmosphere: np.ndarray  # transmission, 0..1
    fibinj: np.ndarray  # share of the seeing disc that enters the fibre, 0..1
    throughput_total: np.ndarray  # all of them with telescope, spectrograph and detector, 0..1
    snr: np.ndarray  # a pixel
    nspat: int
    nspec: int
    ndit: int
    dit_s: float
    dark: float  # electrons a second and detector pixel
    ron: float  # electrons a detector pixel


def order_wave_aa(order: int) -> np.ndarray:
    """(PIXELS,) air wavelengths of an order's pixels [Å]; the dispersion is constant along the order."""
    pixel = (np.arange(PIXELS) - (PIXELS - 1) / 2) / PIXELS
    return GRATING_AA / order * (1 + RELATIVE_SPAN * pixel)


def orders_covering(low_aa: float, high_aa: float) -> tuple[int, ...]:
    """The orders with pixels inside [low_aa, high_aa], as numbered, from blue to red."""
    half = RELATIVE_SPAN / 2
    return tuple(m for m in ORDERS if GRATING_AA / m * (1 + half) > low_aa and GRATING_AA / m * (1 - half) < high_aa)


def blaze(order: int, wave_aa: np.ndarray) -> np.ndarray:
    """Blaze function sinc²(m (λ - λ_c) / λ), 1 at the centre of the order."""
    phase = np.pi * (order * (wave_aa - GRATING_AA / order) / wave_aa)
    phase = np.where(phase == 0, 1e-20, phase)
    return (sin_cos(phase)[0] / phase) ** 2


def efficiency(wave_aa: np.ndarray) -> np.ndarray:
    """Telescope, spectrograph and detector without blaze, fibre and atmosphere."""
    return EFFICIENCY * exp(-0.5 * ((np.asarray(wave_aa) - 6200.0) / 1800.0) ** 2)


def fibre_injection(airmass: float) -> float:
    """Share of a Gaussian seeing disc, growing as airmass^0.6, inside the fibre."""
    relative = FIBRE_ARCSEC / (SEEING_ARCSEC * power(airmass, 0.6))
    return 1 - float(power(2.0, -relative * relative))


def scale_to_magnitude(wave_aa: np.ndarray, flux: np.ndarray, mag: float) -> np.ndarray:
    """Scale an SED in any unit to erg/s/cm²/Å for a V magnitude.

    Its mean over 5450-5550 Å becomes Vega's at that magnitude, or its mean over its own range where it does
    not reach there (7 % in flux for a Sun-like star at 6150 Å).
    """
    inside = (wave_aa >= 5450) & (wave_aa <= 5550)
    covered = wave_aa[0] <= 5450 and wave_aa[-1] >= 5550
    reference = mean(flux[inside] if covered else flux)
    return flux * (VEGA_V * float(power(10, -0.4 * mag)) / reference)


def observe(
    sed_wave: np.ndarray,
    sed_flux: np.ndarray,
    airmass: float,
    pwv_mm: float,
    mag: float,
    exptime_s: float,
    orders: Sequence[int] = ORDERS,
    fli: float = 0.0,
    ndit: int = 1,
    atmosphere: Atmosphere | None = None,
) -> list[OrderOutput]:
    """Expected, noise-free signals of one exposure, order by order.

    sed_wave: (k,) air wavelengths [Å] in the observer's frame, increasing: multiply by (1 + v/c) for a star
    that moves. sed_flux: (k,) any unit; held at its end values beyond its ends. pwv_mm: water vapour at the
    zenith. mag: V (`scale_to_magnitude`). exptime_s: sum over the ndit integrations. fli: lit share of the
    moon, 0..1.
    atmosphere: telluric lines, by default those packaged for 5950-6360 Å.
    """
    atmosphere = atmosphere or Atmosphere.packaged()
    wave = np.concatenate([order_wave_aa(m) for m in orders])
    sed = interpolate_sed(sed_wave, scale_to_magnitude(sed_wave, sed_flux, mag), wave)
    transmission = atmosphere.transmission(wave, airmass, pwv_mm)
    blazes = np.concatenate([blaze(m, order_wave_aa(m)) for m in orders])
    dispersion_aa = np.repeat([RELATIVE_SPAN * GRATING_AA / m / PIXELS for m in orders], PIXELS)
    injected = fibre_injection(airmass)

    detected = efficiency(wave) * transmission * blazes
    electrons = COLLECTING_CM2 * exptime_s * dispersion_aa * wave / PHOTON_ERG_AA * detected
    target = electrons * injected * sed
    sky_mag = 21.8 - 3.5 * fli  # V, a square arcsecond
    sky = electrons * VEGA_V * float(power(10, -0.4 * sky_mag)) * np.pi / 4 * FIBRE_ARCSEC**2

    outputs = []
    for k, m in enumerate(orders):
        part = slice(k * PIXELS, (k + 1) * PIXELS)
        detector = "blue" if m > GAP_ORDER else "red"
        dark, dit_s = DARK_E_S[detector], exptime_s / ndit
        readout = NSPAT * NSPEC * ndit * (dit_s * dark + READOUT_E**2)
        outputs.append(
            OrderOutput(
                order=m,
                detector=detector,
                wave_aa=wave[part],
                sed=sed[part],
                target=target[part],
                sky=sky[part],
                blaze=blazes[part],
                dispersion_m_per_px=dispersion_aa[part] * 1e-10,
                atmosphere=transmission[part],
                fibinj=np.full(PIXELS, injected),
                throughput_total=detected[part] * injected,
                snr=target[part] / np.sqrt(target[part] + sky[part] + readout),
                nspat=NSPAT,
                nspec=NSPEC,
                ndit=ndit,
                dit_s=dit_s,
                dark=dark,
                ron=READOUT_E,
            )
        )
    return outputs
