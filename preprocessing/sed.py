"""Stellar spectral energy distributions (SEDs): the packaged model grid, and SED files.

An SED is a surface flux at rest, in air, one star's labels to one file: a FITS table of one row (WAVE, FLUX,
header TEFF LOGG MH VMIC), or a node of a synthesised library (.npz).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from harps_dist.files import atomic_write
from harps_dist.spectra.exact import exp
from harps_dist.spectra.spline import cubic_spline
from preprocessing.records import Reason, Refusal

FLUX_UNIT = "erg/s/cm**2/Angstrom"
ASSET = Path(__file__).parent / "assets" / "sed_grid_5985_6323.npz"


@dataclass(frozen=True, eq=False)
class SedRecord:
    """One SED and its labels; a label that is not known is NaN."""

    sed_id: str  # file stem
    teff_k: float
    logg: float  # dex, cm/s²
    mh: float  # dex
    vmic_kms: float
    wave_aa: np.ndarray  # (n,) float64, air, at rest, strictly increasing
    flux: np.ndarray  # (n,) float32, positive; surface flux in FLUX_UNIT unless the file says otherwise
    source: str  # file name


def interpolate_sed(wave_aa: np.ndarray, flux: np.ndarray, at_aa: np.ndarray) -> np.ndarray:
    """Cubic-spline values of an SED at any wavelengths, float64; held at its end values beyond its ends."""
    return cubic_spline(wave_aa, flux, np.clip(at_aa, wave_aa[0], wave_aa[-1]))


@dataclass(frozen=True, eq=False)
class SedGrid:
    """340 ATLAS9 models, synthesised at R = 115,000 and compressed to principal components of log flux.

    log flux = mean + coefficients · components, the coefficients interpolated between the models by splines. The
    compression costs 2.4e-4 rms.
    """

    wave_aa: np.ndarray  # (pixels,) float64, air
    vmic_kms: float
    _axes: tuple[np.ndarray, np.ndarray, np.ndarray]  # teff_k, logg, mh
    _coefficients: np.ndarray  # (teff, logg, mh, component)
    _components: np.ndarray  # (component, pixels) float64
    _mean: np.ndarray  # (pixels,) float32

    @classmethod
    @cache
    def packaged(cls) -> SedGrid:
        """The packaged 5985-6323 Å; the same object every time."""
        with np.load(ASSET) as asset:
            components = asset["components_i16"] * asset["component_scale"].astype(np.float64)[:, None]
            wave_aa = float(asset["wave0_aa"]) + float(asset["step_aa"]) * np.arange(components.shape[1])
            axes = (asset["teff_k"], asset["logg"], asset["mh"])
            coefficients, mean = asset["coefficients"], asset["log_flux_mean"]
            return cls(wave_aa, float(asset["vmic_kms"]), axes, coefficients, components, mean)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest teff_k, logg and mh of the grid."""
        return {
            name: (float(axis[0]), float(axis[-1]))
            for name, axis in zip(("teff_k", "logg", "mh"), self._axes, strict=True)
        }

    def sample(self, teff_k: ArrayLike, logg: ArrayLike, mh: ArrayLike) -> np.ndarray:
        """Surface flux, (n, pixels) float32 in FLUX_UNIT, for labels (n,) each or scalars; the same on every machine.

        Raises ValueError for labels outside `ranges`.
        """
        labels = np.stack(np.broadcast_arrays(*map(np.atleast_1d, (teff_k, logg, mh))), axis=-1)
        for (name, (low, high)), value in zip(self.ranges.items(), labels.T, strict=True):
            if not ((value >= low) & (value <= high)).all():
                raise ValueError(f"{name} {value.min():g}..{value.max():g} leaves the SED grid's {low:g}..{high:g}.")
        flux = np.empty((len(labels), self.wave_aa.size), np.float32)
        for one, coefficients in zip(flux, self._interpolated(labels), strict=True):
            log_flux = self._mean.astype(np.float64)
            for coefficient, component in zip(coefficients, self._components, strict=True):
                log_flux += coefficient * component
            one[:] = exp(log_flux)
        return flux

    def _interpolated(self, labels: np.ndarray) -> np.ndarray:
        """(n, component) coefficients at labels (n, 3): splines along one axis after the other, node by node."""
        values = np.broadcast_to(self._coefficients, (len(labels), *self._coefficients.shape))
        for axis, value in zip(self._axes, labels.T, strict=True):
            weights = cubic_spline(axis, np.eye(axis.size), value)  # (n, node)
            shape = (len(labels), *[1] * (values.ndim - 2))
            values = sum(weights[:, node].reshape(shape) * values[:, node] for node in range(axis.size))
        return values


