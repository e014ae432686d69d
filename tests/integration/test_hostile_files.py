"""A folder with everything that a file can be, through ingest, pack and predict: a line each, the rest goes in."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import harps_dist
from harps_dist.data.reader import Release
from harps_dist.formats.archive import SCHEMAS, Archive
from harps_dist.inference import predict_files
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.labels import NAMES
from harps_dist.spectra.quantities import in_range
from preprocessing.catalog import Catalog
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import Settings, pack
from tests.commands import command, run
from tests.integration.conftest import STEPS

TINY = named_grid("tiny")
OUT_OF_RANGE = {"MJD-OBS": "1E308", "EXPTIME": "-1", "SNR": "-5", "RA": "1E38", "DEC": "999",
                "AIRMASS": "1E400", "ESO DRS BERV": "300"}  # fmt: skip
ODD_NAMES = (os.fsdecode(b"\xff.fits"), os.fsdecode(b"\xfe.fits"), "\\xff.fits", "esc\x1b[2J.fits", "[bold]x.fits",
             "new\nline.fits", "\u202ereversed.fits", "é α.fits", "x" * 245 + ".fits", '"quoted",.fits')  # fmt: skip

OBJECTS = ("a[red]", "a\x1b[2Jb")


def edited(source: Path, target: Path, cards: dict[str, str] | None = None, pixel: float | None = None) -> None:
    """A copy under an id of its own, with cards overwritten by any text, and one flux perhaps."""
    raw = bytearray(source.read_bytes())
    for key, text in {"ARCFILE": f"'ADP.{abs(hash(target.name))}.fits'", **(cards or {})}.items():
        wanted = f"HIERARCH {key} " if " " in key else f"{key:<8}="
        place = raw.index(wanted.encode())
        raw[place : place + 80] = f"{wanted.rstrip('=')}= {text}".encode().ljust(80)
    for key in (b"DATASUM ", b"CHECKSUM"):
        raw = raw.replace(key + b"=", b"COMMENT  ")
    if pixel is not None:
        place = raw.index(b"XTENSION")
        data = raw.index(b"END".ljust(80), place) + 80
        data += -data % 2880
        points = int(raw[raw.index(b"NELEM   =") + 9 :][:22])
        middle = data + 8 * points + 4 * (points // 2)
        raw[middle : middle + 4] = np.array(pixel, ">f4").tobytes()
    target.write_bytes(raw)


@pytest.fixture(scope="module")
def good(tiny_demo) -> list[Path]:
    return sorted((tiny_demo / "files/spectra").glob("*.fits"))[:30]


@pytest.fixture(scope="module")
def folder(good, tmp_path_factory) -> Path:
    """Seven files with a header value that cannot be, two with a wild pixel, odd names, and what is no spectrum."""
    made = tmp_path_factory.mktemp("files") / "spectra"
    made.mkdir()
    sources = iter(good)
    for key, text in OUT_OF_RANGE.items():
        cards = {key: text} | ({"ESO TEL AIRM START": text, "ESO TEL AIRM END": text} if key == "AIRMASS" else {})
        edited(next(sources), made / f"value {key}.fits", cards)
    for pixel in (1e38, -1e38):
        edited(next(sources), made / f"pixel {pixel}.fits", pixel=pixel)
    for number, text in enumerate(OBJECTS):
        edited(next(sources), made / f"object {number}.fits", {"OBJECT": f"'{text}'"})
    for name in ODD_NAMES:
        edited(next(sources), made / name)
    raw = next(sources).read_bytes()
    (made / "bad text.fits").write_bytes(b"text")
    (made / "bad bomb.fits.gz").write_bytes(gzip.compress(raw + bytes(130 * 2**20), 1))
    columns = raw.replace(b"TFIELDS =                    3", b"TFIELDS =            999999999")
    (made / "bad columns.fits").write_bytes(columns)
    (made / os.fsdecode(b"bad \xff\x1b[2J.fits")).write_bytes(b"")
    os.mkfifo(made / "bad pipe.fits")
    (made / "bad link.fits").symlink_to("nowhere")
    (made / "bad vacuum.fits").write_bytes(raw.replace(b"'em.wl   '", b"'em.freq '"))
    return made


COUNT, BAD = len(OUT_OF_RANGE) + 2 + len(OBJECTS) + len(ODD_NAMES), 7


@pytest.mark.timeout(300)
def test_an_ingest_takes_what_is_good_and_says_the_rest_again_and_again(folder, tiny_demo, tmp_path):
    archive = tmp_path / "a.zarr"
    report = ingest_spectra(folder, archive, TINY, Catalog.read(tiny_demo / "files/catalog.csv"))
    assert (report.added, len(report.refused)) == (COUNT, BAD), report.refused
    for name in ("mjd", "exptime", "snr", "ra", "dec", "airmass", "berv"):
        assert report.counts[f"{name} out of physical range"] == 1
    assert report.counts["with flux beyond 100000 medians, which counts as missing"] == 2
    lines = Path(f"{archive}.quarantine.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + BAD
    assert all(line.isprintable() for line in lines)

    found = Archive(archive)
    for name, column in SCHEMAS["real"].items():
        values = found.column("real", name)
        if column.dtype == "str":
            assert all(str(value).isprintable() for value in values), name
        elif name in NAMES or name in ("mjd", "exptime", "snr", "ra", "dec"):
            assert all(np.isnan(value) or in_range(name, value) for value in values), name
    assert len(set(found.column("real", "source"))) == COUNT
    assert "a[red]" in found.column("real", "object")
    assert "" in found.column("real", "object")  # a card with control characters is none
    assert set(found.column("real", "flag")) == {""}
    for row in range(COUNT):
        flux = found.data("real", row)
        assert np.nanmax(np.abs(flux)) < 1e4 * np.nanmedian(flux)

    again = ingest_spectra(folder, archive, TINY, Catalog.read(tiny_demo / "files/catalog.csv"))
    assert (again.added, again.already) == (0, COUNT)
    assert again.refused == report.refused

    manifest = pack(archive, tmp_path / "release", Settings((0.6, 0.2, 0.2), genuine=False))
    assert manifest.counts["real"] == COUNT
    index = Release(tmp_path / "release").index
    for name in (*NAMES, "mjd", "ra", "dec", "snr"):
        assert all(np.isnan(value) or in_range(name, value) for value in index[name]), name
    for name in ("median", "error"):
        assert np.isfinite(index[name]).all()


@pytest.mark.timeout(300)
def test_the_command_prints_nothing_that_a_terminal_obeys(folder, tmp_path):
    archive = tmp_path / "esc\x1b[2J [red].zarr"
    ingest = command("preprocessing/__main__.py", "ingest", "--spectra", folder, "--archive", archive, "--grid", "tiny")
    printed = run(ingest, tmp_path)
    assert f"added {COUNT}, there already 0, quarantined {BAD}" in printed
    assert "\x1b" not in printed
    assert "(not_fits; " in printed
    assert "esc\\x1b[2J [red].zarr" in printed


@pytest.mark.timeout(300)
def test_predictions_of_the_same_files(folder, tiny_exports, tmp_path):
    model, table = harps_dist.load(tiny_exports / STEPS_CNN), tmp_path / "labels.parquet"
    report = predict_files(model, [folder], table)
    assert report.predicted == COUNT
    with report.failed_path.open(newline="", encoding="utf-8") as file:
        failed = list(csv.DictReader(file))
    assert len(failed) == BAD
    assert all(text.isprintable() for row in failed for text in row.values())
    import pyarrow.parquet as pq

    found = pq.read_table(table).to_pydict()
    assert all(name.isprintable() for name in found["file"])
    assert len(set(found["file"])) == COUNT
    for name in ("mjd", "ra", "dec", "exptime", "snr"):
        assert all(value is None or np.isnan(value) or in_range(name, value) for value in found[name]), name
    assert np.isfinite(found["teff"]).all()
    assert predict_files(model, [folder], table).already == COUNT


STEPS_CNN = next(iter(STEPS))


def test_a_fault_of_a_reader_ends_one_file_alone(good, tmp_path, monkeypatch):
    """Whatever a reader raises; but want of memory and interrupts pass."""
    from harps_dist.formats import readers

    for path in good[:3]:
        shutil.copy(path, tmp_path)
    read = readers._read

    def failing(error: BaseException):
        def some(hdus, source):
            if source == good[1].name:
                raise error
            return read(hdus, source)

        return some

    for error in (ZeroDivisionError("one\nsuch"), RecursionError(), AssertionError(), SystemError("x")):
        monkeypatch.setattr(readers, "_read", failing(error))
        report = ingest_spectra(tmp_path, tmp_path / f"{type(error).__name__}.zarr", TINY)
        assert (report.added, len(report.refused)) == (2, 1)
        assert type(error).__name__ in report.refused[0].detail
    for error in (MemoryError(), KeyboardInterrupt()):
        monkeypatch.setattr(readers, "_read", failing(error))
        with pytest.raises(type(error)):
            ingest_spectra(tmp_path, tmp_path / f"{type(error).__name__}.zarr", TINY)
