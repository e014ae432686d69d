"""What a decoder with physics takes from a release before it is trained: model spectra and responses.

Tested in tests/unit/test_physical.py.
"""

from __future__ import annotations

import numpy as np

from harps_dist.data.keyed import permutation
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.models.physical import PhysicalDecoder
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.microturbulence import TOO_HIGH_KMS


def fit(decoder: PhysicalDecoder, release: Release) -> None:
    """Fit a decoder's emulator and responses to the simulated samples of a release's training split.

    Raises ConfigError where it has too few of them.
    """
    index, rows = release.index, release.index.rows("simulated", "train")
    names = (*decoder.emulator.labels, "airmass", "pwv")
    known = np.stack([index[name][rows] for name in names], axis=1).astype(np.float64)
    vmic = known[:, names.index("vmic")]
    vmic[np.isnan(vmic)] = TOO_HIGH_KMS  # as libraries that do not say have it
    rows, known = rows[np.isfinite(known).all(axis=1)], known[np.isfinite(known).all(axis=1)]
    most, least = len(decoder.emulator.nodes), 2 * len(decoder.emulator.labels)
    of_star = len(decoder.emulator.labels)
    seds = np.sort(np.unique(known[:, :of_star], axis=0, return_index=True)[1])  # several samples may be of one
    if len(seds) < least:
        raise ConfigError(
            f"a decoder with physics begins with model spectra, and the training split of {release.location} has "
            f"{len(seds)} with all of {', '.join(names)}, expected at least {least}. Add outputs of the Exposure "
            f"Time Calculator with their SEDs to its archive (`harps-dist etc`), or train another recipe."
        )
    chosen = seds[np.sort(permutation(len(seds), "emulator", 0)[:most])]
    log_flux = np.stack([log_sed(release, int(row)) for row in rows[chosen]])
    decoder.emulator.fit(known[chosen, :of_star], fitting(log_flux, release.source_grid, decoder.source_grid))
    coefficients, first = np.unique(release.coefficients(rows), axis=0, return_index=True)
    terms = release.decoding.terms[0]
    responses = coefficients[:, :terms] @ release.decoding.basis[:terms]
    decoder.fit_response(fitting(responses, release.source_grid, decoder.source_grid), *known[first, -2:].T)


def log_sed(release: Release, row: int) -> np.ndarray:
    """(source pixel,) logarithm of a model spectrum of a release, in medians of it."""
    flux = release.array(row)
    return np.log(flux / np.median(flux))


def fitting(values: np.ndarray, source: Grid, wanted: Grid) -> np.ndarray:
    """Values (n, source pixel) on the grid that is wanted, cut from another one around it.

    Raises ConfigError where that is narrower.
    """
    margin = wanted.start - source.start
    if margin < 0 or wanted.stop > source.stop:
        raise ConfigError(
            f"a decoder with physics draws from {wanted.length} pixels, and the release's model spectra have "
            f"{source.length}. Pack the release again."
        )
    return values[:, margin : margin + wanted.length]
