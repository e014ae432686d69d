"""Spectra from labels: what is asked for, what is drawn, and the files it goes into."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from astropy.io import fits
from astropy.table import Table

from harps_dist.config import Encoder
from harps_dist.errors import ConfigError, Interrupted
from harps_dist.files import exclusive
from harps_dist.inference import many, sinks
from harps_dist.inference.label_table import read_request
from harps_dist.inference.many import lost_in_fits, simulate_many
from harps_dist.inference.options import Options, carry_out
from harps_dist.inference.simulator import Simulator
from harps_dist.inference.spectrum_files import CONAD, ascii_text, write_spectrum
from harps_dist.inference.traverse import nodes_of_file, traverse
from harps_dist.models.autoencoder import Latent
from harps_dist.models.supervised import SpectrumModel
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import HARPS, Grid
from harps_dist.training.distributed import World
from preprocessing.readers import read_spectrum
from preprocessing.records import SpectrumRecord

LABELS = ("rv", "teff", "logg", "airmass")
MEAN = {"rv": 5.0, "teff": 5500.0, "logg": 4.3, "airmass": 1.5}
STD = {"rv": 20.0, "teff": 800.0, "logg": 0.4, "airmass": 0.3}
RANGES = {"rv": (-40.0, 40.0), "teff": (4000.0, 7000.0), "logg": (3.5, 5.0), "airmass": (1.0, 2.0)}
SMALL = Grid("small", 231_000, 512)
TINY = Grid("tiny", 231_000, 4096)
WORLD = World(0, 1, torch.device("cpu"))


class Drawn(SpectrumModel):
    """A decoder with a closed form: a line of depth 0.5 at 6097.5 Å on a continuum of 1, and node k adds 0.1 of itself
    to pixel 10 k. It reads those pixels back. Lines do not move with the velocity's node."""

    def __init__(self, grid: Grid = SMALL, unknown: int = 2, variational: bool = True):
        super().__init__(LABELS)
        self.set_label_scale(MEAN, STD)
        self.nodes, self.variational = len(LABELS) + unknown, variational
        line = np.exp(-0.5 * ((grid.wave_aa - 6097.5) / 0.05) ** 2)
        self.base = torch.from_numpy(1 - 0.5 * line).float()
        self.calls: list[int] = []

    def decode(self, nodes):
        self.calls.append(len(nodes))
        flux = self.base.repeat(len(nodes), 1)
        flux[:, 10 : 10 * self.nodes + 1 : 10] += 0.1 * nodes
        return flux

    def encode(self, flux):
        return Latent(10 * (flux - self.base)[:, 10 : 10 * self.nodes + 1 : 10], None)


def simulator(grid: Grid = SMALL, **options) -> Simulator:
    return Simulator(Drawn(grid, **options), grid, "drawn", "0123456789abcdef" * 4, RANGES)


def node_of(flux: np.ndarray, name: str) -> np.ndarray:
    """What the decoder was given for a node."""
    number = [*LABELS, "u1", "u2"].index(name)
    return 10 * (flux[..., 10 * (number + 1)] - 1)


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
    encoder = Encoder(width=0.05).build(TINY)
    with pytest.raises(ConfigError, match="is an encoder: it reads labels"):
        Simulator(encoder, TINY, "cnn", "0", {})
    alone = simulator()
    alone.model.nodes = 0
    with pytest.raises(ConfigError, match="decoder alone and reads no spectra"):
        alone.encode(np.ones((1, SMALL.length)))


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


# --- tables of labels


def request_of(tmp_path: Path, text: str, name: str = "t.csv", **options):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_request(tmp_path / name, simulator(), **options)


