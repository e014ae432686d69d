"""A release is of what its archive holds: what changes there makes another release, or is refused where it may not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import preprocessing.__main__ as cli
from harps_dist.data.manifest import INDEX, MANIFEST, Manifest
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError, ReleaseError
from harps_dist.formats.archive import Archive
from harps_dist.formats.standing import standing
from harps_dist.spectra.grid import Grid, named_grid
from preprocessing.difference import compare_releases
from preprocessing.growth import grow
from preprocessing.pack import Settings, pack
from preprocessing.rows import MADE_OF, source_digest
from preprocessing.verify import verify
from tests.archives import STRETCHED, altered, remade

SPLIT = Settings((0.4, 0.3, 0.3))


TEXTS = ("target", "object", "flag", "pipeline", "catalogue_id", "origin", "simulated", "sed", "core", "etc_run")
SETS = {"split": "validation", "varied": "mh"}


def later(value: float) -> float:
    return value + 1.0 if np.isfinite(value) else 1.0


def digest(archive: Archive) -> str:
    return source_digest(archive, *standing(archive)[:2])


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group, names in MADE_OF.items() for name in (*names, STRETCHED) if name != "key"],
)
def test_whatever_a_release_is_made_of_is_in_its_source_digest(group, name, kept_formats_0_1):
    value = 1.0001 if name == STRETCHED else SETS.get(name, "other" if name in TEXTS else later)
    path = kept_formats_0_1 / "archive.zarr"
    assert digest(altered(path, {(group, 1): {name: value}})) != digest(Archive(path))
    if value is later:
        gone, zero = (altered(path, {(group, 1): {name: number}}) for number in (np.nan, 0.0))
        assert digest(gone) != digest(zero)


def test_what_no_release_holds_is_not_in_it_and_neither_is_the_order_of_rows(kept_formats_0_1, tmp_path):
    before = Archive(kept_formats_0_1 / "archive.zarr")
    told = altered(before.path, {("real", 1): {"source": "elsewhere.fits", "stamp": "1-2", "prog_id": "x"}})
    with Archive.writing(tmp_path / "turned.zarr", named_grid("tiny")) as writer:
        for group in MADE_OF:
            rows = [(row, before.data(group, number)) for number, row in enumerate(before.rows(group))]
            writer.append(group, rows[::-1])
        writer.append("withdrawn", [(row, None) for row in before.rows("withdrawn")])
    assert digest(before) == digest(told) == digest(Archive(tmp_path / "turned.zarr"))


def test_grid_and_source_margin_are_in_the_source_digest(kept_formats_0_1, tmp_path):
    before, grid = kept_formats_0_1 / "archive.zarr", named_grid("tiny")
    moved = remade(before, tmp_path / "moved.zarr", grid=Grid(grid.name, grid.start + 1, grid.length))
    assert digest(Archive(moved)) != digest(Archive(before))
    narrow = Archive(before)
    narrow.source_grid = narrow.grid.widened(17)
    assert digest(narrow) != digest(Archive(before))


def test_pack_takes_new_labels_and_says_that_a_release_is_replaced(kept_formats_0_1, tmp_path, capsys):
    """Fractions as before, an archive made anew with a catalogue that is 900 K hotter."""
    archive, release = kept_formats_0_1 / "archive.zarr", tmp_path / "release"

    def packed(path: Path) -> str:
        assert cli.pack(archive=path, release=release, split=SPLIT.fractions) == 0
        return capsys.readouterr().out

    assert "in place of" not in packed(archive)
    before = Release(release)
    assert "it is just what was there before" in packed(archive)

    hotter = {("real", number): {"teff": lambda teff: teff + 900} for number in range(8)}
    said = packed(remade(archive, tmp_path / "hotter.zarr", hotter))
    assert f"in place of release {before.digest[:12]} there: the archive's content differs" in said
    after = Release(release)
    found = compare_releases(before, after)
    assert len(found.relabelled) == np.isfinite(before.index["teff"][before.index.rows("real")]).sum() > 0
    np.testing.assert_array_equal(
        np.sort(after.index["teff"][after.index.rows("real")]),
        np.sort(before.index["teff"][before.index.rows("real")] + 900),
    )
    cli.pack(archive=archive, release=release, split=(0.6, 0.2, 0.2), description="other")
    assert "the archive's content differs" in capsys.readouterr().out
    cli.pack(archive=archive, release=release, split=(0.5, 0.3, 0.2), description="other")
    assert "its split_fractions" in capsys.readouterr().out


# --- growing -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(kept_formats_0_1, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "release"
    pack(kept_formats_0_1 / "archive.zarr", folder, SPLIT)
    return folder


@pytest.fixture
def parent(kept_formats_0_1, packed, tmp_path) -> tuple[Path, Path]:
    """An archive, not to be changed, and a release of it as they are written now, which may be."""
    return kept_formats_0_1 / "archive.zarr", shutil.copytree(packed, tmp_path / "parent")


def grown(archive: Path, parent: Path, folder: Path) -> tuple[Release, Counter[str]]:
    changes: Counter[str] = Counter()
    grow(archive, parent, folder, changes=changes)
    assert verify(folder) == []
    return Release(folder), changes


RENEWED = {
    ("real", 1): {"teff": 5123.0},
    ("real", 2): {"rv": np.nan, "berv": 3.0},
    ("real", 3): {"snr": 77.0, "object": "renamed"},
    ("real", 4): {"catalogue_id": "TIC 1", "mjd": 5.0, "ra": 1.0, "dec": 2.0},
    ("real", 5): {"pipeline": "HARPS_3.8"},
    ("real", 6): {"flag": "numerically broken flux"},
    ("real", 7): {"teff": 20000.0},
}
RELABELLED = {("real", 1): RENEWED["real", 1]}
both = pytest.mark.parametrize("old", [True, False], ids=["schema 4", "schema 5"])


@both
def test_what_the_archive_says_anew_of_a_spectrum_is_written_anew(old, parent, kept_formats_0_1, tmp_path):
    """Labels, descriptions, versions; and what may not be taken any more goes, to come back when it may."""
    archive, release = parent
    release = kept_formats_0_1 / "release" if old else release
    keys = [f"real-{key}" for key in Archive(archive).column("real", "key")]
    changed = remade(archive, tmp_path / "changed.zarr", RENEWED)
    new, changes = grown(changed, release, tmp_path / "grown")
    assert changes == {"with other labels": 2, "otherwise described": 2, "reprocessed": 1, "left out now": 2}
    assert new.manifest.left_out == {"numerically broken flux": 1, "teff outside 3000..11000": 1}
    before = Release(release)
    assert set(before.index["key"]) - set(new.index["key"]) == {keys[6], keys[7]}
    for (_, number), change in list(RENEWED.items())[:5]:
        row = list(new.index["key"]).index(keys[number])
        for name, value in change.items():
            np.testing.assert_equal(new.index[name][row], value)
        assert (new.index["generation"][row], new.index["pipeline"][row] != "") == (0, True)
    fresh = [shard for shard in new.manifest.shards if not (release / shard.name).exists()]
    assert [shard.samples for shard in fresh] == [5]
    with pytest.raises(ArchiveError, match="has nothing that release"):
        grow(changed, tmp_path / "grown", tmp_path / "next")
    anew = pack(changed, tmp_path / "anew", SPLIT)
    assert (anew.label_statistics, anew.counts) == (new.manifest.label_statistics, new.manifest.counts)
    back, changes = grown(archive, tmp_path / "grown", tmp_path / "back")
    assert changes == {"with other labels": 2, "otherwise described": 2, "reprocessed": 1, "new": 2}
    assert (set(back.index["key"]), back.manifest.left_out) == (set(before.index["key"]), {})


@both
def test_a_flag_alone_is_a_reason_to_grow(old, parent, kept_formats_0_1, tmp_path):
    archive, release = parent
    changed = remade(archive, tmp_path / "changed.zarr", {("real", 6): RENEWED["real", 6]})
    new, changes = grown(changed, kept_formats_0_1 / "release" if old else release, tmp_path / "grown")
    assert (changes, len(new.index)) == ({"left out now": 1}, len(Release(release).index) - 1)


REFUSED = {
    "spectra": (
        {("real", 3): {"target": "x"}, ("real", 4): {STRETCHED: 1.05}, ("real", 5): {"key": ""}},
        ("1 of another star than before", "1 of other flux in the same version", "1 not in the archive"),
    ),
    "flux with the median as it was": ({("real", 4): {STRETCHED: 0.5}}, ("1 of other flux in the same version",)),
    "arrays": (
        {("sed", 1): {STRETCHED: 1.01}, ("response", 1): {STRETCHED: 1.01}, ("generative", 1): {STRETCHED: 1.01}},
        ("1 sed entries", "1 response entries", "1 generative entries"),
    ),
    "labels": (
        {("sed", 1): {"teff": later}, ("sed", 2): {"key": ""}, ("generative", 1): {"core": "x"}},
        ("1 sed entries", "1 generative entries", "1 not in the archive"),
    ),
    "a run": ({("response", 1): {"airmass": later}}, ("sed entries", "1 response entries")),
}


@both
@pytest.mark.parametrize("name", REFUSED)
def test_a_release_does_not_grow_over_what_its_splits_and_samples_stand_on(
    name, old, parent, kept_formats_0_1, tmp_path
):
    (archive, release), (changes, messages) = parent, REFUSED[name]
    changed = remade(archive, tmp_path / "changed.zarr", changes)
    with pytest.raises(ArchiveError, match="is not of this archive") as refused:
        grow(changed, kept_formats_0_1 / "release" if old else release, tmp_path / "grown")
    for message in (*messages, "pack without --grow"):
        assert message in str(refused.value)
    assert str(refused.value).count("such as") == len(messages)
    assert not (tmp_path / "grown").exists()


def test_pack_says_what_changed_in_growing(parent, tmp_path, capsys):
    archive, release = parent
    changed = remade(archive, tmp_path / "changed.zarr", RELABELLED)
    assert cli.pack(archive=changed, release=tmp_path / "grown", grow=release) == 0
    assert "1 with other labels" in capsys.readouterr().out
    assert cli.diff(release, tmp_path / "grown") == 0
    assert "spectra with other labels" in capsys.readouterr().out


def test_a_release_does_not_grow_on_another_grid(parent, tmp_path):
    archive, release = parent
    grid = named_grid("tiny")
    moved = remade(archive, tmp_path / "moved.zarr", grid=Grid(grid.name, grid.start + 1, grid.length))
    with pytest.raises(ArchiveError, match=r"is on grid tiny \(instrument, .* \(.harps., 231001, 4096, 480\)"):
        grow(moved, release, tmp_path / "grown")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "listing"])
def test_a_release_does_not_grow_from_a_damaged_one(damage, parent, tmp_path):
    archive, release = parent
    shard = next(release.glob("simulated-*.tar" if damage != "listing" else "simulated-*.idx"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(content[:-1] if damage == "cut" else content)
    changed = remade(archive, tmp_path / "changed.zarr", RELABELLED)
    with pytest.raises(ReleaseError, match=rf"{shard.name}.*Restore it from a copy"):
        grow(changed, release, tmp_path / "grown")
    assert sorted(tmp_path.glob("*grown*")) == []


# --- what a manifest may say -------------------------------------------------------------------------


def rewritten(release: Path, table=None, **changes: object) -> Path:
    """The release with another manifest and index, which vouch for themselves."""
    raw = json.loads((release / MANIFEST).read_text()) | changes
    if table is not None:
        pq.write_table(table, release / INDEX)
        raw["index_sha256"] = hashlib.sha256((release / INDEX).read_bytes()).hexdigest()
    raw.pop("digest")
    loose = Manifest.model_construct(**raw)  # as a stranger might write it
    content = json.dumps(loose.model_dump(mode="json", exclude={"index_sha256"}, warnings=False), sort_keys=True)
    (release / MANIFEST).write_text(json.dumps(raw | {"digest": hashlib.sha256(content.encode()).hexdigest()}))
    return release


@pytest.mark.parametrize(
    "name",
    ["../evil.tar", "/tmp/evil.tar", ".hidden.tar", "a\0.tar", "sub/a.tar", "..", "", "a.txt", "ä.tar", "a.tar\n"],
)
def test_a_shard_has_a_plain_name(name, parent):
    release = parent[1]
    shards = json.loads((release / MANIFEST).read_text())["shards"]
    shards[0]["name"] = name
    with pytest.raises(ReleaseError, match="no plain name"):
        Release(rewritten(release, shards=shards))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("shard", "../evil.tar"),
        ("shard", "none.tar"),
        ("offset", -1),
        ("bytes", -5),
        ("bytes", 2**60),
        ("block", -1),
        ("block", 2**60),
    ],
)
def test_the_index_leads_into_the_shards_of_the_manifest_alone(column, value, parent):
    import pyarrow as pa

    release = parent[1]
    table = pq.read_table(release / INDEX)
    values = table[column].to_pylist()
    values[2] = value
    place = table.column_names.index(column)
    table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    with pytest.raises(ReleaseError, match="where no shard of the manifest is"):
        Release(rewritten(release, table))


def test_a_manifest_that_calls_simulated_files_genuine_or_names_a_shard_twice_is_refused(parent):
    release = parent[1]
    shards = json.loads((release / MANIFEST).read_text())["shards"]
    with pytest.raises(ReleaseError, match="names a shard twice"):
        Release(rewritten(release, shards=[*shards, shards[0]]))
    with pytest.raises(ReleaseError, match="calls spectra genuine whose files say ORIGIN = SIMULATED"):
        Release(rewritten(release, shards=shards, genuine=True, simulated={"ORIGIN = SIMULATED": 3}))


def test_an_index_that_is_no_table_is_refused(parent):
    release = parent[1]
    (release / INDEX).write_bytes(b"PAR1 and no more")
    raw = json.loads((release / MANIFEST).read_text())
    rewritten(release, index_sha256=hashlib.sha256((release / INDEX).read_bytes()).hexdigest())
    assert raw["schema_version"] == 5
    with pytest.raises(ReleaseError, match="is no Parquet file"):
        Release(release)


def test_a_release_is_linked_and_not_copied(parent, tmp_path):
    archive, release = parent
    changed = remade(archive, tmp_path / "changed.zarr", RELABELLED)
    new, _ = grown(changed, release, tmp_path / "grown")
    shared = [shard for shard in new.manifest.shards if (release / shard.name).exists()]
    assert shared
    assert all(os.path.samefile(release / shard.name, tmp_path / "grown" / shard.name) for shard in shared)
    shutil.rmtree(release)
    assert verify(tmp_path / "grown") == []
