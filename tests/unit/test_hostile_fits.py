"""FITS files that promise what cannot be, and numbers in them that cannot be: refused at once, or missing and said."""

from __future__ import annotations

import gzip
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harps_dist.errors import ConfigError
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import Reason, Refusal
from harps_dist.formats.sed import SedRecord, read_sed, write_sed
from harps_dist.formats.tables import read_table
from harps_dist.spectra.quantities import in_range
from preprocessing.ingest import SpectrumRecord

N = 400
WAVE_AA = 6100.0 + 0.01 * np.arange(N)
FLUX = np.linspace(1, 2, N, dtype=np.float32)
SECONDS = 10.0  # of the processor, within which a hostile file is refused; most take milliseconds

CARDS = {  # of both products, and the quantities that they become
    "MJD-OBS": ("mjd", 55000.5),
    "EXPTIME": ("exptime", 300.0),
    "SNR": ("snr", 100.0),
    "RA": ("ra", 219.9),
    "DEC": ("dec", -60.8),
    "ESO DRS BERV": ("berv", 12.0),
    "ESO TEL AIRM START": ("airmass", 1.25),
    "ESO TEL TARG RADVEL": ("radvel_guess", -22.0),
}
FIELD = {name: {"mjd": "mjd_obs", "exptime": "exptime_s", "snr": "snr", "ra": "ra_deg", "dec": "dec_deg",
                "berv": "berv_kms", "airmass": "airmass", "radvel_guess": "radvel_guess_kms"}[name]
         for name, _ in CARDS.values()}  # fmt: skip
TEXTS = ("NaN", "INF", "-INF", "1E308", "1E400", "-1E308", "-1", "''", "'text'", "T", "0", "9" * 60, "", "(1,2)")


def write_s1d(path: Path, flux: np.ndarray = FLUX) -> Path:
    header = fits.Header([("CRVAL1", 6100.0), ("CDELT1", 0.01), ("CRPIX1", 1.0), ("OBJECT", "HD1")])
    header["HIERARCH ESO DRS VERSION"] = "HARPS_3.8"
    _add(header)
    fits.PrimaryHDU(flux, header).writeto(path, overwrite=True)
    return path


