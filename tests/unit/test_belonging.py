"""Whose spectrum a file holds: neighbours that look like HARPS, fibre B, sky and lamps are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.belonging import is_fibre_b
from harps_dist.formats.prepare import prepare
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.spectra.grid import named_grid

NAME = "HARPS.2012-03-24T08:37:45.581_s1d_A.fits"
FLUX = np.linspace(1, 2, 4096, dtype=np.float32)


def read(folder, name: str = NAME, **cards):
    """What is read of an s1d; a card set to None is left out, '__' stands for a blank."""
    own = {"INSTRUME": "HARPS", "CRVAL1": 6095.0, "CDELT1": 0.01, "CRPIX1": 1.0, "CTYPE1": "Angstrom"}
    own |= {"ESO DRS VERSION": "HARPS_3.8", "ESO DPR CATG": "SCIENCE", "ESO DPR TYPE": "STAR,WAVE,K1"}
    hdu = fits.PrimaryHDU(FLUX)
    for key, value in (own | {key.replace("__", " "): value for key, value in cards.items()}).items():
        if value is not None:
            hdu.header[f"HIERARCH {key}" if " " in key else key] = value
    hdu.writeto(folder / name, overwrite=True)
    return read_spectrum(folder / name)


NO_KEYWORD = {"INSTRUME": None}
NO_PIPELINE = {"ESO__DRS__VERSION": None, "CTYPE1": "AWAV"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"TELESCOP": "ESO-3P6"},
        {"TELESCOP": "ESO-3.6", "SPEC_RES": 115_000.0},
        {"ESO__INS__MODE": "HARPS+NIRPS"},
        {"ESO__DPR__TYPE": "OBJECT,SKY"},
        {"ESO__DPR__TYPE": "STAR,SKY,G2"},
        {"ESO__DPR__TYPE": None, "ESO__DPR__CATG": None},
        {"OBJECT": "FP Aqr"},
        {"OBJECT": "Skywalker"},
        NO_KEYWORD,
        NO_KEYWORD | NO_PIPELINE,  # the name says it
        NO_KEYWORD | NO_PIPELINE | {"name": "x.fits", "PROV1": "HARPS.2012-03-24T08:37:45.581.fits"},
        {"name": "GJ581.2012-03-24.fits"},
        {"ESO__DRS__BLAZE__FILE": "HARPS.2012-03-23T19:43:50.252_blaze_A.fits"},
        {"name": "tau_Boo.fits"},
        {"name": "alpha_Cen_B.fits", "ESO__DRS__BLAZE__FILE": "HARPS.2012-03-23T19:43:50.252_blaze_A.fits"},
    ],
)
def test_what_is_shown_to_be_of_harps_is_read(change, tmp_path):
    found = read(tmp_path, **change)
    assert isinstance(found, SpectrumRecord), found
    assert found.instrument == "harps"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"INSTRUME": "HARPN"}, "HARPN"),
        ({"INSTRUME": "FEROS"}, "FEROS"),
        ({"INSTRUME": "ESPRESSO"}, "ESPRESSO"),
        ({"INSTRUME": "UVES"}, "UVES"),
        (NO_KEYWORD | {"ESO__DRS__VERSION": "CORALIE_3.3"}, "CORALIE"),
        (NO_KEYWORD | {"name": "CORALIE.2004-02-19T06:22:20.001_s1d_A.fits"}, "CORALIE"),
        (NO_KEYWORD | NO_PIPELINE | {"name": "CORALIE.2004-02-19T06:22:20.001_s1d_A.fits"}, "CORALIE"),
        (NO_KEYWORD | {"ESO__OBS__INSTRUMENT": "CORALIE"}, "CORALIE"),
        (NO_KEYWORD | NO_PIPELINE | {"name": "x_s1d_A.fits"}, "no INSTRUME"),
        (NO_KEYWORD | NO_PIPELINE | {"name": "x_s1d_A.fits", "PROCSOFT": "espdr/3.0.0"}, "no INSTRUME"),
        ({"TNG__DPT__ID": "1"}, "HARPN"),
        ({"TELESCOP": "TNG"}, "TNG"),
        ({"TELESCOP": "ESO-VLT-U1"}, "ESO-VLT-U1"),
        ({"name": "HARPN.2012-08-02T21-20-14.000_s1d_A.fits"}, "HARPN"),
        ({"name": "r.ESPRE.2018-09-02T03_29_21.872_S1D_A.fits"}, "ESPRE"),
        ({"ESO__DRS__VERSION": "CORALIE_3.3"}, "CORALIE"),
    ],
)
def test_who_is_not_shown_to_be_harps_is_refused_by_name(change, word, tmp_path):
    found = read(tmp_path, **change)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.WRONG_INSTRUMENT
    assert word in found.detail


@pytest.mark.parametrize(
    "change",
    [
        {"name": "HARPS.2017-04-06T00:05:02.829_s1d_B.fits"},
        {"name": "HARPS.2017-04-06T01 05 02.829_s1d_B.fits"},
        {"name": "HARPS.2017-04-06T02.05.02.829_s1d_B.fits"},
        {"name": "HARPS.2017-04-06T03%3A05%3A02.829_s1d_B.fits"},
        {"name": "HARPS.2017-04-06T00:05:02.829_S1D_B.fits"},
        {"name": "ADP.HARPS.2017-04-06T05:05:02.829_03_S1D_B.fits"},
        {"name": "r.HARPS.2018-09-02T03_29_21.872_S1D_FINAL_B.fits"},
        {"name": "night_B.fits"},
        {"name": "s1d_b.fits"},
        {"ESO__DRS__BLAZE__FILE": "HARPS.2017-04-05T19:53:05.921_blaze_B.fits"},
        {"ESO__PRO__CATG": "S1D_B"},
        {"ORIGFILE": "HARPS.2006-07-05T03:52:40.071_s1d_B_DRS_HARPS_3.5_ESOSDP.fits"},
    ],
)
def test_fibre_b_is_refused_in_all_spellings(change, tmp_path):
    found = read(tmp_path, **change)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.WRONG_FIBRE


@pytest.mark.parametrize(
    "change",
    [
        {"ESO__DPR__CATG": "CALIB"},
        {"ESO__DPR__TYPE": "SKY,SKY"},
        {"ESO__DPR__TYPE": "WAVE,WAVE,THAR2"},
        {"ESO__DPR__TYPE": "LAMP,DARK,TUN"},
        {"ESO__DPR__TYPE": "DARK,STAR"},
        {"ESO__DPR__TYPE": None, "OBJECT": "SKY"},
        {"ESO__DPR__TYPE": None, "OBJECT": "WAVE,WAVE,THAR2"},
    ],
)
def test_sky_and_lamps_are_refused(change, tmp_path):
    found = read(tmp_path, **change)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.NOT_SCIENCE


@pytest.mark.parametrize(
    "change",
    [
        {"ESO__INS__MODE": "EGGS"},
        {"ESO__DRS__VERSION": "EGGS_3.5"},
        {"ESO__INS__MODE": "EGGS", "INSTRUME": None},
        {"SPEC_RES": 80_000.0},
    ],
)
def test_the_mode_of_lower_resolution_is_read_and_kept_apart(change, tmp_path):
    found = read(tmp_path, **change)
    assert isinstance(found, SpectrumRecord), found
    assert found.instrument == "harps-eggs"
    assert named_grid("eggs").instrument.resolution == 80_000
    refused = prepare(found, named_grid("tiny"))
    assert isinstance(refused, Refusal)
    assert refused.reason == Reason.WRONG_INSTRUMENT
    assert "80,000" in refused.detail


def test_fibre_a_is_not_fibre_b():
    for name in (NAME, "blaze_A.fits", "bis_G2_A.fits", "HD1B.fits", "ccf_Beta_A.fits"):
        assert not is_fibre_b(name), name


def test_what_iraf_rewrote_is_refused_by_name_where_nothing_shows_its_frame(tmp_path):
    found = read(tmp_path, CTYPE1="LINEAR")
    assert isinstance(found, Refusal)
    assert "IRAF" in found.detail