def test_a_table_gives_one_spectrum_a_row(tmp_path):
    text = "Object,TEFF,u2,snr,seed\nα Cen É,5000,0.5,100,11\nB,6000,-1,inf,12\n"
    request = request_of(tmp_path, text, fixed={"rv": 7.0})
    np.testing.assert_allclose(request.labels, [[7, 5000, 4.3, 1.5], [7, 6000, 4.3, 1.5]])
    np.testing.assert_allclose(request.unknown, [[0, 0.5], [0, -1]])
    assert request.snr.tolist() == [100.0, np.inf]
    assert request.seed.tolist() == [11, 12]
    assert request.names.tolist() == ["α Cen É", "B"]
    assert "logg" in request.notes[0]
    assert request_of(tmp_path, "teff\n5000\n5001\n", seed=4).seed.tolist() == [4, 5]


@pytest.mark.parametrize("ending", ["ecsv", "fits", "parquet", "vot"])
def test_other_forms_of_the_table_and_other_units(ending, tmp_path):
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"object": ["a", "b"], "rv": [-20.0, 30.0]}), path)
    else:
        table = Table({"object": ["a", "b"], "rv": [-20_000.0, 30_000.0]})
        table["rv"].unit = "m/s"
        table.write(path, format={"ecsv": "ascii.ecsv", "fits": "fits", "vot": "votable"}[ending])
    request = read_request(path, simulator())
    np.testing.assert_allclose(request.labels[:, 0], [-20, 30])
    assert request.names.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teff,rv\n", "has no rows"),
        ("", r"cannot be read as \.csv|has no rows"),
        ("teff\n5000\nhot\n", r"t\.csv, row 2: teff is 'hot', expected a number"),
        ("teff,rv\n5000,1\n,2\n", "row 2: teff is nothing"),
        ("teff\n5000\nnan\n", "row 2: teff is nan"),
        ("teff\n5000\ninf\n", "row 2: teff is inf"),
        ("teff,snr\n5000,nan\n", "row 1: snr is nan"),
        (
            "teff,temperature,größe\n5000,1,2\n",
            "columns temperature, größe mean nothing to drawn, which knows rv, teff",
        ),
        ("teff,u3\n5000,1\n", "columns u3 mean nothing"),
        ("teff,seed\n5000,1.5\n", "seeds are whole numbers"),
        ("teff\n5000\n9000\n", r"teff = 9000 K \(row 2\) lies outside"),
        ("rv\n10\n", "rv is given for all rows, and table"),
    ],
)
def test_tables_that_cannot_be_used_say_why(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        request_of(tmp_path, text, fixed={"rv": 7.0})


def test_a_unit_that_is_none_of_the_labels_and_a_missing_table_are_refused(tmp_path):
    table = Table({"rv": [1.0]})
    table["rv"].unit = "K"
    table.write(tmp_path / "t.ecsv", format="ascii.ecsv")
    with pytest.raises(ConfigError, match="rv is in K, expected km/s"):
        read_request(tmp_path / "t.ecsv", simulator())
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read"):
        read_request(tmp_path / "none.csv", simulator())
    with pytest.raises(ConfigError, match="u is given for all rows"):
        request_of(tmp_path, "teff,u1\n5000,1\n", unknown="prior")


# --- many spectra


def flux_of(out: Path) -> np.ndarray:
    """(n, pixel) of any of the forms, in order."""
    if out.suffix == ".zarr":
        return zarr.open_group(out, mode="r")["flux"][:]
    if out.suffix == ".parquet":
        return np.stack(pq.read_table(out)["flux"].to_numpy(zero_copy_only=False))
    if out.suffix == ".fits":
        return fits.getdata(out, 0)
    records = [read_spectrum(out / name) for name in Table.read(out / "labels.ecsv")["file"]]
    medians = [fits.getheader(path)["SIM MEDIAN"] for path in sorted(out.glob("*.fits"))]
    return np.stack([record.flux for record in records]) / np.array(medians)[:, None]


FORMS = ["s.zarr", "s.parquet", "s.fits", "s"]
BLOCK = {"block_bytes": 4 * 4 * SMALL.length}  # four spectra a block


def some_request(count: int = 11):
    draw = np.random.default_rng(1)
    names = [f"α {number}" for number in range(count)]
    return simulator().request({"teff": draw.uniform(4000, 7000, count)}, unknown="prior", snr=90, seed=5, names=names)


@pytest.mark.parametrize("form", FORMS)
def test_many_spectra_are_those_of_the_request_in_order(form, tmp_path):
    request, seen = some_request(), []
    made = simulate_many(
        simulator(), request, tmp_path / form, WORLD, progress=lambda what, done, total: seen.append(done), **BLOCK
    )
    assert made
    assert seen == [0, 4, 8, 11]
    np.testing.assert_allclose(flux_of(tmp_path / form), simulator().draw(request).flux, rtol=2e-6)
    assert [path.name for path in tmp_path.iterdir()] == [form]  # neither parts nor lock
    assert not simulate_many(simulator(), request, tmp_path / form, WORLD, **BLOCK)


def test_labels_go_with_the_spectra(tmp_path):
    request = some_request()
    for form in FORMS:
        simulate_many(simulator(), request, tmp_path / form, WORLD, **BLOCK)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    parquet = pq.read_table(tmp_path / "s.parquet")
    tables = [Table(fits.getdata(tmp_path / "s.fits", 1)), Table.read(tmp_path / "s/labels.ecsv")]
    for column, expected in {"teff": request.labels[:, 1], "u2": request.unknown[:, 1], "seed": request.seed}.items():
        for values in (group[column][:], parquet[column].to_numpy(), *(table[column] for table in tables)):
            np.testing.assert_array_equal(values, expected, err_msg=column)
    names = request.names.tolist()
    assert list(group["object"][:]) == parquet["object"].to_pylist() == list(tables[1]["object"]) == names
    assert tables[0]["object"][3] == "alpha 3"  # FITS holds no more
    assert "11 object names" in lost_in_fits(request, Path("s.fits"))[0]
    assert not lost_in_fits(request, Path("s.zarr"))
    header = fits.getheader(tmp_path / "s.fits")
    assert (header["CTYPE1"], header["CRVAL1"], header["CDELT1"]) == ("AWAV", 6095.0, 0.01)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("form", FORMS)
def test_interrupted_anywhere_it_goes_on_with_what_is_missing(form, tmp_path, monkeypatch):
    request, whole = some_request(), tmp_path / "whole" / form
    simulate_many(simulator(), request, whole, WORLD, **BLOCK)
    kind = many.SINKS[Path(form).suffix]
    write, finish = kind.write, kind.finish

    def fail_on(block_wanted):
        def failing(self, block, simulated):
            if block == block_wanted:
                raise _KilledError
            write(self, block, simulated)

        return failing

    monkeypatch.setattr(kind, "write", fail_on(1))
    with pytest.raises(_KilledError):
        simulate_many(simulator(), request, tmp_path / form, WORLD, **BLOCK)
    with pytest.raises(ConfigError, match="another simulation"):
        simulate_many(simulator(), replace(request, snr=request.snr + 1), tmp_path / form, WORLD, **BLOCK)

    def killed_at_the_end(self):
        raise _KilledError

    left = (tmp_path / form if form == "s" else tmp_path / f"{form}.parts") / ".000004.0123abcd.tmp"
    left.write_bytes(b"half of it")
    monkeypatch.setattr(kind, "write", write)
    monkeypatch.setattr(kind, "finish", killed_at_the_end)
    resumed = simulator()
    with pytest.raises(_KilledError):
        simulate_many(resumed, request, tmp_path / form, WORLD, **BLOCK)
    assert sum(resumed.model.calls) == 7  # the first four were there
    assert not left.exists()
    assert not (tmp_path / form / "labels.ecsv").exists() if form == "s" else not (tmp_path / form).exists()
    monkeypatch.setattr(kind, "finish", finish)
    last = simulator()
    assert simulate_many(last, request, tmp_path / form, WORLD, **BLOCK)
    assert last.model.calls == []
    np.testing.assert_array_equal(flux_of(tmp_path / form), flux_of(whole))


def test_half_a_shard_is_written_anew(tmp_path, monkeypatch):
    """A process killed while Zarr wrote: bytes are there, but no mark that they are whole."""
    simulate_many(simulator(), some_request(), tmp_path / "whole.zarr", WORLD, **BLOCK)
    monkeypatch.setattr(many.ZarrGroup, "finish", lambda self: None)
    simulate_many(simulator(), some_request(), tmp_path / "s.zarr", WORLD, **BLOCK)
    monkeypatch.undo()
    for block in (1, 2):  # the last one is shorter
        shard = tmp_path / f"s.zarr.parts/group/flux/c/{block}/0"
        shard.write_bytes(shard.read_bytes()[:100])
        (tmp_path / f"s.zarr.parts/done/{block:06d}").unlink()
    simulate_many(simulator(), some_request(), tmp_path / "s.zarr", WORLD, **BLOCK)
    np.testing.assert_array_equal(flux_of(tmp_path / "s.zarr"), flux_of(tmp_path / "whole.zarr"))


def test_asked_to_stop_it_says_how_far_it_is(tmp_path):
    class StopAfterTwo:
        looked = 0

        @property
        def reason(self):
            self.looked += 1
            return "SIGTERM" if self.looked > 2 else None

    world = World(0, 1, torch.device("cpu"), StopAfterTwo())
    with pytest.raises(Interrupted) as error:
        simulate_many(simulator(), some_request(), tmp_path / "s.zarr", world, **BLOCK)
    assert error.value.progress == f"{tmp_path / 's.zarr'}: 8 of 11 spectra are there"


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_is_never_taken_for_the_result_or_overwritten(form, tmp_path):
    out = tmp_path / form
    simulate_many(simulator(), some_request(), out, WORLD, **BLOCK)
    before = flux_of(out)
    with pytest.raises(ConfigError, match=r"another simulation, or none: request_sha256"):
        simulate_many(simulator(), some_request(11).rows(slice(10)), out, WORLD, **BLOCK)
    other = simulator()
    other.id = "f" * 64
    with pytest.raises(ConfigError, match="model_id"):
        simulate_many(other, some_request(), out, WORLD, **BLOCK)
    np.testing.assert_array_equal(flux_of(out), before)
    foreign = tmp_path / "foreign" / form
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="Choose another name"):
        simulate_many(simulator(), some_request(), foreign, WORLD, **BLOCK)
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


