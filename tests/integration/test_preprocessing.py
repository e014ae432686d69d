"""From files to a release: nothing lost, nothing doubled, bad input set aside with its reason."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.data.reader import Release
from harps_dist.errors import DiskFullError, OutputError
from harps_dist.formats.archive import DATA, SCHEMAS, Archive
from harps_dist.formats.quarantine import quarantine_path
from harps_dist.spectra.grid import HARPS, MARGIN, named_grid
from harps_dist.spectra.labels import NAMES
from harps_dist.spectra.noise import photon_sigma
from preprocessing.catalog import Catalog
from preprocessing.etc import ingest_etc
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import Settings, pack
from preprocessing.verify import verify
from tests.commands import command, kill_when, run

TINY = named_grid("tiny")
PREPROCESSING = "preprocessing/__main__.py"


def content(path: Path) -> dict[str, np.ndarray]:
    """Everything an archive holds."""
    archive = Archive(path)
    found = {}
    for group, columns in SCHEMAS.items():
        for name in columns:
            found[f"{group}/{name}"] = archive.column(group, name).astype(str)
        for row in range(archive.count(group)):
            if group in DATA:
                found[f"{group}/{DATA[group]}/{row}"] = archive.data(group, row)
    return found


def assert_same(first: Path, second: Path) -> None:
    expected, found = content(first), content(second)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(values, found[name], err_msg=name)


def quarantined(archive: Path) -> dict[str, str]:
    with quarantine_path(archive).open(newline="", encoding="utf-8") as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def change(source: Path, target: Path, **cards: object) -> None:
    """A copy of an ADP with header cards changed, under a data product id of its own."""
    with fits.open(source) as hdus:
        hdus[0].header["ARCFILE"] = f"{target.name}"
        for key, value in cards.items():
            hdus[0].header[key] = value
        hdus.writeto(target)


def test_bad_files_are_set_aside_and_the_rest_goes_on(tiny_demo, tmp_path):
    good = sorted((tiny_demo / "files/spectra").glob("*.fits"))
    folder = tmp_path / "spectra"
    folder.mkdir()
    for path in good[:4]:
        shutil.copy(path, folder)
    (folder / "a_text.fits").write_text("no FITS at all")
    (folder / "b_empty.fits").touch()
    (folder / "c_cut.fits").write_bytes(good[4].read_bytes()[:40_000])
    shutil.copy(good[0], folder / "z_again.fits")
    with fits.open(good[5]) as hdus:
        hdus[1].data["FLUX"][:] = -1.0
        hdus[0].header.remove("CHECKSUM", ignore_missing=True)
        hdus[1].header.remove("DATASUM", ignore_missing=True)
        hdus[1].header.remove("CHECKSUM", ignore_missing=True)
        hdus.writeto(folder / "d_negative.fits")
    archive = tmp_path / "a.zarr"
    report = ingest_spectra(folder, archive, TINY, Catalog.read(tiny_demo / "files/catalog.csv"))
    assert report.added == 4
    assert Archive(archive).count("real") == 4
    reasons = quarantined(archive)
    assert reasons.keys() == {"a_text.fits", "b_empty.fits", "c_cut.fits", "d_negative.fits", "z_again.fits"}
    assert reasons["z_again.fits"] == "duplicate"
    assert reasons["d_negative.fits"] == "negative"
    assert reasons["c_cut.fits"] == "truncated"
    full = ingest_spectra(good[6], tmp_path / "full.zarr", HARPS)
    assert full.nothing_good
    assert quarantined(tmp_path / "full.zarr") == {good[6].name: "coverage"}
    assert not list(tmp_path.glob(".*.tmp"))


def test_ingesting_again_adds_nothing_and_loses_nothing(tiny_demo, tmp_path):
    archive = tmp_path / "archive.zarr"
    shutil.copytree(tiny_demo / "archive.zarr", archive)
    catalog = Catalog.read(tiny_demo / "files/catalog.csv")
    report = ingest_spectra(tiny_demo / "files/spectra", archive, TINY, catalog)
    assert (report.added, report.already) == (0, Archive(archive).count("real"))
    report = ingest_etc(tiny_demo / "files/etc", archive, TINY, tiny_demo / "files/sed")
    assert (report.added, report.already) == (0, 40 + 4)
    assert_same(tiny_demo / "archive.zarr", archive)


def test_killed_ingest_ends_with_the_same_archive(tiny_demo, tmp_path):
    """Killed between commits and in the middle of one, then started again."""
    archive, files = tmp_path / "archive.zarr", tiny_demo / "files"
    spectra = command(
        PREPROCESSING, "ingest", "--spectra", files / "spectra", "--catalog", files / "catalog.csv",
        "--archive", archive, "--grid", "tiny",
    )  # fmt: skip
    etc = command(PREPROCESSING, "etc", "--json", files / "etc", "--seds", files / "sed", "--archive", archive)
    generative = command(PREPROCESSING, "generative", "--design", files / "generative/design.csv", "--archive", archive)
    column = archive / "real/flux/c"
    assert kill_when(spectra, tmp_path, lambda: column.exists()) == -9
    run(spectra, tmp_path)
    assert kill_when(etc, tmp_path, lambda: (archive / "sed/flux/c/1").exists()) == -9
    run(etc, tmp_path)
    assert kill_when(generative, tmp_path, lambda: (archive / "generative/flux/c/1").exists()) == -9
    run(generative, tmp_path)
    assert_same(tiny_demo / "archive.zarr", archive)
    assert verify(archive) == []


def test_readers_see_whole_commits_only(tiny_demo, tmp_path, monkeypatch):
    archive = tmp_path / "archive.zarr"
    shutil.copytree(tiny_demo / "archive.zarr", archive)
    rows = Archive(archive).count("real")
    columns = {name: "x" if column.dtype == "str" else 0.0 for name, column in SCHEMAS["real"].items()}
    with Archive.writing(archive, TINY) as writer:
        with monkeypatch.context() as patch:
            patch.delitem(columns, "logg")  # the last column: flux and all others are written already
            with pytest.raises(KeyError):
                writer.append("real", [(columns, np.ones(TINY.length))])
        assert Archive(archive).count("real") == rows
        with pytest.raises(OutputError, match="another process is writing"), Archive.writing(archive, TINY):
            pass
    with Archive.writing(archive, TINY) as writer:
        assert writer.count("real") == rows
    assert_same(tiny_demo / "archive.zarr", archive)


def test_the_archive_opens_in_xarray(tiny_demo):
    import xarray

    dataset = xarray.open_zarr(tiny_demo / "archive.zarr", group="real")
    assert dataset.flux.dims == ("spectrum", "wave")
    assert dataset.wave.attrs == {"units": "Angstrom", "medium": "air", "frame": "barycentric"}
    np.testing.assert_allclose(dataset.wave, TINY.wave_aa)
    assert dataset.teff.attrs["units"] == "K"
    archive = Archive(tiny_demo / "archive.zarr")
    np.testing.assert_array_equal(dataset.flux[3], archive.data("real", 3))


def test_verify_finds_a_flipped_byte_in_an_archive(tiny_demo, tmp_path):
    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "a.zarr")
    assert verify(tmp_path / "a.zarr") == []
    shard = next((tmp_path / "a.zarr/real/flux/c").rglob("0/0"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    shard.write_bytes(damaged)
    (problem,) = verify(tmp_path / "a.zarr")
    assert "of real" in problem
    shard.unlink()
    assert any("is missing" in problem for problem in verify(tmp_path / "a.zarr"))


def test_verify_finds_a_flipped_byte_and_a_missing_shard_in_a_release(tiny_release, tmp_path):
    shutil.copytree(tiny_release, tmp_path / "r")
    assert verify(tmp_path / "r") == []
    shard = sorted((tmp_path / "r").glob("real-*.tar"))[0]
    damaged = bytearray(shard.read_bytes())
    release = Release(tmp_path / "r")
    damaged[int(release.index["offset"][release.index.rows("real")[2]]) + 9] ^= 1
    shard.write_bytes(damaged)
    problems = verify(tmp_path / "r")
    assert any(shard.name in problem and "sha256" in problem for problem in problems)
    key = release.index["key"][release.index.rows("real")[2]]
    assert any("crc32c" in problem and key in problem for problem in problems)
    listed = shard.with_suffix(".idx")
    listed.write_bytes(listed.read_bytes().replace(b"json", b"jsom", 1))
    assert any(listed.name in problem for problem in verify(tmp_path / "r"))
    shard.unlink()
    assert any("is missing" in problem for problem in verify(tmp_path / "r"))


def test_same_archive_same_release(tiny_demo, tmp_path):
    release = tiny_demo / "release"
    manifest = Release(release).manifest
    again = pack(
        tiny_demo / "archive.zarr",
        tmp_path / "again",
        Settings(manifest.split_fractions, description=manifest.description, genuine=False),
        workers=3,
    )
    assert again.digest == manifest.digest
    for shard in manifest.shards:
        found = hashlib.sha256((tmp_path / "again" / shard.name).read_bytes()).hexdigest()
        assert found == shard.sha256
    other = pack(tiny_demo / "archive.zarr", tmp_path / "other", Settings((0.5, 0.25, 0.25)))
    assert other.digest != manifest.digest


@pytest.mark.parametrize("codec", ["noise", "u16", "lossless"])
def test_release_holds_what_the_archive_holds(tiny_demo, tmp_path, codec):
    fractions = (0.6, 0.2, 0.2)
    pack(tiny_demo / "archive.zarr", tmp_path / "release", Settings(fractions, codec=codec, genuine=False))
    archive, release = Archive(tiny_demo / "archive.zarr"), Release(tmp_path / "release")
    index = release.index
    bound = {"noise": 0.075, "u16": 0.05, "lossless": 0.0}[codec]
    assert 0 <= index["error"][index.rows("real")].max() <= bound
    assert release.manifest.codec.largest["real"] == index["error"][index.rows("real")].max()
    keys = {f"real-{key}": row for row, key in enumerate(archive.column("real", "key"))}
    rows = index.rows("real")
    assert len(rows) == len(keys) > 0
    for row in rows:
        source = keys[index["key"][row]]
        flux = archive.data("real", source)
        true = (flux / index["median"][row]).astype(np.float64)
        sigma = photon_sigma(true)
        error = (release.array(row) - true) / sigma
        assert np.sqrt((error**2).mean()) == pytest.approx(index["error"][row], abs=1e-4)
        assert index["star"][row] == archive.column("real", "target")[source]
        for name in ("teff", "mh", "logg", "rv", "berv"):
            np.testing.assert_equal(index.labels[row, NAMES.index(name)], archive.column("real", name)[source])
    keys = {f"sed-{key}": row for row, key in enumerate(archive.column("sed", "key"))}
    responses = {index["key"][row]: release.array(row) for row in index.rows("response")}
    inner = release.grid.within(release.source_grid)
    for row in index.rows("simulated"):
        true = archive.data("sed", keys[index["star"][row]])[inner].astype(np.float64)
        log_mean, log_ratio, log_floor = responses[index["response"][row]].astype(np.float64)[:, inner]
        signal = np.exp(log_mean) * true
        error = np.exp(log_mean) * (release.array(row)[inner] - true)
        relative = error / np.sqrt(np.exp(log_ratio) * signal + np.exp(log_floor))
        assert 0 < np.sqrt((relative**2).mean()) <= 1.5 * index["error"][row]
    assert len(set(index["split"][rows])) > 1
    statistics = release.manifest.label_statistics["teff"]
    train = index.labels[index.rows("real", "train"), NAMES.index("teff")]
    assert statistics.mean == pytest.approx(np.nanmean(train))
    assert statistics.std == pytest.approx(np.nanstd(train))


def test_seds_that_repeat_are_stored_once(tiny_demo, tmp_path):
    """Twenty ETC runs of one SED make twenty samples of well under 50 kB each at full length."""
    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "a.zarr")
    archive = Archive(tmp_path / "a.zarr")
    column = {name: archive.column("response", name) for name in SCHEMAS["response"]}
    runs = [
        ({n: v[0] for n, v in column.items()} | {"key": f"run{k}"}, archive.data("response", k % 4)) for k in range(20)
    ]
    with Archive.writing(tmp_path / "a.zarr", TINY) as writer:
        writer.append("response", runs)
    pack(tmp_path / "a.zarr", tmp_path / "release", Settings((1.0, 0.0, 0.0)))
    index = Release(tmp_path / "release").index
    simulated = index.rows("simulated")
    shared = simulated[index["object"][simulated] == column["sed"][0]]
    assert len(shared) == 21
    assert len({(index["shard"][row], index["offset"][row]) for row in shared}) == 1
    assert len(set(index["response"][shared])) == len(set(index["key"][shared])) == 21
    assert index["bytes"][shared[0]] < 2 * (TINY.length + 2 * MARGIN) + 200
    assert index["bytes"][index.rows("response")].sum() == 0  # coefficients only


def test_a_sample_above_the_bound_is_left_out_and_counted(tiny_demo, tmp_path):
    strict = pack(tiny_demo / "archive.zarr", tmp_path / "strict", Settings(bound=0.01))
    assert strict.left_out == {"real with an error above 0.01 of its noise": 34}
    assert "real" not in strict.counts
    assert max(strict.codec.largest.values()) <= 0.01


def test_a_full_disk_says_so_and_leaves_nothing(tiny_demo, tmp_path):
    """A file system of one megabyte, where this machine lets us make one."""
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        with pytest.raises(DiskFullError, match="Free some space"):
            pack(tiny_demo / "archive.zarr", small / "release")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_labels_out_of_the_training_range_leave_the_spectrum_out(tiny_demo, tmp_path):
    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "a.zarr")
    columns = {name: "extra" if column.dtype == "str" else np.nan for name, column in SCHEMAS["real"].items()}
    columns["flag"] = ""
    giant = columns | {"key": "giant", "source": "giant", "teff": 4500.0, "logg": 2.0, "airmass": 3.5}
    missing = columns | {"key": "unlabelled", "source": "unlabelled", "airmass": 3.5}
    with Archive.writing(tmp_path / "a.zarr", TINY) as writer:
        writer.append("real", [(giant, np.ones(TINY.length)), (missing, np.ones(TINY.length))])
    strict = pack(tmp_path / "a.zarr", tmp_path / "strict")
    assert strict.left_out == {"logg outside 3.5..5": 1}
    kept = pack(tmp_path / "a.zarr", tmp_path / "kept", Settings(keep_out_of_range=True))
    assert kept.counts["real"] == strict.counts["real"] + 1
    index = Release(tmp_path / "strict").index
    row = index["key"].tolist().index("real-unlabelled")
    assert np.isnan(index.labels[row]).all()  # an airmass of 3.5 counts as missing


def test_etc_outputs_without_an_order_or_dispersion_are_set_aside(tiny_demo, tmp_path):
    runs = tmp_path / "etc"
    runs.mkdir()
    paths = sorted((tiny_demo / "files/etc").glob("*.json*"))
    for path in paths:
        shutil.copy(path, runs)
    (runs / "broken.json").write_text("{ not JSON")
    older = next(path for path in paths if "orders" in json.loads(path.read_text())["data"])
    damaged = json.loads(older.read_text())
    del damaged["data"]["orders"][1]
    (runs / "no_order.json").write_text(json.dumps(damaged))
    report = ingest_etc(runs, tmp_path / "a.zarr", TINY, tiny_demo / "files/sed")
    assert quarantined(tmp_path / "a.zarr")["broken.json"] == "not_json"
    assert "no_order.json" in quarantined(tmp_path / "a.zarr")
    assert len(report.refused) == 2
    assert Archive(tmp_path / "a.zarr").count("response") == len(paths)


def test_commands_exit_with_what_happened(tiny_demo, tmp_path):
    (tmp_path / "empty").mkdir()
    printed = run(
        command(PREPROCESSING, "ingest", "--spectra", tmp_path / "empty", "--archive", tmp_path / "x.zarr"),
        tmp_path,
        expect=1,
    )
    assert "nothing usable" in printed
    assert "whole" in run(command(PREPROCESSING, "verify", tiny_demo / "release"), tmp_path)
    printed = run(command(PREPROCESSING, "verify", tmp_path / "empty"), tmp_path, expect=1)
    assert "neither an archive" in printed


def test_genuine_files_ingest_with_their_true_headers(genuine_data, tmp_path):
    """All 15 genuine spectra, on the full grid: headers as astropy reads them, labels as the table says."""
    report = ingest_spectra(
        genuine_data / "harps",
        tmp_path / "g.zarr",
        HARPS,
        Catalog.read(genuine_data / "labels.csv"),
        workers=2,
    )
    assert (report.added, report.refused) == (15, [])
    archive = Archive(tmp_path / "g.zarr")
    with (genuine_data / "labels.csv").open() as file:
        literature = {row["object"]: row for row in csv.DictReader(file)}
    for row, source in enumerate(archive.column("real", "source")):
        with gzip.open(genuine_data / "harps" / source) as stream, fits.open(stream) as hdus:
            header = hdus[0].header
        values = {name: archive.column("real", name)[row] for name in SCHEMAS["real"]}
        assert values["object"] == header["OBJECT"]
        assert values["berv"] == header["HIERARCH ESO DRS BERV"]
        assert values["mjd"] == header["MJD-OBS"]
        airmass = (header["HIERARCH ESO TEL AIRM START"] + header["HIERARCH ESO TEL AIRM END"]) / 2
        assert values["airmass"] == pytest.approx(airmass)
        assert values["snr"] > 5
        if "SNR" in header:
            assert values["snr"] == header["SNR"]
        labels = literature[values["object"]]
        for name, column in (("teff", "teff"), ("logg", "logg"), ("mh", "mh"), ("rv", "rv_kms")):
            expected = float(labels[column]) if labels[column] else np.nan
            np.testing.assert_equal(values[name], expected)
    targets = archive.column("real", "target")
    assert len(set(targets)) == 5
    manifest = pack(tmp_path / "g.zarr", tmp_path / "release")
    assert manifest.counts["real"] == 13
    assert manifest.left_out == {"logg outside 3.5..5": 1, "numerically broken flux": 1}  # a giant; Gl 273
    release = Release(tmp_path / "release")
    for row in release.index.rows("real"):
        flux = release.array(row)
        assert flux.shape == (327_680,)
        assert np.median(flux[HARPS.valid]) == pytest.approx(1.0, abs=2e-3)
    assert verify(tmp_path / "release") == []
