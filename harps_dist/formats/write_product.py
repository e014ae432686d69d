"""A spectrum written as ESO's science data product, the table that HARPS's archive hands out.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harps_dist.files import atomic_write


def write_product(
    path: Path,
    primary: dict,
    table: dict,
    wave_aa: np.ndarray,
    flux_adu: np.ndarray,
    err_adu: np.ndarray | float = np.nan,
    stamp: str = "",
) -> None:
    """Write one spectrum: HDU 0 without data, HDU 1 a one-row table WAVE, FLUX, ERR (all NaN, as in HARPS).

    primary, table: cards of the two. wave_aa: (n,) air, barycentric; flux_adu, err_adu: (n,). stamp: stands in place of
    a date beside the checksums, so that the same spectrum makes the same bytes.
    """
    from astropy.io import fits

    n = wave_aa.size
    row = np.empty(1, dtype=[("WAVE", ">f8", (n,)), ("FLUX", ">f4", (n,)), ("ERR", ">f4", (n,))])
    row["WAVE"], row["FLUX"], row["ERR"] = wave_aa, flux_adu, err_adu
    second = fits.BinTableHDU(row.view(fits.FITS_rec), name="SPECTRUM")  # big-endian view: written as it is
    second.header.update(table)
    first = fits.PrimaryHDU()
    first.header.update(primary)
    with atomic_write(path) as aside:
        hdus = fits.HDUList([first, second])
        for hdu in hdus:
            hdu.add_checksum(when=f"HDU checksum of {stamp}")
        hdus.writeto(aside, output_verify="ignore")