def test_two_at_once_and_wrong_names_are_refused(tmp_path):
    with exclusive(tmp_path / ".s.zarr.lock"), pytest.raises(ConfigError, match="another process is writing"):
        simulate_many(simulator(), some_request(), tmp_path / "s.zarr", WORLD)
    with pytest.raises(ConfigError, match=r"ends in \.zarr, \.parquet, \.fits"):
        simulate_many(simulator(), some_request(), tmp_path / "s.hdf5", WORLD)


@pytest.mark.parametrize("form", ["s.zarr", "s.parquet", "s.fits"])
def test_a_hundred_thousand_rows_take_bounded_memory(form, tmp_path):
    """51 MB of flux, of which a few blocks are held at a time; the labels are held as a whole, some 200 bytes a row."""
    few, count = Grid("few", 231_000, 128), 100_000
    path = tmp_path / "labels.csv"
    teff = np.linspace(4000, 7000, count)
    np.savetxt(
        path, np.stack([teff, np.arange(count)], axis=1), header="teff,seed", comments="", delimiter=",", fmt="%.9g"
    )
    drawing = simulator(few)
    request = read_request(path, drawing)
    tracemalloc.start()
    simulate_many(drawing, request, tmp_path / form, WORLD, batch_size=1024, block_bytes=2**18)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 40e6
    found = flux_of(tmp_path / form) if form != "s.parquet" else None
    if found is None:
        table = pq.read_table(tmp_path / form)
        found = table["flux"].combine_chunks().flatten().to_numpy().reshape(count, -1)
        assert table["seed"].to_pylist() == list(range(count))
    np.testing.assert_allclose(node_of(found, "teff"), (teff - 5500) / 800, atol=1e-5)


