"""Many spectra from a table of labels: forms, order, interruptions, memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from astropy.io import fits
from astropy.table import Table

from harps_dist.errors import ConfigError, Interrupted, OutputError
from harps_dist.files import exclusive
from harps_dist.formats.readers import read_spectrum
from harps_dist.inference import many, sinks
from harps_dist.inference.label_table import read_request
from harps_dist.inference.many import lost_in_fits, simulate_many
from harps_dist.ranks.world import World
from harps_dist.spectra.grid import Grid
from tests.made_up_decoder import SMALL, WORLD, node_of, simulator


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
    with pytest.raises(OutputError, match="is no simulation"):
        simulate_many(simulator(), some_request(), foreign, WORLD, **BLOCK)
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


def test_two_at_once_and_wrong_names_are_refused(tmp_path):
    with exclusive(tmp_path / ".s.zarr.lock"), pytest.raises(OutputError, match="another process is writing"):
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


def test_blocks_hold_as_many_spectra_as_memory_allows():
    sink = sinks.ParquetRows(Path("s"), simulator(), some_request(11), {}, 4)
    assert [sink.rows(block) for block in range(sink.blocks)] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert [sink.count(block) for block in range(sink.blocks)] == [4, 4, 3]
