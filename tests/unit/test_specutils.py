"""HARPS files as specutils objects: found without an import of ours, identified for certain, units and headers kept."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tomllib

import numpy as np
import pytest

pytest.importorskip("specutils", reason="specutils is an extra")

from astropy import units
from astropy.io import fits
from specutils import Spectrum, SpectrumList
from specutils.io.registers import identify_spectrum_format

from harps_dist.errors import ConfigError, SpectrumError
from harps_dist.formats import specutils_loaders
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.specutils_loaders import ADP, S1D
from tests.commands import ROOT, environment


def genuine(folder, kind: str):
    return sorted((folder / "harps").glob({ADP: "ADP.*.fits.gz", S1D: "HARPS.2012-*_s1d_A.fits.gz"}[kind]))[0]


@pytest.fixture
def simulated(tiny_demo):
    return sorted((tiny_demo / "files/spectra").glob("ADP.*.fits"))[0]


@pytest.mark.parametrize("first", ["from specutils import Spectrum", "import astropy.modeling.fitting, numpy"])
def test_reading_works_once_the_package_is_installed(first, simulated, tmp_path):
    """No import of ours: only the entry point that pyproject.toml declares, as an installed package has it. The fitters
    of astropy stay what they are."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["astropy.modeling"]
    installed = tmp_path / "site/harps_stand_in-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: harps_stand_in\nVersion: 1.0\n")
    points = "".join(f"{name} = {target}\n" for name, target in declared.items())
    (installed / "entry_points.txt").write_text(f"[astropy.modeling]\n{points}")
    code = (
        f"import sys, warnings; warnings.simplefilter('error'); {first}\n"
        "from astropy.modeling import fitting\n"
        "assert fitting.LinearLSQFitter.__module__ == 'astropy.modeling.fitting'\n"
        "from specutils import Spectrum\n"
        "spectrum = Spectrum.read(sys.argv[1])\n"
        "print(spectrum.meta['dp_id'], spectrum.flux.unit)"
    )
    paths = environment() | {"PYTHONPATH": f"{installed.parent}:{ROOT}"}
    read = [sys.executable, "-c", code, str(simulated)]
    done = subprocess.run(read, env=paths, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [simulated.name.removesuffix(".fits"), "adu"], done.stderr[-2000:]


@pytest.mark.parametrize("kind", [ADP, S1D])
def test_a_genuine_file_keeps_units_frame_and_header(kind, genuine_data):
    path = genuine(genuine_data, kind)
    spectrum, header = Spectrum.read(path), fits.getheader(path)
    assert (spectrum.flux.unit, spectrum.spectral_axis.unit) == (units.adu, units.AA)
    assert (spectrum.meta["medium"], spectrum.meta["frame"]) == ("air", "barycentric")
    assert spectrum.meta["object"] == header["OBJECT"]
    assert spectrum.meta["mjd"] == header["MJD-OBS"]
    assert spectrum.meta["berv_kms"] == header["HIERARCH ESO DRS BERV"]
    assert spectrum.meta["exptime"] == header["EXPTIME"] * units.s
    assert spectrum.meta["pipeline"] == header["HIERARCH ESO DRS VERSION"]
    assert spectrum.meta["dp_id"] == path.name.removesuffix(".fits.gz")
    assert spectrum.radial_velocity == 0 * units.km / units.s
    if kind == ADP:
        row = fits.getdata(path, 1)[0]
        wave_aa, flux = row["WAVE"], row["FLUX"]
    else:
        flux = fits.getdata(path)
        wave_aa = header["CRVAL1"] + header["CDELT1"] * np.arange(len(flux))
    np.testing.assert_array_equal(spectrum.spectral_axis.value, wave_aa)
    np.testing.assert_array_equal(spectrum.flux.value, flux.astype(np.float32))
    assert spectrum.uncertainty is None  # neither product has one
    empty = spectrum.spectral_axis.value[spectrum.mask]
    assert len(empty) > 3000
    assert ((empty > 5303) & (empty < 5339)).all()  # the detector gap


def test_photon_noise_on_request_is_that_of_the_header(genuine_data):
    path = genuine(genuine_data, S1D)
    spectrum = Spectrum.read(path, uncertainty="photon")
    median = np.median(spectrum.flux[~spectrum.mask])
    near = ~spectrum.mask & (np.abs(spectrum.flux / median - 1) < 0.1)
    noise = np.median(spectrum.uncertainty.quantity[near] / median)
    assert 0.8 < noise * spectrum.meta["snr"] < 1.25
    assert np.isnan(spectrum.uncertainty.array[spectrum.mask]).all()
    with pytest.raises(ConfigError, match="'none' or 'photon'"):
        Spectrum.read(path, uncertainty="poisson")


@pytest.mark.parametrize("gzipped", [False, True])
def test_paths_open_files_lists_and_named_formats_give_the_same(gzipped, simulated, tmp_path):
    path = tmp_path / (simulated.name + (".gz" if gzipped else ""))
    path.write_bytes(gzip.compress(simulated.read_bytes()) if gzipped else simulated.read_bytes())
    with path.open("rb") as stream:
        found = [Spectrum.read(path), Spectrum.read(str(path)), Spectrum.read(path, format=ADP), Spectrum.read(stream)]
    found += SpectrumList.read(path)
    record = read_spectrum(simulated)
    for spectrum in found:
        np.testing.assert_array_equal(spectrum.flux.value, record.flux)
        assert spectrum.meta["dp_id"] == record.dp_id
        assert spectrum.meta["snr"] == record.snr
        assert spectrum.meta["airmass"] == record.airmass


def test_exactly_one_of_our_loaders_claims_a_file_and_it_comes_first(simulated, genuine_data):
    for path, kind in ((simulated, ADP), (genuine(genuine_data, ADP), ADP), (genuine(genuine_data, S1D), S1D)):
        formats = set(np.atleast_1d(identify_spectrum_format(str(path))))
        assert formats > {kind}  # a general one claims it too
        assert {ADP, S1D} & formats == {kind}
        assert Spectrum.read(path).meta["product"] == {ADP: "ADP", S1D: "s1d"}[kind]


def image(name: str, **cards):
    def write(folder):
        hdu = fits.PrimaryHDU(np.ones(500, np.float32))
        hdu.header.update({"CRVAL1": 5000.0, "CDELT1": 0.01, "INSTRUME": "HARPS"} | cards)
        hdu.writeto(folder / name)
        return folder / name

    return write


def table(**cards):
    def write(folder):
        hdu = fits.BinTableHDU.from_columns([fits.Column("WAVE", "3D", array=[[1, 2, 3]])])
        primary = fits.PrimaryHDU()
        primary.header.update({"INSTRUME": "HARPS", "PRODCATG": "SCIENCE.SPECTRUM"} | cards)
        fits.HDUList([primary, hdu]).writeto(folder / "table.fits")
        return folder / "table.fits"

    return write


@pytest.mark.parametrize(
    ("write", "claimed"),
    [
        (image("HARPS.2012-03-24T08:37:45.581_s1d_A.fits"), {S1D}),
        (image("renamed.fits"), {S1D}),
        (image("HARPS.2012-03-24T08:37:45.581_s1d_B.fits"), set()),  # the sky
        (image("a.fits", INSTRUME="UVES"), set()),
        (image("a.fits", INSTRUME="HARPN"), set()),
        (image("bis.fits", CRVAL1=-20.0), set()),  # an axis of velocities
        (table(), {ADP}),
        (table(INSTRUME="FEROS"), set()),
        (table(PRODCATG="SCIENCE.CUBE.IFS"), set()),
    ],
)
def test_files_of_others_are_left_to_others(write, claimed, tmp_path):
    path = write(tmp_path)
    assert {ADP, S1D} & set(np.atleast_1d(identify_spectrum_format(str(path)))) == claimed


def test_what_is_no_fits_file_is_not_claimed_and_not_tripped_over(tmp_path):
    for content in (b"", b"SIMPLE", gzip.compress(b"SIMPLE  =" + b" " * 5000)[:40], b"SIMPLE  =" + b" " * 2871):
        (tmp_path / "a.fits").write_bytes(content)
        assert not {ADP, S1D} & set(np.atleast_1d(identify_spectrum_format(str(tmp_path / "a.fits"))))


def test_identifying_reads_the_first_kilobytes_alone(genuine_data):
    path = genuine(genuine_data, ADP)

    class Counted:
        def __init__(self, stream):
            self.stream, self.read_bytes, self.seek = stream, 0, stream.seek

        def read(self, count):
            self.read_bytes += count
            return self.stream.read(count)

    with gzip.open(path) as stream:
        counted = Counted(stream)
        assert specutils_loaders.identify_adp("read", None, counted)
        assert counted.read_bytes < 20_000
        assert stream.tell() == 0


def test_a_refusal_is_an_error_with_its_reason(simulated, tmp_path):
    path = tmp_path / "cut.fits"
    path.write_bytes(simulated.read_bytes()[:-5760])
    with pytest.raises(SpectrumError, match=r"cut\.fits: truncated \(.*the file ends at"):
        Spectrum.read(path)


@pytest.mark.parametrize("kind", [{}, {"format": ADP}])
def test_an_open_hdulist_is_read_as_its_file_is(kind, simulated):
    with fits.open(simulated) as hdus:
        found = Spectrum.read(hdus, **kind)
        assert hdus[0].header["INSTRUME"] == "HARPS"  # it stays open
    expected = Spectrum.read(simulated)
    np.testing.assert_array_equal(found.flux.value, expected.flux.value)
    assert found.meta["dp_id"] == expected.meta["dp_id"]
    assert found.meta["source"] == simulated.name


def test_an_open_hdulist_of_an_image_is_claimed_by_its_loader_and_refused_by_name(tmp_path):
    path = image("HARPS.2012-03-24T08:37:45.581_s1d_A.fits")(tmp_path)
    with fits.open(path) as hdus:
        assert specutils_loaders.identify_s1d("read", None, None, hdus)
        assert not specutils_loaders.identify_adp("read", None, None, hdus)
        hdus[0].header["INSTRUME"] = "HARPN"
        assert not specutils_loaders.identify_s1d("read", None, None, hdus)
        with pytest.raises(SpectrumError, match="HARPN"):
            Spectrum.read(hdus, format=S1D)


def test_errors_and_units_of_a_newer_product_are_kept(tmp_path):
    from harps_dist.formats.specutils_loaders import NEWER
    from tests.unit.test_newer_products import write

    for kind, name, unit in (
        ("S1D_A", NEWER, units.electron),
        ("S1D_FLUXCAL_A", NEWER, units.erg / units.s / units.cm**2 / units.AA),
    ):
        path = write(tmp_path / f"{kind}.fits", kind)
        formats = set(np.atleast_1d(identify_spectrum_format(str(path))))
        assert {ADP, S1D, NEWER} & formats == {name}
        spectrum = Spectrum.read(path)
        assert spectrum.flux.unit == unit
        np.testing.assert_allclose(spectrum.uncertainty.array, spectrum.flux.value / 80, rtol=1e-6)
        assert Spectrum.read(path, uncertainty="none").uncertainty is None
        assert spectrum.meta["product"] == kind
