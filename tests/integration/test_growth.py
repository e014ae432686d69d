"""A growing archive: only what is new is written, old runs replay, no star changes its split."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.data.order import Mix, Order
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError, ReleaseError
from harps_dist.formats.archive import Archive
from harps_dist.formats.quarantine import quarantine_path
from harps_dist.spectra.grid import named_grid
from preprocessing.catalog import Catalog
from preprocessing.demo import DemoSize, build_delivery
from preprocessing.difference import compare_releases
from preprocessing.etc import ingest_etc
from preprocessing.growth import grow
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import pack
from preprocessing.verify import verify
from preprocessing.withdraw import withdraw_spectra
from tests.commands import TINY as SMALL
from tests.commands import command, environment, kill_when, run

TINY = named_grid("tiny")
PREPROCESSING = "preprocessing/__main__.py"


@pytest.fixture(scope="module")
def delivery(tmp_path_factory) -> Path:
    """A new star of the tiny demo, and a visit to an old one. Read only."""
    size = DemoSize(stars=16, visits=2.0, seds=40, etc_runs=4, cores=4, grid="tiny", split=(0.6, 0.2, 0.2), seed=3)
    return build_delivery(tmp_path_factory.mktemp("delivery"), size, 1, lambda *_: None)


@pytest.fixture
def grown(tiny_demo, delivery, tmp_path) -> Path:
    """Folder of archive.zarr, a copy of the demo's that took the delivery in, and release, which grew by it."""
    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "archive.zarr")
    ingest_spectra(delivery / "spectra", tmp_path / "archive.zarr", TINY, Catalog.read(delivery / "catalog.csv"))
    grow(tmp_path / "archive.zarr", tiny_demo / "release", tmp_path / "release", genuine=False)
    return tmp_path


def inode(path: Path) -> int:
    return path.stat().st_ino


def reprocessed(source: Path, target: Path, version: str, factor: float = 2.0) -> None:
    """The same data product by another version of the pipeline."""
    with fits.open(source) as hdus:
        hdus[0].header["HIERARCH ESO DRS VERSION"] = version
        hdus[1].data["FLUX"][:] *= factor
        for name in ("CHECKSUM", "DATASUM"):
            hdus[1].header.remove(name, ignore_missing=True)
            hdus[0].header.remove(name, ignore_missing=True)
        hdus.writeto(target)


def test_only_new_shards_are_written_and_the_old_release_replays(tiny_demo, grown):
    old, new = Release(tiny_demo / "release"), Release(grown / "release")
    assert (new.manifest.parent, new.manifest.generation) == (old.digest, 1)
    old_shards = {shard.name for shard in old.manifest.shards}
    fresh = [shard for shard in new.manifest.shards if shard.name not in old_shards]
    assert old_shards < {shard.name for shard in new.manifest.shards}
    assert {shard.name.split("-")[0] for shard in fresh} == {"real"}
    assert sum(shard.samples for shard in fresh) == new.manifest.counts["real"] - old.manifest.counts["real"] > 0
    for shard in old.manifest.shards:
        assert inode(grown / "release" / shard.name) == inode(tiny_demo / "release" / shard.name)
    assert verify(grown / "release") == []
    for row in range(len(old.index)):  # the rows before are those of the parent
        assert old.index["key"][row] == new.index["key"][row]
    assert set(new.index["generation"][len(old.index) :]) == {1}
    before, again = (Order(Release(tiny_demo / "release").index, Mix(), 0, old.digest) for _ in range(2))
    np.testing.assert_array_equal(before.batch(7, 12).rows, again.batch(7, 12).rows)


def test_a_grown_release_holds_what_one_packed_anew_holds(tiny_demo, grown, tmp_path):
    settings = Release(tiny_demo / "release").manifest
    from preprocessing.pack import Settings

    pack(grown / "archive.zarr", tmp_path / "anew", Settings(settings.split_fractions, genuine=False))
    new, anew = Release(grown / "release"), Release(tmp_path / "anew")
    assert new.manifest.counts == anew.manifest.counts
    assert new.manifest.label_statistics == anew.manifest.label_statistics
    place = {key: row for row, key in enumerate(anew.index["key"])}
    for row, key in enumerate(new.index["key"]):
        other = place[key]
        np.testing.assert_array_equal(new.index.labels[row], anew.index.labels[other])
        assert new.index["split"][row] == anew.index["split"][other]
        if new.index["kind"][row] != "basis":
            np.testing.assert_array_equal(new.array(row), anew.array(other))


