"""Reading ADP and s1d files: genuine ones to the header's last digit, damaged ones to the right refusal."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.readers import find_spectra, read_spectrum
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord

ADP = "ADP.2014-09-16T11:04:45.123"
S1D = "HARPS.2012-03-24T08:37:45.581_s1d_A"
N = 4000


def write_s1d(folder: Path, flux: np.ndarray | None = None, name: str = "x_s1d_A.fits", **cards) -> Path:
    """A small s1d as the DRS writes it; a card set to None is left out."""
    hdu = fits.PrimaryHDU(np.linspace(1, 2, N, dtype=np.float32) if flux is None else flux)
    own = {"CRPIX1": 1.0, "CRVAL1": 6100.0, "CDELT1": 0.01, "CTYPE1": "Angstrom", "OBJECT": "HD128621"}
    own["ESO DRS VERSION"] = "HARPS_3.8"
    for key, value in (own | {key.replace("_", " "): value for key, value in cards.items()}).items():
        if value is not None:
            hdu.header[f"HIERARCH {key}" if " " in key else key] = value
    hdu.writeto(folder / name)
    return folder / name


def write_adp(
    folder: Path,
    names=("WAVE", "FLUX", "ERR"),
    flux=None,
    wave=None,
    unit="Angstrom",
    checksum=False,
    **cards,
) -> Path:
    """A small Phase 3 table; cards go to the table's header, `primary` ones to HDU 0's."""
    wave = 6100.0 + 0.01 * np.arange(N) if wave is None else wave
    flux = np.linspace(1, 2, N) if flux is None else flux
    columns = [
        fits.Column(name, f"{len(values)}{kind}", unit=its_unit, array=[values])
        for name, values, kind, its_unit in zip(
            names, (wave, flux, np.full(N, np.nan)), "DEE", (unit, "adu", "adu"), strict=False
        )
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    primary = fits.PrimaryHDU()
    primary.header["INSTRUME"] = "HARPS"
    primary.header["SPECSYS"] = "BARYCENT"
    primary.header["PROCSOFT"] = cards.pop("procsoft", "HARPS_3.5")
    table.header["TUCD1"] = "em.wl"
    table.header.update(cards)
    path = folder / "ADP.fits"
    fits.HDUList([primary, table]).writeto(path, checksum=checksum)
    return path


def refused(path: Path, reason: Reason) -> str:
    result = read_spectrum(path)
    assert isinstance(result, Refusal), f"{path.name} was read"
    assert (result.reason, result.source) == (reason, path.name), result
    assert result.detail
    return result.detail


# --- genuine files -----------------------------------------------------------------------------------


def test_every_genuine_file_reads_as_its_header_says(genuine_data):
    paths = find_spectra(genuine_data / "harps")
    assert len(paths) == 15
    for path in paths:
        record = read_spectrum(path)
        assert isinstance(record, SpectrumRecord), record
        header = fits.getheader(path, 0)
        assert record.dp_id == path.name.removesuffix(".fits.gz")
        assert record.product == ("ADP" if path.name.startswith("ADP") else "s1d")
        assert record.object == record.target_name == header["OBJECT"]
        assert record.mjd_obs == header["MJD-OBS"]
        assert record.exptime_s == header["EXPTIME"]
        assert record.berv_kms == header["ESO DRS BERV"]
        assert record.prog_id == header["ESO OBS PROG ID"]
        assert record.pipeline == header["ESO DRS VERSION"]
        assert record.radvel_guess_kms == header["ESO TEL TARG RADVEL"]
        start, end = header["ESO TEL AIRM START"], header["ESO TEL AIRM END"]
        assert record.airmass == pytest.approx((start + end) / 2)
        orders = [header[f"ESO DRS SPE EXT SN{order}"] for order in range(72)]
        assert record.snr == pytest.approx(np.median(orders))
        assert (record.wave_aa.dtype, record.flux.dtype) == (np.float64, np.float32)
        assert record.flux.dtype.isnative
        assert record.wave_aa.shape == record.flux.shape
        assert 3781 < record.wave_aa[0] < 3782
        assert 6912 < record.wave_aa[-1] < 6914
        # the pointing lies within an arcminute of the target
        assert np.hypot(record.ra_deg - header["RA"], record.dec_deg - header["DEC"]) < 0.03


def test_genuine_values_read_by_hand(genuine_data):
    adp = read_spectrum(genuine_data / "harps" / f"{ADP}.fits.gz")
    assert (adp.object, adp.snr, adp.mjd_obs, adp.prog_id) == (
        "IC4651No9122",
        23.35,
        53921.1615749,
        "076.C-0429(A)",
    )
    assert adp.wave_aa.size == 313_124
    assert (adp.wave_aa[0], adp.wave_aa[-1]) == (3781.43, 6912.66)
    assert np.median(adp.flux) == pytest.approx(645.59436)
    s1d = read_spectrum(genuine_data / "harps" / f"{S1D}.fits.gz")
    assert (s1d.object, s1d.snr, s1d.wave_aa.size) == ("HD128621", 267.0, 313_156)
    assert s1d.wave_aa[-1] == pytest.approx(3781.73 + 0.01 * 313_155, abs=1e-9)
    assert s1d.berv_kms == pytest.approx(18.2626935967183)
    # J2000, SIMBAD: 14 39 35.06 -60 50 15.1
    assert (s1d.ra_deg, s1d.dec_deg) == pytest.approx((219.8961, -60.8375), abs=5e-4)
    assert (s1d.flux[-1], np.median(s1d.flux)) == pytest.approx((fits.getdata(s1d_path(genuine_data))[-1], 67653.95))


def s1d_path(genuine_data: Path) -> Path:
    return genuine_data / "harps" / f"{S1D}.fits.gz"


def test_plain_gzipped_and_renamed_copies_are_the_same_spectrum(genuine_data, tmp_path):
    raw = gzip.decompress((genuine_data / "harps" / f"{ADP}.fits.gz").read_bytes())
    (tmp_path / "renamed.fit").write_bytes(raw)
    record = read_spectrum(tmp_path / "renamed.fit")
    assert record.dp_id == ADP  # from ARCFILE
    path = tmp_path / f"{S1D.replace(':', '_')}.fits.gz"
    path.write_bytes(s1d_path(genuine_data).read_bytes())
    assert read_spectrum(path).dp_id == S1D  # colons restored


def test_genuine_damage_is_found(genuine_data, tmp_path):
    packed = s1d_path(genuine_data).read_bytes()
    raw = gzip.decompress(packed)
    path = tmp_path / "x.fits"
    for keep in (1000, 100_000, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:keep])
        refused(path, Reason.TRUNCATED)
    for keep in (len(packed) // 2, len(packed) - 4):
        path.write_bytes(packed[:keep])
        refused(path, Reason.TRUNCATED)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    path.write_bytes(flipped)
    refused(path, Reason.CHECKSUM)

    raw = bytearray(gzip.decompress((genuine_data / "harps" / f"{ADP}.fits.gz").read_bytes()))
    path.write_bytes(raw[:246_000])
    assert "HDU 1" in refused(path, Reason.TRUNCATED)
    raw[3_000_000] ^= 1
    path.write_bytes(raw)
    assert "DATASUM" in refused(path, Reason.CHECKSUM)


def test_vacuum_is_found_by_the_detector_gap_where_the_header_is_silent(genuine_data, tmp_path):
    air = fits.open(s1d_path(genuine_data))
    path = tmp_path / "x.fits"
    for shift_aa, good in ((0.0, True), (0.3, True), (1.48, False)):
        air[0].header["CRVAL1"] = 3781.73 + shift_aa
        air.writeto(path, overwrite=True)
        if good:
            assert isinstance(read_spectrum(path), SpectrumRecord)
        else:
            assert "1.48 Angstrom" in refused(path, Reason.VACUUM)


# --- damaged copies ----------------------------------------------------------------------------------


def test_the_undamaged_small_files_are_read(tmp_path):
    for path in (write_s1d(tmp_path), write_adp(tmp_path, checksum=True)):
        record = read_spectrum(path)
        assert isinstance(record, SpectrumRecord), record
        np.testing.assert_allclose(record.wave_aa, 6100.0 + 0.01 * np.arange(N), rtol=0, atol=1e-9)
        np.testing.assert_allclose(record.flux, np.linspace(1, 2, N), rtol=1e-6)
        assert np.isnan([record.snr, record.berv_kms, record.airmass, record.ra_deg, record.mjd_obs]).all()
        assert record.dp_id == path.name.removesuffix(".fits")


def test_files_that_are_not_fits(tmp_path):
    path = tmp_path / "x.fits"
    path.write_bytes(b"")
    assert "0 bytes" in refused(path, Reason.NOT_FITS)
    path.write_text("a page that says the file is not there\n")
    refused(path, Reason.NOT_FITS)
    (tmp_path / "folder.fits").mkdir()
    assert "directory" in refused(tmp_path / "folder.fits", Reason.NOT_FITS)
    refused(tmp_path / "absent.fits", Reason.UNREADABLE)


def test_an_unreadable_header_is_a_refusal(tmp_path):
    path = write_s1d(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"BITPIX  =                  -32", b"BITPIX  =                  -33"))
    refused(path, Reason.UNREADABLE)


def test_promises_are_checked_before_data_are_read(tmp_path, monkeypatch):
    path = write_s1d(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"NAXIS1  =                 4000", b"NAXIS1  =         999999999999"))
    assert "999999999999" in refused(path, Reason.TOO_LARGE)
    bomb = tmp_path / "bomb.fits.gz"
    monkeypatch.setattr("harps_dist.formats.packing.MAX_BYTES", 10**6)
    bomb.write_bytes(gzip.compress(write_s1d(tmp_path, name="y.fits").read_bytes() + bytes(2 * 10**6)))
    refused(bomb, Reason.TOO_LARGE)


def test_no_spectrum(tmp_path):
    refused(write_s1d(tmp_path, np.ones((4, N), np.float32), "e2ds.fits"), Reason.NO_SPECTRUM)
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    refused(tmp_path / "empty.fits", Reason.NO_SPECTRUM)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones(9))]).writeto(tmp_path / "image.fits")
    refused(tmp_path / "image.fits", Reason.NO_SPECTRUM)
    rows = fits.BinTableHDU.from_columns([fits.Column(name, "D", array=np.ones(9)) for name in ("WAVE", "FLUX")])
    fits.HDUList([fits.PrimaryHDU(), rows]).writeto(tmp_path / "rows.fits")
    assert "9 rows" in refused(tmp_path / "rows.fits", Reason.NO_SPECTRUM)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": ("LAMBDA", "FLUX", "ERR")}, Reason.MISSING_COLUMN),
        ({"names": ("WAVE", "COUNTS", "ERR")}, Reason.MISSING_COLUMN),
        ({"unit": "nm"}, Reason.WRONG_UNIT),
        ({"unit": None, "wave": 610.0 + 0.001 * np.arange(N)}, Reason.WRONG_UNIT),
        ({"SPECSYS": "TOPOCENT"}, Reason.WRONG_FRAME),
        ({"procsoft": "espdr/3.0"}, Reason.VACUUM),
        ({"wave": 6100.0 - 0.01 * np.arange(N)}, Reason.NOT_INCREASING),
        ({"wave": np.r_[6100.0, 6100.0 + 0.01 * np.arange(N - 1)]}, Reason.NOT_INCREASING),
        ({"wave": np.r_[np.nan, 6100.0 + 0.01 * np.arange(N - 1)]}, Reason.NOT_INCREASING),
        ({"wave": 6100.0 + 0.01 * np.arange(N - 1)}, Reason.LENGTH_MISMATCH),
        ({"flux": np.full(N, np.nan)}, Reason.NO_FINITE_FLUX),
        ({"flux": np.zeros(N)}, Reason.ALL_ZERO),
        ({"flux": -np.linspace(1, 2, N)}, Reason.NEGATIVE),
    ],
)
def test_a_bad_table_is_refused_with_its_reason(tmp_path, change, reason):
    refused(write_adp(tmp_path, **change), reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"CRVAL1": None}, Reason.MISSING_FIELD),
        ({"CDELT1": 0.0}, Reason.NOT_INCREASING),
        ({"CRVAL1": 610.0, "CDELT1": 0.001, "CTYPE1": None}, Reason.WRONG_UNIT),
        ({"CUNIT1": "nm"}, Reason.WRONG_UNIT),
        ({"CTYPE1": "WAVE"}, Reason.VACUUM),
        ({"SPECSYS": "TOPOCENT"}, Reason.WRONG_FRAME),
        ({"INSTRUME": "HARPN"}, Reason.WRONG_INSTRUMENT),
        ({"ESO_DPR_CATG": "CALIB"}, Reason.NOT_SCIENCE),
        ({"name": "HARPS.2012-03-24T08:37:45.581_s1d_B.fits"}, Reason.WRONG_FIBRE),
        ({"flux": np.full(N, np.nan, np.float32)}, Reason.NO_FINITE_FLUX),
        ({"flux": np.zeros(N, np.float32)}, Reason.ALL_ZERO),
        ({"flux": np.full(N, -1, np.float32)}, Reason.NEGATIVE),
    ],
)
def test_a_bad_image_is_refused_with_its_reason(tmp_path, change, reason):
    refused(write_s1d(tmp_path, **change), reason)


def test_harmless_variants_are_accepted(tmp_path):
    assert isinstance(read_spectrum(write_adp(tmp_path, names=("wave", "Flux"))), SpectrumRecord)
    (tmp_path / "ADP.fits").unlink()
    air = write_adp(tmp_path, procsoft="espdr/3.0", TUCD1="em.wl;obs.atmos")
    assert isinstance(read_spectrum(air), SpectrumRecord)
    record = read_spectrum(write_s1d(tmp_path, CTYPE1="AWAV", CUNIT1="Angstrom", CRPIX1=11.0, SPECSYS="BARYCENT"))
    assert record.wave_aa[10] == pytest.approx(6100.0)


def test_infinite_flux_becomes_nan_and_the_rest_stays(tmp_path):
    flux = np.ones(N, np.float32)
    flux[7], flux[8] = np.inf, np.nan
    record = read_spectrum(write_s1d(tmp_path, flux))
    assert np.isnan(record.flux[7:9]).all()
    assert np.isfinite(record.flux).sum() == N - 2


# --- header values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "single", "expected"),
    [
        (1.2, 1.4, 1.9, 1.3),
        (1.2, None, 1.9, 1.2),
        (None, 1.4, 1.9, 1.4),
        (0.0, 1.4, None, 1.4),
        (None, None, 1.9, 1.9),
        (None, None, 0.5, np.nan),
        (None, None, None, np.nan),
    ],
)
def test_airmass(tmp_path, start, end, single, expected):
    path = write_s1d(tmp_path, ESO_TEL_AIRM_START=start, ESO_TEL_AIRM_END=end, AIRMASS=single)
    assert read_spectrum(path).airmass == pytest.approx(expected, nan_ok=True)


def test_absent_nan_and_placeholder_cards_are_missing_values(tmp_path):
    path = write_s1d(tmp_path, ESO_TEL_TARG_RADVEL=-99999.0, ESO_DRS_BERV=12.5, EXPTIME="often", SNR=True)
    path.write_bytes(path.read_bytes().replace(b"12.5", b"NaN "))
    record = read_spectrum(path)
    assert isinstance(record, SpectrumRecord), record
    assert np.isnan([record.radvel_guess_kms, record.berv_kms, record.exptime_s, record.snr]).all()
    assert (record.target_name, record.prog_id, record.pipeline) == ("", "", "HARPS_3.8")


def test_an_object_name_that_is_not_ascii_is_read(tmp_path):
    path = write_s1d(tmp_path, OBJECT="alf Cen")
    path.write_bytes(path.read_bytes().replace(b"alf Cen", b"\xe1lf Cen"))
    record = read_spectrum(path)
    assert isinstance(record, SpectrumRecord), record
    assert record.object.endswith("lf Cen")


def test_signal_to_noise_is_the_median_over_the_orders(tmp_path):
    path = write_s1d(tmp_path, **{f"ESO_DRS_SPE_EXT_SN{order}": value for order, value in enumerate((1, 30, 20.0))})
    assert read_spectrum(path).snr == 20.0


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({}, (229.86175, -7.72228)),  # 15 19 26.82, -07 43 20.2
        ({"ESO_TEL_TARG_ALPHA": None}, (229.8635, -7.7222)),
        ({"ESO_TEL_TARG_EQUINOX": 1950.0}, (229.8635, -7.7222)),
        ({"ESO_TEL_TARG_ALPHA": 0.0, "ESO_TEL_TARG_DELTA": 0.0}, (229.8635, -7.7222)),
        ({"ESO_TEL_TARG_DELTA": -79920.2}, (229.8635, -7.7222)),
        ({"RA": None, "DEC": None}, (229.86175, -7.72228)),
    ],
)
def test_position_is_the_targets_unless_it_cannot_be(tmp_path, cards, expected):
    own = {"RA": 229.8635, "DEC": -7.7222, "ESO_TEL_TARG_ALPHA": 151926.82, "ESO_TEL_TARG_DELTA": -74320.2}
    record = read_spectrum(write_s1d(tmp_path, **(own | cards)))
    assert (record.ra_deg, record.dec_deg) == pytest.approx(expected, abs=1e-5)


# --- folders -----------------------------------------------------------------------------------------


def test_find_spectra_walks_sorted_follows_links_and_survives_loops(tmp_path, tmp_path_factory):
    for name in ("b/2.fits", "a/1.fits.gz", "a/c/3.FIT", "a/notes.txt", "4.fits"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "a" / "up")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "5.fits").touch()
    os.symlink(elsewhere, tmp_path / "disk2")
    found = [path.relative_to(tmp_path).as_posix() for path in find_spectra(tmp_path)]
    assert found == ["4.fits", "a/1.fits.gz", "a/c/3.FIT", "b/2.fits", "disk2/5.fits"]
    assert find_spectra(tmp_path / "4.fits") == [tmp_path / "4.fits"]
    with pytest.raises(FileNotFoundError, match="absent"):
        find_spectra(tmp_path / "absent")