def write_adp(path: Path, flux: np.ndarray = FLUX, wave: np.ndarray = WAVE_AA, kind: str = "E") -> Path:
    primary = fits.PrimaryHDU()
    primary.header["PROCSOFT"] = "HARPS_3.5"
    _add(primary.header)
    columns = [
        fits.Column("WAVE", f"{len(wave)}D", "Angstrom", array=[wave]),
        fits.Column("FLUX", f"{len(flux)}{kind}", array=[flux]),
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.header["TUCD1"] = "em.wl;obs.atmos"
    fits.HDUList([primary, table]).writeto(path, overwrite=True)
    return path


def _add(header: fits.Header) -> None:
    for key, (_, value) in CARDS.items():
        header[f"HIERARCH {key}" if " " in key else key] = value


def write_model(path: Path, flux: np.ndarray = FLUX, wave: np.ndarray = WAVE_AA) -> Path:
    write_sed(path, wave, flux, 5000.0, 4.5, 0.0, 2.0)
    return path


WRITERS: dict[str, Callable[..., Path]] = {"s1d": write_s1d, "adp": write_adp, "sed": write_model}


def read(kind: str, path: Path) -> SpectrumRecord | SedRecord | Refusal:
    """What a reader says, within the time that a hostile file may take."""
    begun = time.process_time()
    found = read_sed(path) if kind == "sed" else read_spectrum(path)
    assert time.process_time() - begun < SECONDS
    if isinstance(found, Refusal):
        assert found.detail
        assert found.detail.isprintable()
        assert found.reason != Reason.UNEXPECTED, found
    return found


def with_card(path: Path, key: str, text: str, hdu: int = 0) -> Path:
    """The file with the value of one card overwritten by any text, as no library would write it."""
    raw = bytearray(path.read_bytes())
    start = 0 if hdu == 0 else raw.index(b"XTENSION")
    wanted = f"HIERARCH {key} " if " " in key else f"{key:<8}="
    place = raw.index(wanted.encode(), start)
    assert (place - start) % 80 == 0
    raw[place : place + 80] = f"{wanted.rstrip('=')}= {text}".encode("latin-1").ljust(80)[:80]
    path.write_bytes(raw)
    return path


# --- numbers in headers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["s1d", "adp"])
@pytest.mark.parametrize("key", CARDS)
def test_a_header_value_that_cannot_be_is_missing_and_named(kind, key, tmp_path):
    name, good = CARDS[key]
    path = WRITERS[kind](tmp_path / "x.fits")
    assert getattr(read(kind, path), FIELD[name]) == good
    assert read(kind, path).out_of_range == ()
    for text in TEXTS:
        record = read(kind, with_card(path, key, text))
        assert isinstance(record, SpectrumRecord), (text, record)
        for quantity, field in FIELD.items():
            value = getattr(record, field)
            assert math.isnan(value) or in_range(quantity, value), (text, field, value)
        number = not text.startswith(("N", "I", "-I", "'", "T", "(")) and text
        placeholder = name == "radvel_guess" and text == "-1E308"
        lies_outside = bool(number) and not in_range(name, float(text)) and not placeholder
        assert record.out_of_range == ((name,) if lies_outside else ()), text


@pytest.mark.parametrize(
    ("key", "text"),
    [(key, text) for key in ("CRVAL1", "CDELT1", "CRPIX1") for text in TEXTS],
)
def test_an_axis_that_cannot_be_is_refused(key, text, tmp_path):
    found = read("s1d", with_card(write_s1d(tmp_path / "x.fits"), key, text))
    if isinstance(found, SpectrumRecord):
        assert key == "CRPIX1"
        assert 3000 < found.wave_aa[0] < found.wave_aa[-1] < 11000


@pytest.mark.parametrize("key", ["TEFF", "LOGG", "MH", "VMIC"])
def test_a_model_with_a_label_that_no_star_has_is_refused(key, tmp_path):
    path = write_model(tmp_path / "x.fits")
    for text in TEXTS:
        found = read("sed", with_card(path, key, text, hdu=1))
        zero_is_fine = text == "0" and key != "TEFF"
        minus_one_is_fine = text == "-1" and key in ("MH", "LOGG")
        if zero_is_fine or minus_one_is_fine:
            assert isinstance(found, SedRecord), found
        else:
            assert isinstance(found, Refusal), (key, text)
            assert found.reason in (Reason.MISSING_FIELD, Reason.OUT_OF_RANGE), found


NODE = {"teff_k": 5000.0, "logg": 4.5, "mh": 0.0, "vmic_kms": 2.0, "wave0_aa": 6100.0, "step_aa": 0.01,
        "log_flux_offset": 1.0, "log_flux_scale": 1e-5, "log_flux_u16": np.arange(N, dtype=np.uint16)}  # fmt: skip
ODD = (math.nan, math.inf, -math.inf, 1e308, -1e308, "", "text", True, b"x", np.array([]), np.ones(3), 1j, -1e4)


@pytest.mark.parametrize("name", NODE)
def test_a_node_of_a_library_with_a_number_that_cannot_be_is_refused(name, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **NODE)
    assert isinstance(read("sed", path), SedRecord)
    for value in ODD:
        np.savez(path, **(NODE | {name: value}))
        assert isinstance(read("sed", path), Refusal), (name, value)
    np.savez(path, **(NODE | {name: np.array([{}], object)}), allow_pickle=True)
    assert isinstance(read("sed", path), Refusal)


def test_bombs_in_npz_files_are_not_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **(NODE | {"log_flux_u16": np.zeros(10**8, np.uint16)}))
    assert read("sed", path).reason == Reason.TOO_LARGE
    np.savez(path, **NODE)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"'shape': (400,)", b"'shape': (9**9,)".ljust(15)[:15]))
    assert isinstance(read("sed", path), Refusal)
    path.write_bytes(raw.replace(b"'shape': (400,), }", b"'shape': (4000000000000,)}"[:18].ljust(18)))
    assert isinstance(read("sed", path), Refusal)