def test_no_star_changes_its_split_and_diff_says_what_came(tiny_demo, delivery, grown):
    found = compare_releases(Release(tiny_demo / "release"), Release(grown / "release"))
    files = {path.stem for path in (delivery / "spectra").glob("*.fits")}
    assert set(found.added) == files
    assert found.sound
    assert found.descends
    assert (found.moved, found.within, found.aliases, found.gone, found.twice) == ([], [], [], [], [])
    assert (len(found.stars_added), list(found.new_visits.values())) == (1, [1])
    printed = run(
        command(PREPROCESSING, "diff", tiny_demo / "release", grown / "release", "--json", grown / "diff.json"), grown
    )
    assert "NOT SOUND" not in printed
    assert json.loads((grown / "diff.json").read_text())["added"] == found.added


def test_growing_again_is_the_same_release_and_nothing_new_is_said_so(tiny_demo, grown):
    digest, place = Release(grown / "release").digest, inode(grown / "release")
    again = grow(grown / "archive.zarr", tiny_demo / "release", grown / "release", genuine=False)
    assert (again.digest, inode(grown / "release")) == (digest, place)  # not written anew below those who read it
    other = grow(grown / "archive.zarr", tiny_demo / "release", grown / "other", genuine=False)
    assert other.digest == digest
    with pytest.raises(ArchiveError, match="has nothing that release"):
        grow(grown / "archive.zarr", grown / "release", grown / "third")
    with pytest.raises(ReleaseError, match="cannot grow from itself"):
        grow(grown / "archive.zarr", grown / "release", grown / "release")
    with pytest.raises(ArchiveError, match="is not of this archive"):
        grow(tiny_demo / "archive.zarr", grown / "release", grown / "third")
    said = run(
        command(PREPROCESSING, "pack", "--archive", grown / "archive.zarr", "--release", grown / "third", "--grow",
                grown / "release", "--bound", "0.2"), grown, expect=1,
    )  # fmt: skip
    assert "bound cannot be chosen with --grow" in said
    damaged = next((grown / "release").glob("real-*.tar"))
    damaged_copy = damaged.read_bytes()
    damaged.unlink()  # of a link: the parent's bytes stay
    damaged.write_bytes(damaged_copy[:-600])
    grow(grown / "archive.zarr", tiny_demo / "release", grown / "release", genuine=False)  # damaged, hence made anew
    assert verify(grown / "release") == []
    assert Release(grown / "release").digest == digest


def test_a_reprocessed_spectrum_supersedes_and_a_withdrawn_one_goes(tiny_demo, tmp_path):
    archive, release = tmp_path / "archive.zarr", Release(tiny_demo / "release")
    shutil.copytree(tiny_demo / "archive.zarr", archive)
    files = sorted((tiny_demo / "files/spectra").glob("*.fits"))
    version = Archive(archive).column("real", "pipeline")[0]
    assert version == "HARPS_3.5"
    (tmp_path / "new").mkdir()
    reprocessed(files[0], tmp_path / "new" / files[0].name, "HARPS_3.10")
    reprocessed(files[1], tmp_path / "new" / files[1].name, "HARPS_3.4")
    report = ingest_spectra(tmp_path / "new", archive, TINY, Catalog.read(tiny_demo / "files/catalog.csv"))
    assert (report.added, report.already) == (1, 0)
    assert "an older version (HARPS_3.4)" in report.refused[0].detail
    report = ingest_spectra(tmp_path / "new", archive, TINY, Catalog.read(tiny_demo / "files/catalog.csv"))
    assert (report.added, report.already) == (0, 1)
    assert verify(archive) == []
    gone = files[2].stem
    assert withdraw_spectra(archive, [gone], "another star in the slit") == 1
    assert withdraw_spectra(archive, [gone], "another star in the slit") == 0
    with pytest.raises(ArchiveError, match=r"holds no data product ADP\.none"):
        withdraw_spectra(archive, [gone, "ADP.none"], "")
    grow(archive, tiny_demo / "release", tmp_path / "release", genuine=False)
    new = Release(tmp_path / "release")
    found = compare_releases(release, new)
    assert found.superseded == [files[0].stem]
    assert found.withdrawn == {gone: "another star in the slit"}
    assert (found.added, found.gone, found.sound) == ([], [], True)
    rows = [list(index["key"]).index(f"real-{files[0].stem}") for index in (release.index, new.index)]
    assert new.index["median"][rows[1]] == pytest.approx(2 * release.index["median"][rows[0]])
    assert new.index["generation"][rows[1]] == 0  # the star is no new one
    assert verify(tmp_path / "release") == []
    assert f"real-{gone}" not in set(new.index["key"])
    reprocessed(files[2], tmp_path / "new" / files[2].name, "HARPS_4")  # a newer version stands again
    ingest_spectra(tmp_path / "new", archive, TINY, Catalog.read(tiny_demo / "files/catalog.csv"))
    grow(archive, tmp_path / "release", tmp_path / "next", genuine=False)
    back = compare_releases(new, Release(tmp_path / "next"))
    assert (back.added, back.withdrawn, Release(tmp_path / "next").manifest.withdrawn) == ([gone], {}, {})


