"""SED grid, air and vacuum, telluric lines, the simulated instrument, and the demo's spectra."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest

from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import Reason, Refusal
from harps_dist.formats.sed import ASSET, SedGrid, interpolate_sed, read_sed, write_sed
from harps_dist.spectra.medium import air_to_vacuum, vacuum_to_air
from harps_dist.spectra.microturbulence import realistic_vmic
from preprocessing.simulator.atmosphere import Atmosphere
from preprocessing.simulator.demo_files import barycentric_velocity, expose, write_demo
from preprocessing.simulator.instrument import ORDERS, blaze, observe, order_wave_aa, orders_covering
from preprocessing.simulator.visits import Star, Visit

C_KMS = 299_792.458
WINDOW = orders_covering(5990, 6318)


@pytest.fixture(scope="module")
def grid() -> SedGrid:
    return SedGrid.packaged()


# --- air and vacuum


def test_mixing_air_and_vacuum_is_an_error_of_83_to_85_km_s():
    wave = np.linspace(3785, 6910, 500)
    shift_kms = (air_to_vacuum(wave) / wave - 1) * C_KMS
    assert round(shift_kms.min()) == 83
    assert round(shift_kms.max()) == 85


def test_air_to_vacuum_inverts_vacuum_to_air():
    wave = np.linspace(3785, 6910, 500)
    np.testing.assert_allclose(vacuum_to_air(air_to_vacuum(wave)), wave, rtol=1e-13)


def test_sodium_d2_in_air_and_vacuum():
    assert air_to_vacuum(5889.950) == pytest.approx(5891.583, abs=2e-3)  # NIST


# --- SEDs


def test_grid_nodes_are_reproduced(grid: SedGrid):
    with np.load(ASSET) as asset:
        components = asset["components_i16"] * asset["component_scale"][:, None]
        for i, j, k in ((0, 0, 0), (7, 2, 3), (16, 3, 4)):
            expected = np.exp(asset["log_flux_mean"] + asset["coefficients"][i, j, k] @ components)
            got = grid.sample(asset["teff_k"][i], asset["logg"][j], asset["mh"][k])[0]
            np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_grid_interpolates_smoothly_and_vectorised(grid: SedGrid):
    teff = np.array([5600.0, 5625.0, 5650.0])
    flux = grid.sample(teff, 4.4, -0.1)
    assert flux.shape == (3, grid.wave_aa.size)
    assert flux.dtype == np.float32
    middle = np.abs(flux[1] / np.sqrt(flux[0] * flux[2]) - 1)
    assert middle.max() < 2e-3
    np.testing.assert_allclose(grid.sample(5625.0, 4.4, -0.1)[0], flux[1], rtol=1e-5)


def test_grid_refuses_to_extrapolate(grid: SedGrid):
    with pytest.raises(ValueError, match="teff_k 8500"):
        grid.sample(8500.0, 4.4, 0.0)
    with pytest.raises(ValueError, match=r"vmic_kms 2.6..2.6 leaves the SED grid's 0.5..2.5"):
        grid.sample(5000.0, 4.4, 0.0, 2.6)


def test_microturbulence_changes_log_flux_linearly_and_not_at_2_km_s(grid: SedGrid):
    calm, middle, usual, none = (np.log(grid.sample(5800.0, 4.4, 0.1, *vmic)[0]) for vmic in ((1,), (1.5,), (2,), ()))
    np.testing.assert_array_equal(usual, none)
    np.testing.assert_allclose(middle, (calm + usual) / 2, atol=1e-5)
    assert (calm - usual).max() > 0.1  # calmer stars have weaker lines


def test_microturbulence_is_held_above_7000_k(grid: SedGrid):
    changes = [np.log(grid.sample(teff, 4.0, -0.2, 1.0) / grid.sample(teff, 4.0, -0.2))[0] for teff in (7000.0, 7900.0)]
    np.testing.assert_allclose(*changes, atol=1e-5)


def test_microturbulence_is_that_of_the_synthesised_nodes(grid: SedGrid, genuine_data):
    with np.load(genuine_data / "sed_vmic_5985_6323.npz") as nodes:
        for i, j, k in ((0, 0, 0), (3, 1, 2), (6, 2, 1)):
            labels = nodes["teff_k"][i], nodes["logg"][j], nodes["mh"][k]
            change = np.log(grid.sample(*labels, 1.0) / grid.sample(*labels))[0]
            assert np.std(change - nodes["delta_log_flux"][i, j, k].astype(np.float32)) < 5e-4


def test_realistic_microturbulence():
    assert realistic_vmic(5777.0, 4.44, 0.0) == pytest.approx(1.05 + 0.0695 + 0.0115 - 0.0616 - 0.00097, abs=1e-3)
    assert realistic_vmic(4000.0, 4.5, 0.0) == realistic_vmic(5000.0, 4.5, 0.0)
    assert realistic_vmic(6500.0, 4.2, 0.0) > realistic_vmic(5500.0, 4.2, 0.0)


def test_grid_agrees_with_the_full_library(grid: SedGrid, genuine_data):
    node = read_sed(genuine_data / "sed_full" / "t5000_g5.00_m-0.4.npz")
    assert (node.teff_k, node.logg, node.mh, node.vmic_kms) == (5000.0, 5.0, -0.4, 2.0)
    ratio = grid.sample(5000.0, 5.0, -0.4)[0] / interpolate_sed(node.wave_aa, node.flux, grid.wave_aa)
    assert ratio.mean() == pytest.approx(1, abs=1e-4)
    assert ratio.std() < 1e-3


def test_sed_file_round_trip(grid: SedGrid, tmp_path):
    flux = grid.sample(4321.0, 4.5, -0.3)[0]
    write_sed(tmp_path / "a.fits", grid.wave_aa, flux, 4321.0, 4.5, -0.3, 2.0)
    record = read_sed(tmp_path / "a.fits")
    assert (record.sed_id, record.source) == ("a", "a.fits")
    assert (record.teff_k, record.logg, record.mh, record.vmic_kms) == (4321.0, 4.5, -0.3, 2.0)
    np.testing.assert_array_equal(record.flux, flux)
    np.testing.assert_array_equal(record.wave_aa, grid.wave_aa)
    assert [path.name for path in tmp_path.iterdir()] == ["a.fits"]


def test_sed_refusals(grid: SedGrid, tmp_path):
    from astropy.io import fits

    flux = np.ones(grid.wave_aa.size, np.float32)
    write_sed(tmp_path / "vacuum.fits", grid.wave_aa, flux, 5000.0, 4.5, 0.0, 2.0)
    fits.setval(tmp_path / "vacuum.fits", "TUCD1", value="em.wl", ext=1)
    write_sed(tmp_path / "unlabelled.fits", grid.wave_aa, flux, 5000.0, 4.5, 0.0, 2.0)
    fits.delval(tmp_path / "unlabelled.fits", "LOGG", ext=1)
    write_sed(tmp_path / "negative.fits", grid.wave_aa, -flux, 5000.0, 4.5, 0.0, 2.0)
    write_sed(tmp_path / "unordered.fits", grid.wave_aa[::-1], flux, 5000.0, 4.5, 0.0, 2.0)
    (tmp_path / "text.fits").write_text("not a FITS file")
    (tmp_path / "text.npz").write_text("not a library node")
    np.savez(tmp_path / "other.npz", teff_k=5000.0)
    expected = {
        "vacuum.fits": Reason.VACUUM,
        "unlabelled.fits": Reason.MISSING_FIELD,
        "negative.fits": Reason.NO_FINITE_FLUX,
        "unordered.fits": Reason.NOT_INCREASING,
        "text.fits": Reason.UNREADABLE,
        "text.npz": Reason.UNREADABLE,
        "other.npz": Reason.MISSING_FIELD,
        "absent.fits": Reason.NO_SED,
    }
    for name, reason in expected.items():
        got = read_sed(tmp_path / name)
        assert isinstance(got, Refusal), name
        assert (got.source, got.reason) == (name, reason)


# --- atmosphere


def test_transmission_follows_airmass_and_water():
    atmosphere = Atmosphere.packaged()
    wave = np.arange(6270, 6330, 0.01)
    thin, thick = atmosphere.transmission(wave, 1.0, 2.0), atmosphere.transmission(wave, 2.0, 2.0)
    wet = atmosphere.transmission(wave, 1.0, 20.0)
    assert 0 < thick.min() < thin.min() < thin.max() < 1
    oxygen = np.abs(wave - 6279.1) < 3
    assert np.abs(wet - thin)[~oxygen].max() > 0.1
    assert thick.max() == pytest.approx(thin.max() ** 2, rel=1e-2)  # the continuum follows Beer's law
    assert 1.5 < np.log(thick.min() / thick.max()) / np.log(thin.min() / thin.max()) < 2  # lines saturate


def test_packaged_tellurics_come_from_the_line_lists(genuine_data, tmp_path):
    lists = [genuine_data / "telluric" / f"hitran2020_{name}_espresso_lines.fits" for name in ("H2O", "O2")]
    built = Atmosphere.from_line_lists(*lists, low_aa=6275.0, high_aa=6285.0)
    packaged = Atmosphere.packaged()
    part = np.searchsorted(packaged.wave_aa, 6275.0 - 1e-6) + np.arange(built.wave_aa.size)
    np.testing.assert_allclose(built.o2_depth, packaged.o2_depth[part], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(built.h2o_depth, packaged.h2o_depth[part], rtol=1e-3, atol=1e-6)
    assert built.o2_depth.max() > 1
    built.save(tmp_path / "asset.npz")
    with np.load(tmp_path / "asset.npz") as saved:
        np.testing.assert_array_equal(saved["o2_depth"], built.o2_depth)
        assert saved["wave0_aa"] == 6275.0


def test_packaged_tellurics_agree_with_an_independent_model(genuine_data):
    """Against transmission templates in vacuum, of another code: this also proves our lines are in air."""
    from astropy.io import fits
    from scipy.ndimage import gaussian_filter1d

    ours = Atmosphere.packaged()
    for name, depth in (("O2", ours.o2_depth), ("H2O", 2.2 * ours.h2o_depth)):
        table = fits.getdata(genuine_data / "telluric" / f"viper_{name}_3818-9274A_vac.fits.gz", 1)
        theirs = np.interp(ours.wave_aa, vacuum_to_air(table["wave"].astype(float)), table["flux"])
        smooth, reference = gaussian_filter1d(np.exp(-depth.astype(float)), 5), gaussian_filter1d(theirs, 4)
        assert np.corrcoef(smooth, reference)[0, 1] > 0.99
        assert (1 - smooth).sum() == pytest.approx((1 - reference).sum(), rel=0.05)


# --- instrument


def test_order_layout():
    assert len(ORDERS) == 72
    assert 115 not in ORDERS
    assert WINDOW == (102, 101, 100, 99, 98, 97)
    wave = {m: order_wave_aa(m) for m in ORDERS}
    assert wave[161][0] < 3785
    assert wave[89][-1] > 6900
    overlap = [(wave[m][-1] - wave[n][0]) / np.ptp(wave[m]) for m, n in pairwise(WINDOW)]
    assert min(overlap) > 0.05
    assert (wave[118][-1] - wave[117][0]) / np.ptp(wave[118]) == pytest.approx(0.25, abs=0.1)
    assert wave[116][-1] == pytest.approx(5300.2, abs=0.3)  # either side of the CCD gap
    assert wave[114][0] == pytest.approx(5333.1, abs=0.3)
    assert blaze(100, np.array([6114.0]))[0] == pytest.approx(1)


def test_blaze_matches_public_etc_data(genuine_data):
    """h = blaze · dispersion / largest dispersion of orders 117 (A) and 116 (B) in data of App. A, to 1 %."""
    with np.load(genuine_data / "oracle" / "appendix_a.npz") as oracle:
        wave = float(oracle["wave0_aa"]) + 0.01 * np.arange(oracle["s0_h_A"].size)
        measured = {117: oracle["s0_h_A"][wave < 5254.5], 116: oracle["s0_h_B"][wave < 5300]}
    largest = 1 / 89  # dispersion goes as the central wavelength, that is as 1 / m
    for m, h in measured.items():
        expected = blaze(m, wave[: h.size]) * (1 / m) / largest
        np.testing.assert_allclose(h, expected, rtol=1e-2)


def test_throughput_is_signal_over_sed(grid: SedGrid):
    """T = S / SED must not know the star: S scales with it, and its lines divide out."""
    hot, cool = grid.sample(np.array([7500.0, 4300.0]), 4.4, 0.0)
    for a, b in zip(
        observe(grid.wave_aa, hot, 1.3, 4.0, 6.0, 300.0, WINDOW),
        observe(grid.wave_aa, cool, 1.3, 4.0, 9.0, 300.0, WINDOW),
        strict=True,
    ):
        np.testing.assert_allclose(a.target / a.sed, b.target / b.sed, rtol=1e-9)
        smooth = a.target / a.sed / (a.throughput_total * a.wave_aa * a.dispersion_m_per_px)
        np.testing.assert_allclose(smooth, smooth[0], rtol=1e-9)
        readout = a.nspat * a.nspec * a.ndit * (a.dit_s * a.dark + a.ron**2)
        np.testing.assert_allclose(a.snr, a.target / np.sqrt(a.target + a.sky + readout), rtol=1e-9)
        assert a.detector == "red"


def test_signal_to_noise_of_the_manual():
    """S/N 110 a pixel at 5500 Å for V = 6, 60 s, 1 arcsec, airmass 1.2."""
    wave = np.arange(5400, 5600, 0.01)
    (order,) = observe(wave, np.ones_like(wave), 1.2, 2.5, 6.0, 60.0, orders=(111,))
    assert np.interp(5500, order.wave_aa, order.snr) == pytest.approx(110, rel=0.15)
    assert 0.02 < order.throughput_total.max() < 0.08


def test_stellar_and_telluric_lines_move_apart(grid: SedGrid):
    """A star's lines go with its velocity, telluric lines stay in the observer's frame."""
    flux = grid.sample(5500.0, 4.4, 0.0)[0]
    speed_kms = 40.0
    still = observe(grid.wave_aa, flux, 1.5, 5.0, 6.0, 60.0, WINDOW)
    moved = observe(grid.wave_aa * (1 + speed_kms / C_KMS), flux, 1.5, 5.0, 6.0, 60.0, WINDOW)
    for a, b in zip(still, moved, strict=True):
        np.testing.assert_allclose(a.atmosphere, b.atmosphere)
        inner = slice(200, -200)
        expected = interpolate_sed(a.wave_aa * (1 + speed_kms / C_KMS), a.sed, b.wave_aa[inner])
        beyond = (b.wave_aa[inner] > 5987) & (b.wave_aa[inner] < 6321)
        assert np.abs(b.sed[inner] / expected - 1)[beyond].max() < 2e-3


# --- demo


def test_exposure_reaches_its_signal_to_noise_and_velocities(grid: SedGrid):
    star = Star(1, 2, 10.0, -30.0, 5500.0, 4.4, 0.0, 55.0, frozenset())
    when = datetime(2010, 1, 1)
    visit = Visit(star, "ADP.x", "HD2", when, -20.0, 2.0, 8.0, snr=200.0, exptime_s=600.0, radvel_guess_kms=0.0)
    flux = grid.sample(5500.0, 4.4, 0.0)[0]
    wave, adu, order_snr = expose(grid.wave_aa, flux, visit, np.random.default_rng(0))
    assert np.isfinite(adu).all()
    assert wave[[0, -1]] == pytest.approx([5987, 6321])
    assert 150 < np.median(list(order_snr.values())) < 270

    def best_velocity(template_aa, template, low, high):
        inside = (wave > low) & (wave < high)
        data = adu[inside] / np.median(adu[inside])
        trial = np.arange(-80, 80, 0.5)
        match = [
            np.corrcoef(data, np.interp(wave[inside] / (1 + v / C_KMS), template_aa, template))[0, 1] for v in trial
        ]
        return trial[np.argmax(match)]

    assert best_velocity(grid.wave_aa, flux, 6100, 6200) == pytest.approx(55.0, abs=0.5)
    adu = adu / np.interp(wave / (1 + 55.0 / C_KMS), grid.wave_aa, flux)  # the star divided out
    sky = Atmosphere.packaged()
    transmission = sky.transmission(sky.wave_aa, 2.0, 8.0)
    assert best_velocity(sky.wave_aa, transmission, 6276, 6316) == pytest.approx(-20.0, abs=0.5)


def test_earth_approaches_a_star_90_degrees_behind_the_sun():
    """Where the Earth moves to: at the March equinox the ecliptic longitude is 270 degrees."""
    spring = datetime(2000, 3, 20, 7, 35)
    berv_kms, elongation = barycentric_velocity(270.0, -23.439, spring)
    assert berv_kms == pytest.approx(29.785, abs=1e-3)
    assert elongation == pytest.approx(90.0, abs=1e-3)
    assert barycentric_velocity(90.0, 23.439, spring)[0] == pytest.approx(-29.785, abs=1e-3)


def test_demo_is_whole_readable_and_the_same_for_the_same_seed(tmp_path):
    from astropy.io import fits

    seen = []
    write_demo(tmp_path / "a", 4, 2.0, 3, 2, 1, 7, lambda *state: seen.append(state))
    write_demo(tmp_path / "b", 4, 2.0, 3, 2, 1, 7)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    spectra = sorted((tmp_path / "a" / "spectra").iterdir())
    generative = 1 + 3 * 7  # the design; one core varies three labels to seven values
    assert len(files) == 1 + 3 + 2 + generative + len(spectra)
    assert seen[-1] == ("spectra", len(spectra), len(spectra))
    seds = [
        read_sed(path) for folder in ("sed", "generative") for path in sorted((tmp_path / "a" / folder).glob("*.fits"))
    ]
    off = [sed.vmic_kms - realistic_vmic(sed.teff_k, sed.logg, sed.mh) for sed in seds[:3]]
    assert len(set(off)) == 3
    assert max(map(abs, off)) < 0.8  # four times the scatter
    assert len({sed.vmic_kms for sed in seds[3:]}) == 1  # within a core one label varies
    for path in spectra:
        with fits.open(path) as hdus:
            assert [hdu.verify_checksum() for hdu in hdus] == [1, 1]
            assert [hdu.verify_datasum() for hdu in hdus] == [1, 1]
        record = read_spectrum(path)
        assert not isinstance(record, Refusal), record
        assert record.dp_id == path.name.removesuffix(".fits")
        assert abs(record.berv_kms) < 30
        assert 1 <= record.airmass <= 2.9
        assert 30 <= record.snr <= 300


def test_catalogue_gaps_are_those_of_the_paper(grid: SedGrid):
    from preprocessing.simulator.demo_files import AVAILABLE, _population

    stars = _population(grid, 30_000, seed=1)  # shares scatter by 0.003 at most
    for name, share in AVAILABLE.items():
        assert np.mean([name in star.known for star in stars]) == pytest.approx(share, abs=0.02)
    assert np.mean([len(star.known) == 4 for star in stars]) == pytest.approx(0.288, abs=0.02)