# --- flux --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-16])
@pytest.mark.parametrize("value", [1e38, -1e38, 1e308, -1e308, 1e200, np.inf, np.nan])
def test_one_wild_pixel_is_missing_at_any_scale_of_the_flux(scale, value, tmp_path):
    flux = np.linspace(1, 2, N) * scale
    flux[7] = value
    record = read("adp", write_adp(tmp_path / "x.fits", flux, kind="D"))
    assert np.flatnonzero(np.isnan(record.flux)).tolist() == [7]
    assert record.wild == (1 / N if np.isfinite(value) else 0)
    bright = np.where(np.arange(N) == 7, 3000 * scale, flux)  # a hit, as genuine files have them
    assert read("adp", write_adp(tmp_path / "x.fits", bright, kind="D")).wild == 0


@pytest.mark.parametrize("value", [1e25, 1e-30, 1e308, 1e-320])
def test_a_spectrum_of_no_scale_is_refused(value, tmp_path):
    for kind in ("adp", "sed"):
        path = tmp_path / "x.fits"
        if kind == "adp":
            write_adp(path, np.full(N, value), kind="D")
        else:
            with np.errstate(over="ignore", under="ignore"):
                write_model(path, np.full(N, value))
        assert isinstance(read(kind, path), Refusal)


def test_steps_that_no_spectrograph_makes_are_refused(tmp_path):
    wave = np.linspace(3785, 6910, N)
    assert read("adp", write_adp(tmp_path / "x.fits", wave=wave)).reason == Reason.OUT_OF_RANGE


# --- structure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("NAXIS", "999"),
        ("NAXIS", "-1"),
        ("NAXIS", "T"),
        ("NAXIS", "'1'"),
        ("NAXIS", "1.5"),
        ("NAXIS1", "999999999999999999"),
        ("NAXIS1", "9" * 40),
        ("NAXIS1", "-5"),
        ("BITPIX", "0"),
        ("BITPIX", "7"),
        ("BITPIX", "-9223372036854775808"),
        ("BITPIX", "NaN"),
        ("NAXIS2", "999999999999"),
        ("PCOUNT", "999999999999999"),
        ("PCOUNT", "-8"),
        ("GCOUNT", "-1"),
        ("GCOUNT", "999999999999999"),
        ("TFIELDS", "999999999"),
        ("TFIELDS", "-3"),
        ("TFIELDS", "1000"),
        ("TFORM1", "'999999999999D'"),
        ("TFORM1", "'1PD(999999999)'"),
        ("TFORM1", "'400C'"),
        ("TFORM1", "'3200A'"),
        ("TFORM1", "''"),
        ("TFORM2", "'400L'"),
        ("TFORM2", "'999999999X'"),
    ],
)
def test_a_structure_that_cannot_be_is_refused_at_once(key, text, tmp_path):
    for kind in ("s1d", "adp", "sed") if key in ("NAXIS", "NAXIS1", "BITPIX") else ("adp", "sed"):
        path = with_card(WRITERS[kind](tmp_path / "x.fits"), key, text, hdu=0 if kind == "s1d" else 1)
        assert isinstance(read(kind, path), Refusal), kind


@pytest.mark.parametrize("kind", WRITERS)
def test_a_card_of_structure_that_stands_elsewhere_counts_too(kind, tmp_path):
    """TFIELDS as the last card, or a second one with another value."""
    path = WRITERS[kind](tmp_path / "x.fits")
    raw = path.read_bytes()
    start = raw.rindex(b"XTENSION") if kind != "s1d" else 0
    end = raw.index(b"END".ljust(80), start)
    path.write_bytes(raw[:end] + b"TFIELDS =            999999999".ljust(80) + raw[end:-80])
    assert isinstance(read(kind, path), Refusal)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("card", [b"CONTINUE  'x&'", b"HIERARCH ESO A = 1", b"\xff"], ids=["long", "same", "bytes"])