def test_new_simulated_spectra_keep_the_basis_and_the_responses_of_the_old(tiny_demo, tmp_path):
    archive, files = tmp_path / "archive.zarr", tiny_demo / "files"
    half = tmp_path / "etc"
    half.mkdir()
    runs, seds = sorted((files / "etc").glob("*.json*")), tmp_path / "sed"
    shutil.copytree(files / "sed", seds)
    for path in sorted(seds.iterdir())[-8:]:
        path.rename(tmp_path / path.name)
    for path in runs[:3]:
        shutil.copy(path, half)
    ingest_etc(half, archive, TINY, seds)
    first = pack(archive, tmp_path / "first")
    shutil.copy(runs[3], half)
    for path in sorted(tmp_path.glob("*.npz")) + sorted(tmp_path.glob("*.fits")):
        path.rename(seds / path.name)
    ingest_etc(half, archive, TINY, seds)
    second = grow(archive, tmp_path / "first", tmp_path / "second")
    assert second.counts["response"] == first.counts["response"] + 1
    assert second.counts["simulated"] >= first.counts["simulated"] + 8
    old, new = Release(tmp_path / "first"), Release(tmp_path / "second")
    np.testing.assert_array_equal(old.decoding.basis, new.decoding.basis)
    for row in old.index.rows("simulated"):
        assert new.index["response"][row] == old.index["response"][row]
    assert verify(tmp_path / "second") == []
    added = new.index.rows("response")[-1]
    terms = Archive(archive).data("response", 3)
    log_mean = np.log(terms[0] / np.median(terms[0]))
    np.testing.assert_allclose(new.array(int(added))[0], log_mean, atol=2e-3)
    assert len(set(new.index["key"])) == len(new.index)


@pytest.mark.parametrize("whole", ["commit", "end"])
def test_a_growth_killed_anywhere_ends_the_same(tiny_demo, grown, whole):
    arguments = command(
        PREPROCESSING, "pack", "--archive", grown / "archive.zarr", "--release", grown / "killed", "--grow",
        tiny_demo / "release", "--no-genuine",
    )  # fmt: skip
    at = {"commit": lambda: list(grown.glob(".killed.*")), "end": lambda: list(grown.glob(".killed.*/manifest.json"))}
    kill_when(arguments, grown, lambda: bool(at[whole]()))
    run(arguments, grown)
    assert Release(grown / "killed").digest == Release(grown / "release").digest
    assert verify(grown / "killed") == []