def write_sed(
    path: Path, wave_aa: np.ndarray, flux: np.ndarray, teff_k: float, logg: float, mh: float, vmic_kms: float
) -> None:
    """Write one SED as a FITS table of one row, the wavelengths [Å] marked as air."""
    from astropy.io import fits

    n = len(wave_aa)
    row = np.empty(1, dtype=[("WAVE", ">f8", (n,)), ("FLUX", ">f4", (n,))])
    row["WAVE"], row["FLUX"] = wave_aa, flux
    table = fits.BinTableHDU(row.view(fits.FITS_rec), name="SED")  # a big-endian view is written as it is
    header = table.header
    header["TUNIT1"], header["TUCD1"] = "Angstrom", "em.wl;obs.atmos"
    header["TUNIT2"], header["TUCD2"] = FLUX_UNIT, "phot.flux.density;em.wl"
    header["TEFF"] = (teff_k, "[K] effective temperature")
    header["LOGG"] = (logg, "[dex] surface gravity, cm/s2")
    header["MH"] = (mh, "[dex] metallicity")
    header["VMIC"] = (vmic_kms, "[km/s] microturbulence")
    with atomic_write(path) as aside:
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(aside, output_verify="ignore")


def read_sed(path: Path) -> SedRecord | Refusal:
    """Read one SED, .fits (as `write_sed`) or .npz (a library node); refuses damaged ones and vacuum."""
    path = Path(path)
    if not path.is_file():
        return Refusal(path.name, Reason.NO_SED, f"there is no SED file {path.name} in {path.parent.name}/")
    return read_sed_library(path) if path.suffix == ".npz" else _read_fits(path)


def _read_fits(path: Path) -> SedRecord | Refusal:
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False) as hdus:
            table = hdus[1]
            header, names = table.header, {name.upper() for name in table.columns.names}
            if missing := [name for name in ("WAVE", "FLUX") if name not in names]:
                return Refusal(path.name, Reason.MISSING_COLUMN, f"no column {', '.join(missing)}")
            medium = str(header.get("TUCD1", ""))
            if "obs.atmos" not in medium:
                detail = f"wavelengths are marked {medium!r}, expected air, 'em.wl;obs.atmos'"
                return Refusal(path.name, Reason.VACUUM, detail)
            if missing := [key for key in ("TEFF", "LOGG", "MH") if key not in header]:
                return Refusal(path.name, Reason.MISSING_FIELD, f"no header keyword {', '.join(missing)}")
            teff_k, logg, mh, vmic_kms = (float(header.get(key, np.nan)) for key in ("TEFF", "LOGG", "MH", "VMIC"))
            wave_aa = np.array(table.data["WAVE"], np.float64).ravel()
            flux = np.array(table.data["FLUX"], np.float32).ravel()
    except Exception as error:  # astropy raises nearly anything on a damaged file
        return Refusal(path.name, Reason.UNREADABLE, f"{type(error).__name__}: {error}")
    return _checked(SedRecord(path.stem, teff_k, logg, mh, vmic_kms, wave_aa, flux, path.name))


def read_sed_library(path: Path) -> SedRecord | Refusal:
    """Read a node of a synthesised library: log flux = log_flux_offset + log_flux_scale · log_flux_u16."""
    path = Path(path)
    try:
        with np.load(path) as node:
            log_flux = node["log_flux_offset"] + node["log_flux_scale"] * node["log_flux_u16"]
            wave_aa = node["wave0_aa"] + node["step_aa"] * np.arange(log_flux.size)
            teff_k, logg, mh, vmic_kms = (float(node[key]) for key in ("teff_k", "logg", "mh", "vmic_kms"))
            flux = np.exp(log_flux).astype(np.float32)
    except KeyError as error:
        return Refusal(path.name, Reason.MISSING_FIELD, str(error.args[0]))
    except Exception as error:  # zipfile, zlib, OSError, ValueError: all mean a damaged file
        return Refusal(path.name, Reason.UNREADABLE, f"{type(error).__name__}: {error}")
    return _checked(SedRecord(path.stem, teff_k, logg, mh, vmic_kms, wave_aa, flux, path.name))


def _checked(record: SedRecord) -> SedRecord | Refusal:
    wave_aa, flux = record.wave_aa, record.flux
    if wave_aa.size != flux.size or wave_aa.size < 4:
        detail = f"{wave_aa.size} wavelengths and {flux.size} fluxes, expected as many, and at least 4"
        return Refusal(record.source, Reason.LENGTH_MISMATCH, detail)
    if not (np.diff(wave_aa) > 0).all():
        return Refusal(record.source, Reason.NOT_INCREASING, "wavelengths do not increase strictly")
    if not (np.isfinite(flux).all() and (flux > 0).all()):
        return Refusal(record.source, Reason.NO_FINITE_FLUX, "an SED must be finite and positive everywhere")
    return record