# --- traversals


def test_a_traversal_varies_one_node_and_holds_the_others(tmp_path):
    request = simulator().request({"teff": 5100.0}, unknown=[0.0, 1.0])
    found = traverse(simulator(), "logg", request, "a star", points=4)
    np.testing.assert_allclose(found.values, [3.5, 4.0, 4.5, 5.0])
    np.testing.assert_allclose(node_of(found.flux, "logg"), (found.values - 4.3) / 0.4, atol=1e-5)
    np.testing.assert_allclose(node_of(found.flux, "teff"), -0.5, atol=1e-5)
    np.testing.assert_allclose(node_of(found.flux, "u2"), 1.0, atol=1e-5)
    assert found.base_value == pytest.approx(4.3)
    assert found.expected is None
    table = found.write(tmp_path / "new/t.png")
    assert (tmp_path / "new/t.png").stat().st_size > 10_000
    read = np.genfromtxt(table, delimiter=",", skip_header=1)
    header = table.read_text().splitlines()[0].split(",")
    assert header == ["wave_aa", "base logg=4.3", "logg=3.5", "logg=4", "logg=4.5", "logg=5"]
    np.testing.assert_allclose(read[:, 2:].T, found.flux, atol=1e-6)


def test_unknown_factors_run_over_their_prior_or_a_given_span():
    request = simulator().request()
    np.testing.assert_allclose(traverse(simulator(), "u1", request, "", points=3).values, [-2, 0, 2])
    found = traverse(simulator(), "u2", request, "", points=2, span=(0.0, 3.0))
    np.testing.assert_allclose(node_of(found.flux, "u2"), [0, 3], atol=1e-5)


