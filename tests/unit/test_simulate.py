"""A spectrum from labels: what is asked for, what is drawn, and the files it goes into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from harps_dist.errors import ConfigError
from harps_dist.formats.readers import read_spectrum
from harps_dist.formats.records import SpectrumRecord
from harps_dist.inference.options import Options, carry_out
from harps_dist.inference.simulator import Simulator
from harps_dist.inference.spectrum_files import CONAD, ascii_text, write_spectrum
from harps_dist.models.build import build_model
from harps_dist.models.config import Encoder
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import HARPS, Grid
from tests.made_up_decoder import MEAN, RANGES, SMALL, TINY, WORLD, Drawn, node_of, simulator

# --- what is asked for


def test_labels_reach_their_nodes_and_missing_ones_are_the_training_mean():
    found = simulator().simulate({"teff": [4700.0, 6300.0], "rv": 25.0}, unknown=[0.5, -1.5])
    nodes = {"teff": [-1, 1], "rv": [1, 1], "logg": [0, 0], "u1": [0.5, 0.5], "u2": [-1.5, -1.5]}
    for name, expected in nodes.items():
        np.testing.assert_allclose(node_of(found.flux, name), expected, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found.request.labels, [[25, 4700, 4.3, 1.5], [25, 6300, 4.3, 1.5]])
    (note,) = found.request.notes
    assert "training mean" in note
    assert "logg 4.3 dex" in note
    assert "airmass 1.5" in note
    assert "teff" not in note


def test_beyond_what_training_saw_is_refused_or_noted():
    with pytest.raises(
        ConfigError, match=r"teff = 7001 K \(row 2 and 1 more\) lies outside 4000\.\.7000 K.*--extrapol"
    ):
        simulator().request({"teff": [5000.0, 7001.0, 3999.0]})
    request = simulator().request({"teff": 7001.0}, extrapolate=True)
    assert any("teff = 7001 K" in note for note in request.notes)
    assert not any("outside" in note for note in simulator().request({"teff": [4000.0, 7000.0]}).notes)


def test_without_noted_ranges_the_papers_and_those_of_uniform_draws_hold():
    found = Simulator(Drawn(), SMALL, "old", "0", {"teff": (float("nan"), float("nan"))}).ranges
    assert found["teff"] == (3000.0, 11000.0)
    assert found["rv"] == pytest.approx((5 - 20 * 3**0.5, 5 + 20 * 3**0.5))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"labels": {"pwv": 3.0}}, "no node for pwv: its labels are rv, teff"),
        ({"labels": {"teff": float("nan")}}, "row 1: teff is nan"),
        ({"labels": {"teff": [5000.0, 5100.0], "rv": [1.0, 2.0, 3.0]}}, "one value for all 3 spectra or one each"),
        ({"unknown": [0.0]}, "has 2 unknown factors a spectrum, got values for 1"),
        ({"unknown": [0.0, float("inf")]}, "row 1: u2 is inf"),
        ({"unknown": "posterior"}, "'zero', drawn from the 'prior', or numbers"),
        ({"snr": -5.0}, "row 1: a signal-to-noise ratio of -5"),
        ({"snr": [50.0, float("nan")]}, "row 2: a signal-to-noise ratio of nan"),
    ],
)
def test_requests_that_cannot_be_say_what_is_wrong(asked, message):
    with pytest.raises(ConfigError, match=message):
        simulator().request(**asked)


def test_an_encoder_draws_no_spectra_and_a_decoder_alone_reads_none():
    encoder = build_model(Encoder(width=0.05), TINY)
    with pytest.raises(ConfigError, match="is an encoder: it reads labels"):
        Simulator(encoder, TINY, "cnn", "0", {})
    alone = simulator()
    alone.model.nodes = 0
    with pytest.raises(ConfigError, match="decoder alone and reads no spectra"):
        alone.encode(np.ones((1, SMALL.length)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": Path("t.csv"), "traverse": "teff"}, "give one of them"),
        ({"spectrum": Path("a.fits")}, "say which node is to vary"),
        ({"traverse": "teff", "spectrum": Path("a.fits"), "teff": 5000.0}, "gives all nodes"),
        ({"traverse": "teff", "snr": 50.0}, "without noise or shift"),
        ({"u": "1,two"}, "zero, prior or numbers"),
    ],
)
def test_options_that_contradict_each_other(options, message, monkeypatch):
    from harps_dist.console import console_for

    monkeypatch.setattr("harps_dist.inference.simulators.open_simulator", lambda *arguments: simulator())
    with pytest.raises(ConfigError, match=message):
        carry_out(Options(Path("run"), **options), WORLD, console_for())


# --- what is drawn


def test_unknown_factors_are_drawn_from_the_prior_by_seed_alone():
    request = simulator().request({"teff": np.full(4000, 5000.0)}, unknown="prior", seed=7)
    assert np.abs(request.unknown.mean(axis=0)).max() < 0.06
    np.testing.assert_allclose(request.unknown.std(axis=0), 1, atol=0.04)
    assert abs(np.corrcoef(request.unknown.T)[0, 1]) < 0.06
    again = simulator().request({"teff": 6000.0}, unknown="prior", seed=7 + 123)
    np.testing.assert_array_equal(again.unknown[0], request.unknown[123])
    with pytest.raises(ConfigError, match="no prior to draw unknown factors from"):
        simulator(variational=False).request(unknown="prior")


def test_noise_is_that_of_photons_and_keyed_to_the_seed():
    wide = Grid("wide", 231_000, 4096)
    snr = np.array([50.0, np.inf, 200.0])
    clean = simulator(wide).simulate({"teff": [5000.0] * 3})
    noisy = simulator(wide).simulate({"teff": [5000.0] * 3}, snr=snr, seed=[4, 5, 6])
    for row in (0, 2):
        level = clean.flux[row] == 1
        np.testing.assert_allclose(noisy.sigma[row][level], 1 / snr[row], rtol=1e-5)
        deepest = np.argmin(clean.flux[row])  # half the flux: sqrt(1/2) of the noise, but for the read-out's
        assert noisy.sigma[row][deepest] == pytest.approx(np.sqrt(0.502 / 1.002) / snr[row], rel=1e-3)
        standard = (noisy.flux[row] - clean.flux[row]) / noisy.sigma[row]
        assert abs(standard.mean()) < 0.07
        assert standard.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(noisy.flux[1], clean.flux[1])
    assert np.isnan(noisy.sigma[1]).all()
    alone = simulator(wide).simulate({"teff": 5000.0}, snr=200, seed=6)
    np.testing.assert_array_equal(alone.flux[0], noisy.flux[2])
    other = simulator(wide).simulate({"teff": 5000.0}, snr=200, seed=5)
    assert abs(np.corrcoef(alone.flux[0] - clean.flux[0], other.flux[0] - clean.flux[0])[0, 1]) < 0.07


def test_a_shift_moves_the_line_exactly_and_leaves_the_node_at_the_mean():
    velocities = np.array([-35.0, 0.0, 30.0])
    found = simulator().simulate({"rv": velocities}, rv_by="shift")
    for velocity, flux in zip(velocities, found.flux, strict=True):
        moved_kms = ((1 + velocity / C_KMS) / (1 + MEAN["rv"] / C_KMS) - 1) * C_KMS
        rest = SMALL.wave_aa / (1 + moved_kms / C_KMS)
        expected = 1 - 0.5 * np.exp(-0.5 * ((rest - 6097.5) / 0.05) ** 2)
        known = np.isfinite(flux)
        lost = np.abs(moved_kms) / C_KMS * 6097.5 / 0.01  # pixels that nothing moves into
        assert (~known).sum() == pytest.approx(lost, abs=2)
        np.testing.assert_allclose(flux[known], expected[known], atol=2e-5)
    without = simulator()
    without.labels = ("berv", "teff", "logg", "airmass")
    with pytest.raises(ConfigError, match="no radial velocity to shift by"):
        without.draw(simulator().request(), rv_by="shift")


def test_what_the_spectrograph_has_no_pixel_for_is_nan_and_nothing_bleeds_out_of_it():
    class Flat(Drawn):
        def decode(self, nodes):
            flux = torch.ones(len(nodes), HARPS.length)
            flux[:, ~HARPS.valid] = 50.0  # nothing was ever trained there
            return flux

    found = Simulator(Flat(), HARPS, "flat", "0", RANGES)
    for rv_by in ("node", "shift"):
        flux = found.simulate({"rv": 40.0}, rv_by=rv_by).flux[0]
        assert np.isnan(flux[~HARPS.valid]).all()
        known = np.isfinite(flux)
        assert known.sum() > HARPS.valid.sum() - 250
        np.testing.assert_allclose(flux[known], 1, atol=1e-5)


def test_a_spectrum_of_specutils_says_what_it_is():
    specutils = pytest.importorskip("specutils", reason="specutils is an extra")
    found = simulator().simulate({"teff": [4700.0, 6300.0]}, snr=[100, np.inf], names=["α", "b"])
    one, both = found.as_spectrum(0), found.as_spectrum()
    assert isinstance(one, specutils.Spectrum)
    np.testing.assert_array_equal(one.flux.value, found.flux[0])
    np.testing.assert_array_equal(one.spectral_axis.to_value("Angstrom"), SMALL.wave_aa)
    np.testing.assert_array_equal(one.uncertainty.array, found.sigma[0])
    expected = {"medium": "air", "frame": "barycentric", "object": "α", "teff": 4700.0, "snr": 100.0, "model": "drawn"}
    assert {key: one.meta[key] for key in expected} == expected
    assert both.shape == (2, SMALL.length)
    assert found.as_spectrum(1).uncertainty is None


# --- one spectrum to a file


def test_a_fits_file_has_the_form_of_phase_3_and_says_that_it_is_simulated(tmp_path):
    found = simulator().simulate({"teff": 5000.0, "airmass": 1.2}, snr=80, seed=3, names="β Píctoris")
    write_spectrum(tmp_path / "a.fits", found)
    record = read_spectrum(tmp_path / "a.fits")
    assert isinstance(record, SpectrumRecord)
    assert (record.product, record.object, record.snr, record.airmass) == ("ADP", "beta Pictoris", 80.0, 1.2)
    np.testing.assert_allclose(record.wave_aa, SMALL.wave_aa)
    np.testing.assert_allclose(record.flux, found.flux[0] * 80**2 / CONAD, rtol=1e-6)
    with fits.open(tmp_path / "a.fits", checksum=True) as hdus:
        header, row = hdus[0].header, hdus[1].data[0]
    assert (header["ORIGIN"], header["SIM MODEL"], header["SIM SEED"]) == ("SIMULATED", "drawn", 3)
    assert (header["SIM TEFF"], header["SIM RV"], header["SIM U1"]) == (5000.0, 5.0, 0.0)
    assert found.model_id.startswith(header["SIM MODEL ID"])
    np.testing.assert_allclose(row["ERR"], found.sigma[0] * header["SIM MEDIAN"], rtol=1e-6)
    written = (tmp_path / "a.fits").read_bytes()
    write_spectrum(tmp_path / "a.fits", found)
    assert (tmp_path / "a.fits").read_bytes() == written
    other = replace(found, instrument=replace(found.instrument, keyword="OTHER"))
    write_spectrum(tmp_path / "other.fits", other)
    assert fits.getval(tmp_path / "other.fits", "INSTRUME") == "OTHER"


def test_a_whole_spectrum_leaves_the_detector_gap_empty_as_the_products_do(tmp_path):
    class Flat(Drawn):
        def decode(self, nodes):
            return torch.ones(len(nodes), HARPS.length)

    write_spectrum(tmp_path / "a.fits", Simulator(Flat(), HARPS, "flat", "0", RANGES).simulate())
    record = read_spectrum(tmp_path / "a.fits")
    assert isinstance(record, SpectrumRecord)
    assert np.isnan(record.snr)
    np.testing.assert_allclose(record.wave_aa[[0, -1]], [3785.0, 6910.0])
    empty = record.wave_aa[record.flux == 0]
    np.testing.assert_allclose(empty[[0, -1]], [5303.64, 5338.04])


@pytest.mark.parametrize("ending", ["csv", "ecsv", "parquet"])
def test_a_table_of_one_spectrum_reads_back(ending, tmp_path):
    found = simulator().simulate({"teff": 5000.0}, snr=80, names="α Cen")
    path = tmp_path / f"new/a.{ending}"
    write_spectrum(path, found)
    if ending == "parquet":
        table, meta = pq.read_table(path), json.loads(pq.read_schema(path).metadata[b"harps_dist"])
    else:
        table = Table.read(path, format=f"ascii.{ending}")
        meta = table.meta if ending == "ecsv" else {"teff": 5000.0, "object": "α Cen", "medium": "air"}
    np.testing.assert_allclose(table["wave_aa"], SMALL.wave_aa)
    np.testing.assert_allclose(table["flux"], found.flux[0], rtol=1e-6)
    np.testing.assert_allclose(table["sigma"], found.sigma[0], rtol=1e-6)
    assert (meta["teff"], meta["object"], meta["medium"]) == (5000.0, "α Cen", "air")
    if ending == "ecsv":
        assert table["wave_aa"].unit == "Angstrom"


def test_a_figure_is_drawn_and_other_endings_are_refused(tmp_path):
    write_spectrum(tmp_path / "a.png", simulator(TINY).simulate(snr=50))
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match=r"ends in one of \.fits, \.png"):
        write_spectrum(tmp_path / "a.txt", simulator().simulate())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("HD 1", "HD 1"), ("α Cen B", "alpha Cen B"), ("ςé ü", "sigmae u"), ("星 1\n", "? 1?"), ("ά", "alpha")],
)
def test_names_are_spelt_as_fits_can_hold_them(text, expected):
    assert ascii_text(text) == expected
