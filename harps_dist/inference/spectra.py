"""Spectra in memory brought onto a model's grid: arrays, or what has a spectral axis and a flux (specutils).

Tested in tests/integration/test_exports.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harps_dist.errors import ConfigError, SpectrumError
from harps_dist.formats.units import plain
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.medium import vacuum_to_air
from harps_dist.spectra.quantities import expected, in_range
from harps_dist.spectra.regrid import regrid
from harps_dist.spectra.standardise import BROKEN_SHARE, standardise, without_wild

Medium = Literal["air", "vacuum"]
LEAST_COVERAGE = 0.5  # of the grid's valid pixels; below the 0.98 of training a prediction is flagged
_IN_VACUUM = ("vac", "wave")  # how a spectrum's own notes begin that say so; FITS' CTYPE "AWAV" is in air
_NOTES = ("medium", "wave_medium", "wavelength_medium", "airorvac", "ctype1")
_MADE_BY = ("procsoft", "pipe id", "pipeline")  # how keys end that name the pipeline
_NEWER = ("espdr", "harps/")


class OnGrid(NamedTuple):
    """n spectra on a grid. flux: (n, pixel) standardised. coverage: (n,) share of valid pixels with data. broken: (n,)
    whether too many values lay beyond all reason."""

    flux: np.ndarray
    coverage: np.ndarray
    broken: np.ndarray


def on_grid(spectrum: Any, flux: np.ndarray | None, medium: Medium | None, grid: Grid) -> OnGrid:
    """Bring spectra in memory onto a grid of air wavelengths and standardise them.

    spectrum: a specutils Spectrum; the path of a Phase 3 or s1d file; or barycentric wavelengths (sample,) [Å] with
    `flux` (sample,) or (n, sample) in any unit, NaN or masked where missing, also as a pair; or, alone, flux
    (pixel,) or (n, pixel) on the grid. medium: of the wavelengths, air if not given. A spectrum that says it is in
    vacuum is refused until the medium is given; then it is brought to air.
    Raises ConfigError for shapes or wavelengths that do not fit, SpectrumError for spectra that cannot be standardised.
    """
    wave_aa, values = _arrays(spectrum, flux, medium)
    values, broken = _without_wild(values)
    if wave_aa is not None:
        values = np.stack([regrid(wave_aa, one, grid) for one in values])
    elif values.shape[1] != grid.length:
        raise ConfigError(
            f"spectra of {values.shape[1]} pixels do not fit grid {grid.name} of {grid.length}. "
            f"Give wavelengths too: predict(wave_aa, flux)."
        )
    coverage = np.isfinite(values[:, grid.valid]).mean(axis=1)
    return OnGrid(np.stack([standardise(one, grid, LEAST_COVERAGE)[0] for one in values]), coverage, broken)


def _without_wild(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux (n, sample) without values beyond all reason, and which spectra (n,) have too many of them."""
    kept, broken = values.astype(values.dtype, copy=True), np.zeros(len(values), bool)
    for row, one in enumerate(values):
        finite = np.isfinite(one)
        median = float(np.median(one[finite])) if finite.any() else 0.0
        if in_range("median_flux", median):  # else it is refused below, or has no scale to go by
            kept[row], count = without_wild(one, median)
            broken[row] = count > BROKEN_SHARE * one.size
        elif median > 0:
            raise SpectrumError(f"the median flux is {median:g}, expected {expected('median_flux')}. Scale it.")
    return kept, broken


def _arrays(spectrum: Any, flux: np.ndarray | None, medium: Medium | None) -> tuple[np.ndarray | None, np.ndarray]:
    """Air wavelengths (sample,) [Å], None for the model's grid, and flux (n, sample)."""
    if medium not in (None, "air", "vacuum"):
        raise ConfigError(f"unknown medium {medium!r}; wavelengths are in air or in vacuum.")
    wave_aa = None
    if isinstance(spectrum, str | Path):
        spectrum, flux = _of_file(Path(spectrum))
    if flux is None and isinstance(spectrum, tuple) and len(spectrum) == 2:
        spectrum, flux = spectrum
    if hasattr(spectrum, "spectral_axis") and hasattr(spectrum, "flux"):
        from astropy import units

        if medium is None and (note := _vacuum_note(getattr(spectrum, "meta", None))):
            raise ConfigError(
                f"the spectrum says that its wavelengths are in vacuum ({note}), and the model's are in air, 83 km/s "
                f"apart. Give medium='vacuum' to have them brought to air, or medium='air' if the note is wrong."
            )
        axis = spectrum.spectral_axis
        wave_aa = np.asarray(axis.to_value(units.AA, units.spectral()), np.float64)
        flux = plain(spectrum.flux)
        mask = getattr(spectrum, "mask", None)
        if mask is not None:
            flux = np.where(mask, np.nan, flux)
    elif flux is not None:
        wave_aa = plain(spectrum, "Angstrom", "wavelength").astype(np.float64)
    else:
        flux = spectrum
    values = np.atleast_2d(plain(flux))
    if values.ndim != 2 or not values.size or (wave_aa is not None and wave_aa.shape != values.shape[1:]):
        shape = None if wave_aa is None else wave_aa.shape
        raise ConfigError(
            f"expected wavelengths (sample,) and flux (sample,) or (n, sample), got {shape}, {values.shape}."
        )
    if wave_aa is None:
        return None, values
    if wave_aa[0] > wave_aa[-1]:
        wave_aa, values = wave_aa[::-1], values[:, ::-1]
    if not (np.isfinite(wave_aa).all() and (np.diff(wave_aa) > 0).all()):
        raise ConfigError("expected finite wavelengths that increase or decrease throughout. Sort the samples.")
    return vacuum_to_air(wave_aa) if medium == "vacuum" else wave_aa, values


def _of_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Air wavelengths [Å] and flux of a Phase 3 or s1d file; SpectrumError says why there are none."""
    from harps_dist.formats.readers import read_spectrum
    from harps_dist.formats.records import Refusal

    record = read_spectrum(path)
    if isinstance(record, Refusal):
        raise SpectrumError(str(record))
    return record.wave_aa, record.flux


def _vacuum_note(meta: Any) -> str | None:
    """What a spectrum's notes, or the FITS header among them, say of vacuum; None where they do not.

    The newer HARPS pipeline's wavelengths are in vacuum, and it is known by its name; this package's readers bring them
    to air and say so.
    """
    if meta and str(meta.get("medium", "")).strip().lower() == "air":
        return None
    headers = [meta] + [meta[key] for key in ("header", "primary_header") if meta and key in meta] if meta else []
    for header in headers:
        for key in header:
            known, value = str(key).lower(), str(header[key]).strip().lower()
            says_so = known in _NOTES and value.startswith(_IN_VACUUM) and not value.startswith("wavelength")
            if says_so or (known.endswith(_MADE_BY) and value.startswith(_NEWER)):
                return f"{key} = {header[key]}"
    return None