def test_packing_while_ingesting_sees_whole_commits(tiny_demo, tmp_path):
    """Packed again and again while another process ingests: every release is whole."""
    archive, files = tmp_path / "archive.zarr", tiny_demo / "files"
    ingest = command(
        PREPROCESSING, "ingest", "--spectra", files / "spectra", "--catalog", files / "catalog.csv", "--archive",
        archive, "--grid", "tiny",
    )  # fmt: skip
    process = subprocess.Popen(ingest, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    sizes = []
    while process.poll() is None or not sizes:
        try:
            manifest = pack(archive, tmp_path / "release")
        except ArchiveError:  # not there yet, or nothing in it
            time.sleep(0.02)
            continue
        assert verify(tmp_path / "release") == []
        sizes.append(manifest.counts["real"])
    assert process.returncode == 0
    assert sizes == sorted(sizes)
    second = run(ingest, tmp_path)
    assert "added 0" in second


def test_a_training_learns_the_same_while_the_archive_and_the_release_grow(tiny_demo, delivery, tmp_path):
    """Its release never changes; that a night is ingested, a spectrum withdrawn and a release grown changes no bit."""
    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "archive.zarr")
    shutil.copytree(tiny_demo / "release", tmp_path / "release")
    options = ("--data.release", tmp_path / "release", "--training.steps", 12, "--log.save-every", 4)
    alone, beside = (command("launch/train.py", "demo-cnn-mix", "--out", out, *options, *SMALL) for out in "ab")
    run(alone, tmp_path)
    process = subprocess.Popen(beside, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    while not (tmp_path / "b/recipe.yaml").exists():
        assert process.poll() is None
        time.sleep(0.01)
    archive, nights = tmp_path / "archive.zarr", 0
    while process.poll() is None:
        night = tmp_path / f"night{nights}"
        night.mkdir()
        for path in sorted((delivery / "spectra").glob("*.fits")):
            reprocessed(path, night / path.name, f"HARPS_{nights}")
        ingest_spectra(night, archive, TINY, Catalog.read(delivery / "catalog.csv"))
        if not nights:
            withdraw_spectra(archive, [Archive(archive).column("real", "key")[0]], "cloud")
        grow(archive, tmp_path / "release", tmp_path / f"grown{nights}", genuine=False)
        nights += 1
    assert process.returncode == 0
    assert nights
    weights = [tmp_path / out / "checkpoints/step-00000012/model.safetensors" for out in "ab"]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert verify(tmp_path / f"grown{nights - 1}") == []


def test_a_second_ingest_waits_its_turn(tiny_demo, tmp_path):
    archive = tmp_path / "archive.zarr"
    ingest = command(
        PREPROCESSING, "ingest", "--spectra", tiny_demo / "files/spectra", "--archive", archive, "--grid", "tiny"
    )
    with Archive.writing(archive, TINY):
        said = run(ingest, tmp_path, expect=1)
    assert "another process is writing" in said
    assert not quarantine_path(archive).exists()
    run(ingest, tmp_path)
    assert verify(archive) == []


def test_genuine_spectra_arrive_on_a_simulated_archive(genuine_data, tmp_path):
    """Real visits are matched, split by star and told of; the star that observers call by two names stays one."""
    from preprocessing.demo import DESCRIPTION
    from preprocessing.pack import Settings
    from preprocessing.simulator.demo_files import write_demo

    files, archive, demo_grid = tmp_path / "files", tmp_path / "a.zarr", named_grid("demo")
    write_demo(files, 6, 2.0, 8, 2, 0, 5)
    ingest_spectra(files / "spectra", archive, demo_grid, Catalog.read(files / "catalog.csv"))
    ingest_etc(files / "etc", archive, demo_grid, files / "sed")
    pack(archive, tmp_path / "before", Settings((0.6, 0.2, 0.2), description=DESCRIPTION, genuine=False))
    first = sorted((genuine_data / "harps").glob("*"))[:9]
    for number, paths in enumerate([first, sorted((genuine_data / "harps").glob("*"))[9:]]):
        (tmp_path / f"night{number}").mkdir()
        for path in paths:
            shutil.copy(path, tmp_path / f"night{number}")
    ingest_spectra(tmp_path / "night0", archive, demo_grid, Catalog.read(genuine_data / "labels.csv"))
    grow(archive, tmp_path / "before", tmp_path / "then")
    ingest_spectra(tmp_path / "night1", archive, demo_grid)  # without a catalogue: known by name and place
    grow(archive, tmp_path / "then", tmp_path / "after")
    steps = [Release(tmp_path / name) for name in ("before", "then", "after")]
    assert not steps[2].manifest.genuine  # not all of it
    one, two = compare_releases(steps[0], steps[1]), compare_releases(steps[1], steps[2])
    whole = compare_releases(steps[0], steps[2])
    assert one.sound
    assert two.sound
    assert len(one.added) + len(two.added) == len(whole.added) == 13  # one giant, one broken
    names = dict(zip(steps[2].index["key"], steps[2].index["star"], strict=True))
    assert len({names[f"real-{key}"] for key in whole.added}) == 3
    assert set(two.new_visits) <= set(one.stars_added)
    assert sum(two.new_visits.values()) > 0
    assert verify(tmp_path / "after") == []
