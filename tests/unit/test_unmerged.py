"""Products whose orders are not merged are refused by what they are, with what to give instead."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import Reason, Refusal

ORDERS = np.ones((71, 40), np.float32)


def primary(data=None, **cards) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU(data)
    for key, value in ({"INSTRUME": "HARPS", "HIERARCH ESO DPR CATG": "SCIENCE"} | cards).items():
        hdu.header[key] = value
    return hdu


def images(*names: str) -> list[fits.ImageHDU]:
    return [fits.ImageHDU(ORDERS, name=name) for name in names]


S2D = ("SCIDATA", "ERRDATA", "QUALDATA", "WAVEDATA_VAC_BARY", "DLLDATA_VAC_BARY")
RECEIPT = fits.BinTableHDU.from_columns([fits.Column("MODULE", "8A", array=["a", "b"])], name="RECEIPT")
PRODUCTS = {
    "S2D_A": ("r.HARPS.2018-09-02T03_29_21.872_S2D_A.fits", [primary(), *images(*S2D)], "SCIDATA"),
    "S2D_BLAZE_A": ("r.HARPS.2018-09-02T03_29_21.872_S2D_BLAZE_A.fits", [primary(), *images(*S2D)], "SCIDATA"),
    "e2ds": ("HARPS.2012-03-24T08:37:45.581_e2ds_A.fits", [primary(ORDERS)], "2 axes"),
    "EPRV L2": (
        "HARPSL2_20180902T032921.fits",
        [
            primary(DATALVL="L2"),
            fits.ImageHDU(name="INSTRUMENT_HEADER"),
            RECEIPT,
            *images("TRACE1_FLUX", "TRACE1_WAVE"),
        ],
        "EPRV",
    ),
    "EPRV L2, receipt first": ("x.fits", [primary(), RECEIPT, *images("TRACE1_FLUX")], "EPRV"),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_what_is_not_merged_is_refused_with_what_to_give(product, tmp_path):
    name, hdus, word = PRODUCTS[product]
    fits.HDUList([hdu.copy() for hdu in hdus]).writeto(tmp_path / name)
    found = read_spectrum(tmp_path / name)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.NO_SPECTRUM
    assert word in found.detail
    assert "Give the exposure's S1D" in found.detail
