"""What is asked of a simulator, and what it gives.

Tested in tests/unit/test_simulate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.instrument import HARPS, Instrument
from harps_dist.spectra.noise import NOISE_FLOOR

if TYPE_CHECKING:
    from specutils import Spectrum


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be simulated, one row a spectrum.

    labels: (n, K) in their units, in the model's order. unknown: (n, u) unknown factors, the nodes behind the labels.
    snr: (n,) per pixel at the median flux, infinite for no noise. seed: (n,) int64, on which all that is drawn for a
    spectrum depends. names: (n,) text. notes: what was assumed.
    """

    labels: np.ndarray
    unknown: np.ndarray
    snr: np.ndarray
    seed: np.ndarray
    names: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.seed)

    def rows(self, rows: slice) -> Request:
        """Some of its rows."""
        return Request(
            self.labels[rows], self.unknown[rows], self.snr[rows], self.seed[rows], self.names[rows], self.notes
        )


@dataclass(frozen=True, eq=False)
class Simulated:
    """Spectra that a model drew.

    wave_aa: (pixel,) air, barycentric, the star's velocity left in. flux: (n, pixel) float32 in medians of the flux,
    NaN where the spectrograph has no pixel or nothing is known. sigma: (n, pixel) standard deviation of the noise in
    it, NaN where there is none. label_names: of the columns of request.labels. model, model_id: name, and sha256 of
    the weights. instrument: whose spectra it draws.
    """

    wave_aa: np.ndarray
    flux: np.ndarray
    sigma: np.ndarray
    request: Request
    label_names: tuple[str, ...]
    model: str
    model_id: str
    instrument: Instrument = HARPS

    def __len__(self) -> int:
        return len(self.flux)

    def facts(self, row: int) -> dict[str, Any]:
        """What one spectrum is, for headers: object, labels by name, unknown factors, S/N, seed, model."""
        request = self.request
        return {
            "object": str(request.names[row]),
            **dict(zip(self.label_names, request.labels[row].tolist(), strict=True)),
            **{f"u{number + 1}": float(value) for number, value in enumerate(request.unknown[row])},
            "snr": float(request.snr[row]),
            "seed": int(request.seed[row]),
            "model": self.model,
            "model_id": self.model_id,
            "instrument": self.instrument.keyword,
        }

    def as_spectrum(self, row: int | None = None) -> Spectrum:
        """A specutils Spectrum of one row, or of all (the second axis is that of wavelengths). Flux is dimensionless,
        pixels without flux are masked, `meta` has medium, frame and, for one row, what it is."""
        from astropy import units
        from astropy.nddata import StdDevUncertainty
        from specutils import Spectrum

        chosen: Any = (0 if len(self) == 1 else slice(None)) if row is None else row
        sigma, meta = self.sigma[chosen], {"medium": "air", "frame": "barycentric", "simulated_by": self.model}
        return Spectrum(
            flux=self.flux[chosen] * units.dimensionless_unscaled,
            spectral_axis=self.wave_aa * units.AA,
            uncertainty=StdDevUncertainty(sigma) if np.isfinite(sigma).any() else None,
            mask=~np.isfinite(self.flux[chosen]),
            meta=meta | (self.facts(chosen) if isinstance(chosen, int) else {}),
        )


def noise_sigma(flux: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """(n, pixel) float32 standard deviation of photon noise, 1 / snr at the median; NaN for an infinite snr.

    flux: (n, pixel) in medians. Its square grows with the flux, as `spectra.noise.photon_noise` measures it.
    """
    variance = (np.abs(flux) + NOISE_FLOOR) / ((1 + NOISE_FLOOR) * np.asarray(snr, np.float64)[:, None] ** 2)
    return np.where(variance > 0, np.sqrt(variance), np.nan).astype(np.float32)


def relative_velocity(to_kms: np.ndarray | float, from_kms: float) -> np.ndarray:
    """Velocities [km/s] that move a spectrum at one radial velocity to others; redshifts compose as products."""
    return ((1 + np.asarray(to_kms) / C_KMS) / (1 + from_kms / C_KMS) - 1) * C_KMS