def test_the_velocitys_node_is_held_against_an_exact_shift():
    """This decoder's lines do not move at all: what it misses is all that is due."""
    found = traverse(simulator(), "rv", simulator().request({"rv": 10.0}), "a star", points=3)
    rest = SMALL.wave_aa / ((1 + 40 / C_KMS) / (1 + 10 / C_KMS))
    line = 1 - 0.5 * np.exp(-0.5 * ((rest - 6097.5) / 0.05) ** 2)
    near = np.abs(SMALL.wave_aa - 6097.5) < 1
    np.testing.assert_allclose(found.expected[2][near], line[near], atol=2e-5)
    assert np.abs(found.flux - found.base)[:, near].max() < 1e-6
    assert "dotted: shifted exactly" in found.headline
    assert found.columns().keys() >= {"expected rv=40", "rv=40", "base rv=10"}


def test_an_intervention_on_an_observed_spectrum_starts_from_its_own_nodes(tiny_demo):
    path = sorted((tiny_demo / "files/spectra").glob("*.fits"))[0]
    drawing = simulator(TINY)
    nodes, name = nodes_of_file(drawing, path)
    assert name == fits.getheader(path)["OBJECT"]
    found = traverse(drawing, "teff", nodes, name, points=2)
    np.testing.assert_allclose(node_of(found.base, "u1"), nodes[4], atol=1e-4)
    np.testing.assert_allclose(node_of(found.flux, "u1"), nodes[4], atol=1e-4)
    np.testing.assert_allclose(node_of(found.flux, "teff"), (np.array([4000, 7000]) - 5500) / 800, atol=1e-4)


def test_traversals_that_cannot_be_say_why(tmp_path):
    request = simulator().request()
    with pytest.raises(ConfigError, match="no node 'pwv'; it has rv, teff, logg, airmass, u1, u2"):
        traverse(simulator(), "pwv", request, "")
    with pytest.raises(ConfigError, match="at least 2 points"):
        traverse(simulator(), "rv", request, "", points=1)
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        traverse(simulator(), "rv", request, "").write(tmp_path / "a.pdf")


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

    monkeypatch.setattr(Simulator, "load", lambda *arguments: simulator())
    with pytest.raises(ConfigError, match=message):
        carry_out(Options(Path("run"), **options), WORLD, console_for())


def test_blocks_hold_as_many_spectra_as_memory_allows():
    sink = sinks.ParquetRows(Path("s"), simulator(), some_request(11), {}, 4)
    assert [sink.rows(block) for block in range(sink.blocks)] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert [sink.count(block) for block in range(sink.blocks)] == [4, 4, 3]
