"""What an archive vouches for: one flipped bit, a byte or a file less, and opening or verifying it says so."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr

from harps_dist.errors import ArchiveError, HarpsDistError, OutputError
from harps_dist.formats.archive import SCHEMA, Archive
from harps_dist.formats.columns import DATA, SCHEMAS
from harps_dist.formats.committed import DIGEST, Committed
from harps_dist.formats.standing import standing
from harps_dist.spectra.grid import Grid, named_grid
from preprocessing.pack import pack
from preprocessing.rows import source_digest
from preprocessing.verify import verify
from preprocessing.withdraw import withdraw_spectra

TINY = named_grid("tiny")
NARROW = Grid("narrow", 231_000, 64)


def row(group: str, number: int, **columns: object) -> dict[str, object]:
    """A row that differs from all others in every column."""
    made = {
        name: f"{name} {number}" if column.dtype == "str" else number + len(name) / 7
        for name, column in SCHEMAS[group].items()
    }
    return made | columns


def small_archive(path: Path) -> Path:
    """A few rows of every group, a column without any value, and a second commit into chunks that are there."""
    noise = np.random.default_rng(1)
    for first in (0, 9):
        with Archive.writing(path, NARROW) as writer:
            for group, name in DATA.items():
                array = writer._array(group, name)
                shape = array.shape[1:]
                numbers = range(first, first + (9 if group == "real" else 1))
                writer.append(
                    group,
                    [(row(group, n, flag="", mh=np.nan), 1 + 0.1 * noise.standard_normal(shape)) for n in numbers],
                )
    withdraw_spectra(path, ["key 3"], "clouds")
    return path


def everything(archive: Archive) -> dict[str, bytes]:
    """All that the archive gives, as bytes."""
    found = {"grid": repr((archive.grid, archive.source_grid)).encode()}
    for group, columns in SCHEMAS.items():
        for name in columns:
            values = archive.column(group, name)
            found[f"{group}/{name}"] = repr(values.tolist()).encode()
        for number in range(archive.count(group)) if group in DATA else ():
            found[f"{group}/{number}"] = archive.data(group, number).tobytes()
    return found


def digest(archive: Archive) -> str:
    return source_digest(archive, *standing(archive)[:2])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return small_archive(tmp_path_factory.mktemp("small") / "a.zarr")


def damages(path: Path) -> list[tuple[str, Path, int, int]]:
    """Which bit of which byte of which file is flipped; and files that are cut by a byte, or gone."""
    draw = np.random.default_rng(7)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    metadata = [file for file in files if file.name == "zarr.json" and file.parent != path]
    chunks = [file for file in files if file.name != "zarr.json"]
    flipped = [path / "zarr.json"] * 80 + metadata[:: len(metadata) // 20] + chunks * 3
    found = [("flip", file, int(draw.integers(2**31)), int(draw.integers(8))) for file in flipped]
    others = [path / "zarr.json", metadata[0], *draw.permutation(np.array(chunks, object))[:30]]
    return found + [(kind, file, 0, 0) for kind in ("cut", "gone") for file in others]


def test_no_flipped_bit_cut_byte_or_missing_file_goes_unnoticed(small):
    """Whatever is not told of changes nothing that is read: it lies where no reader looks, in the members' own
    metadata."""
    whole, named = everything(Archive(small)), digest(Archive(small))
    assert verify(small) == []
    told, packed_alike = 0, 0
    for kind, file, place, bit in damages(small):
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[place % len(content)] ^= 1 << bit
        if kind == "gone":
            file.unlink()
        else:
            file.write_bytes(damaged if kind == "flip" else content[:-1])
        try:
            problems = verify(small) if (small / "zarr.json").exists() else ["no archive"]
            told += bool(problems)
            assert problems or everything(Archive(small)) == whole, (kind, file, place % len(content), bit)
            with suppress(HarpsDistError):
                assert digest(Archive(small)) == named, (kind, file, place % len(content), bit)
                packed_alike += 1
        finally:
            file.write_bytes(content)
    assert everything(Archive(small)) == whole
    assert told > 300
    assert packed_alike > 20


@pytest.mark.parametrize("member", ["real/teff", "real/key", "real/flux", "real", "response/content"])
@pytest.mark.parametrize("content", [None, "{", "other"])
def test_the_next_writer_sets_the_members_own_metadata_right(member, content, small, tmp_path):
    path = shutil.copytree(small, tmp_path / "a.zarr")
    own = path / member / "zarr.json"
    metadata = json.loads(own.read_text())
    if content == "other":
        metadata["attributes"]["units"] = "parsec"
    own.write_text(json.dumps(metadata) if content == "other" else content or "")
    if content is None:
        own.unlink()
    (problem,) = verify(path)
    assert f"{member}/zarr.json is not what was committed; the next ingest sets it right" in problem
    with Archive.writing(path, NARROW):
        pass
    assert (verify(path), everything(Archive(path))) == ([], everything(Archive(small)))


def test_what_a_killed_writer_left_is_dropped(small, tmp_path):
    """Longer arrays, chunks beyond the last commit and halves of files."""
    path = shutil.copytree(small, tmp_path / "a.zarr")
    before = everything(Archive(path))
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name in ("flux", "teff"):
        array = root[f"real/{name}"]
        array.resize((60, *array.shape[1:]))
        array[18:] = np.ones((42, *array.shape[1:]))
    (path / "real/teff/c.123.partial").write_bytes(b"half")
    assert (verify(path), everything(Archive(path))) == ([], before)
    strays = {path / "real/flux/c/3/0", path / "real/teff/c.123.partial"}
    assert all(stray.exists() for stray in strays)
    with Archive.writing(path, NARROW) as writer:
        assert not any(stray.exists() for stray in strays)
        writer.append("real", [(row("real", 90), np.full(64, 2.0))])
    assert verify(path) == []
    assert Archive(path).column("real", "teff")[-1] == row("real", 90)["teff"]
    assert everything(Archive(path)).items() >= {key: row for key, row in before.items() if key[-1].isdigit()}.items()


def test_a_chunk_of_missing_values_is_written_and_missed(small, tmp_path):
    path = shutil.copytree(small, tmp_path / "a.zarr")
    assert np.isnan(Archive(path).column("real", "mh")).all()
    (path / "real/mh/c.0").unlink()
    with pytest.raises(ArchiveError, match=r"real/mh/c\.0 is missing"):
        Archive(path).column("real", "mh")


def test_verify_finds_an_array_that_is_whole_but_another_one(small, tmp_path):
    """Written over by other means than `append`, checksums and all."""
    path = shutil.copytree(small, tmp_path / "a.zarr")
    array = zarr.open_group(path, mode="r+", use_consolidated=False)["real/flux"]
    array[3] = np.ones(64, np.float32)
    assert [problem for problem in verify(path) if "row 3 of real" in problem and "hash" in problem]


def test_a_folder_of_something_else_is_no_archive(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/notes.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match="is there and is no archive"),
        Archive.writing(tmp_path / "a.zarr", TINY),
    ):
        pass
    assert (tmp_path / "a.zarr/notes.txt").read_text() == "mine"


# --- schema 3 ----------------------------------------------------------------------------------------


def append(path: Path, rows: list) -> None:
    with Archive.writing(path, TINY) as writer:
        writer.append("real", rows)


def old_columns(archive: Archive) -> dict[str, bytes]:
    return {name: value for name, value in everything(archive).items() if not name.endswith("/content")}


def test_an_archive_of_schema_3_is_read_as_it_is_and_brought_to_schema_4_by_a_writer(formats_0_1):
    path = formats_0_1 / "archive.zarr"
    before, files = Archive(path), sorted(path.rglob("*"))
    assert (before.schema, before.count("real"), verify(path)) == (3, 8, [])
    columns, named = old_columns(before), digest(before)
    assert sorted(path.rglob("*")) == files
    row = before.rows("real")[1]
    new = row | {"key": "new", "origin": "ESO", "mjd": row["mjd"] + 1}
    with pytest.warns(UserWarning, match="18 arrays are read once"):
        append(path, [(new, before.data("real", 1))])
    after = Archive(path)
    assert (after.schema, after.count("real"), verify(path)) == (SCHEMA, 9, [])
    assert after.column("real", "origin").tolist() == [""] * 8 + ["ESO"]
    assert all(map(all, (after.column(group, "content") != "" for group in DATA)))
    assert (path / "real/teff/c/0").exists()  # a reader may be at it
    with Archive.writing(path, TINY) as writer:
        assert not (path / "real/teff/c/0").exists()
        assert writer.column("real", "content")[1] == writer.column("real", "content")[8]
    standing_before = source_digest(after, standing(after)[0][:-1], standing(after)[1])
    assert standing_before == named  # of the same rows, whatever the schema
    kept = {name: value for name, value in old_columns(Archive(path)).items() if name in columns}
    assert {k for k in columns if columns[k] != kept[k]} == {f"real/{name}" for name in SCHEMAS["real"]} - {
        "real/content"
    }
    (path / "real/teff/c.0").write_bytes(bytes(b ^ 1 for b in (path / "real/teff/c.0").read_bytes()))
    assert any("real/teff" in problem for problem in verify(path))


class Killed(BaseException):
    """In the place of a kill."""


def test_a_kill_while_it_is_brought_to_schema_4_spoils_nothing(formats_0_1, monkeypatch):
    """At ever later steps, of which each puts one file in place: it is whole as schema 3 or 4 after every one."""
    path, replace = formats_0_1 / "archive.zarr", os.replace
    whole, schemas, steps = old_columns(Archive(path)), [], {"done": 0, "last": 0}

    def replace_or_die(*arguments, **options):
        steps["done"] += 1
        if steps["done"] == steps["last"]:
            raise Killed
        replace(*arguments, **options)

    monkeypatch.setattr(os, "replace", replace_or_die)
    for last in (1, 30, 150, 300, 354, 360, 5, 30, 0):
        steps |= {"done": 0, "last": last}
        with warnings.catch_warnings(), suppress(Killed):
            warnings.simplefilter("ignore")
            append(path, [])
        schemas.append(Archive(path).schema)
        problems = [problem for problem in verify(path) if "the next ingest sets it right" not in problem]
        assert (problems, old_columns(Archive(path))) == ([], whole)
    assert (schemas[:2], schemas[-3:]) == ([3] * 2, [SCHEMA] * 3)
    assert verify(path) == []


def test_a_newer_or_an_unsealed_archive_is_refused(small, tmp_path):
    path = shutil.copytree(small, tmp_path / "a.zarr")
    document = json.loads((path / "zarr.json").read_text())
    for change, message in ({"harps_dist_schema": 5}, "Update harps_dist"), ({}, "states digest None"):
        attributes = {name: value for name, value in document["attributes"].items() if name != DIGEST} | change
        committed = Committed(path, document | {"attributes": attributes})
        if change:
            committed.write()
        else:
            (path / "zarr.json").write_text(json.dumps(document | {"attributes": attributes}))
        with pytest.raises(ArchiveError, match=message):
            Archive(path)


def test_stock_zarr_and_xarray_read_it(small):
    import xarray

    found = xarray.open_zarr(small, group="real")
    np.testing.assert_array_equal(found["teff"], Archive(small).column("real", "teff"))
    np.testing.assert_array_equal(found["wave"], NARROW.wave_aa)
    assert found["key"].values.tolist() == Archive(small).column("real", "key").tolist()
    assert zarr.open_group(small, mode="r")["sed/flux"].shape == (2, Archive(small).source_grid.length)


def test_a_release_of_schema_3_and_4_of_the_archive_is_the_same(formats_0_1, tmp_path):
    path = formats_0_1 / "archive.zarr"
    one = pack(path, tmp_path / "one")
    with pytest.warns(UserWarning, match="are read once"):
        append(path, [])
    assert pack(path, tmp_path / "two").digest == one.digest