def test_headers_without_end_are_refused_and_long_ones_read_in_time(kind, card, tmp_path):
    path = WRITERS[kind](tmp_path / "x.fits")
    raw = path.read_bytes()
    start = raw.rindex(b"XTENSION") if kind != "s1d" else 0
    end = raw.index(b"END".ljust(80), start)
    path.write_bytes(raw[:end] + card.ljust(80) * 1_250_000)  # 100 MB
    assert isinstance(read(kind, path), Refusal)
    more = 36 * 400
    path.write_bytes(raw[:end] + card.ljust(80) * more + raw[end:])
    read(kind, path)  # as it may, but in time


@pytest.mark.parametrize("kind", WRITERS)
def test_thousands_of_hdus_are_not_looked_at(kind, tmp_path):
    path = WRITERS[kind](tmp_path / "x.fits")
    extra = b"XTENSION= 'IMAGE   '".ljust(80) + b"BITPIX  =   8".ljust(80) + b"NAXIS   =   0".ljust(80)
    extra = (extra + b"PCOUNT  = 0".ljust(80) + b"GCOUNT  = 1".ljust(80) + b"END".ljust(80)).ljust(2880)
    path.write_bytes(path.read_bytes() + extra * 20_000)
    assert not isinstance(read(kind, path), Refusal)


@pytest.mark.parametrize("kind", WRITERS)
def test_bombs_are_refused_in_time(kind, tmp_path):
    path = WRITERS[kind](tmp_path / "x.fits")
    path.write_bytes(gzip.compress(path.read_bytes() + bytes(130 * 2**20), 1))
    assert read(kind, path).reason == Reason.TOO_LARGE
    with path.open("wb") as file:  # a sparse file of a terabyte
        file.write(b"SIMPLE  =                    T")
        os.truncate(file.fileno(), 2**40)
    assert read(kind, path).reason == Reason.TOO_LARGE


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", WRITERS)
def test_pipes_are_not_waited_for(kind, tmp_path):
    os.mkfifo(tmp_path / "x.fits")
    assert isinstance(read(kind, tmp_path / "x.fits"), Refusal)


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_never_raise_and_never_let_a_number_through(kind, data, tmp_path):
    raw = bytearray(WRITERS[kind](tmp_path / f"{kind}.fits").read_bytes())
    headers = [place for place in range(min(len(raw), 8640)) if raw[place] != 32] or [0]
    for place in data.draw(st.lists(st.sampled_from(headers) | st.integers(0, len(raw) - 1), max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    (tmp_path / "x.fits").write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    found = read(kind, tmp_path / "x.fits")
    if isinstance(found, SpectrumRecord):
        for quantity, field in FIELD.items():
            value = getattr(found, field)
            assert math.isnan(value) or in_range(quantity, value)
        median = np.nanmedian(found.flux)
        assert not (np.abs(found.flux) > 1e5 * median).any()
    elif isinstance(found, SedRecord):
        assert in_range("teff", found.teff_k)
        assert np.isfinite(found.flux).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), name=st.sampled_from(["x.fits", "x.npz"]))
def test_any_bytes_are_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    read("sed", tmp_path / name)
    read("s1d", tmp_path / name)
    (tmp_path / name).write_bytes(b"SIMPLE  =" + content)
    read("s1d", tmp_path / name)


@pytest.mark.parametrize("text", ["999999999", "-1", "T"])
def test_tables_in_fits_pass_the_same_gate(text, tmp_path):
    fits.BinTableHDU.from_columns([fits.Column("teff", "E", array=[5000.0])]).writeto(tmp_path / "t.fits")
    begun = time.process_time()
    with pytest.raises(ConfigError, match="TFIELDS"):
        read_table(with_card(tmp_path / "t.fits", "TFIELDS", text, hdu=1), "table", ConfigError)
    assert time.process_time() - begun < SECONDS
