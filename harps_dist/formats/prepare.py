"""From a spectrum as it was delivered to one that a model reads: on the grid, standardised, or refused and why.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harps_dist.errors import SpectrumError
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.instrument import named_instrument
from harps_dist.spectra.regrid import regrid
from harps_dist.spectra.standardise import BROKEN_SHARE, MINIMUM_COVERAGE, is_broken, standardise


class Prepared(NamedTuple):
    """A spectrum on a grid.

    flux: (pixel,) float32 in the unit of its file, NaN where no data are. standardised: (pixel,) float32, in medians,
    finite everywhere. coverage: share of the grid's valid pixels with data. broken: whether it is numerically broken.
    sigma: (pixel,) errors in the unit of its file, NaN where it states none; None where nobody asked, or it has none.
    """

    flux: np.ndarray
    standardised: np.ndarray
    coverage: float
    broken: bool
    sigma: np.ndarray | None = None


def prepare(
    record: SpectrumRecord,
    grid: Grid,
    least: float = MINIMUM_COVERAGE,
    least_if_broken: float | None = None,
    errors: bool = False,
) -> Prepared | Refusal:
    """Bring a spectrum onto the grid and standardise it (Eq. 2).

    least: share of the grid's valid pixels that must carry data. least_if_broken: the same for one whose file is
    numerically broken, `least` if None. errors: whether those of its pixels are brought onto the grid too. A Refusal
    where it covers less, its median is not positive, or it was taken with another instrument.
    """
    if record.instrument != grid.instrument.name:
        expected = f"expected a spectrum of {grid.instrument.name}, on whose lattice grid {grid.name} is"
        detail = f"{expected}, got one of {record.instrument}"
        taken = named_instrument(record.instrument)
        if taken.keyword == grid.instrument.keyword:
            detail += (
                f", its mode of resolving power {taken.resolution:,.0f} instead of {grid.instrument.resolution:,.0f}"
            )
        return Refusal(record.source, Reason.WRONG_INSTRUMENT, detail)
    broken = record.wild > BROKEN_SHARE
    least = least_if_broken if broken and least_if_broken is not None else least
    wave_aa = record.wave_aa[np.isfinite(record.flux)]
    prepared = prepare_flux(regrid(record.wave_aa, record.flux, grid), grid, record.source, least, broken, wave_aa)
    if isinstance(prepared, Refusal) or not errors or record.sigma is None:
        return prepared
    return prepared._replace(sigma=regrid(record.wave_aa, record.sigma, grid))


def prepare_flux(
    flux: np.ndarray, grid: Grid, source: str, least: float, broken: bool = False, wave_aa: np.ndarray | None = None
) -> Prepared | Refusal:
    """Standardise a spectrum that is on the grid, (pixel,), see `prepare`. source: what a Refusal calls it. broken:
    whether it is known to be, besides what its pixels show. wave_aa: (n,) where its file has data."""
    flux = np.where(grid.valid, flux, flux.dtype.type(np.nan))
    coverage = float(np.isfinite(flux).sum() / grid.valid.sum())
    if coverage < least:
        return Refusal.coverage(source, coverage, grid.name, least, wave_aa)
    try:
        standardised, _ = standardise(flux, grid, least)
    except SpectrumError as error:
        return Refusal(source, Reason.NEGATIVE, str(error))
    return Prepared(flux, standardised, coverage, broken or is_broken(standardised, grid))
