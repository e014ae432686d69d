"""Where releases lie: folders, web servers, object stores; caches; every kind of damage."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from harps_dist.data.manifest import INDEX, MANIFEST
from harps_dist.data.reader import Release
from harps_dist.data.stores import Cache
from harps_dist.errors import DiskFullError, HarpsDistError, ReleaseError
from tests.commands import TINY, command, environment, run
from tests.servers import http_server, s3_server


@pytest.fixture
def copied(tiny_release, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_release, tmp_path / "release"))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def all_codes(release: Release) -> list[np.ndarray]:
    kinds = ("real", "simulated", "generative")
    return [release.coded(int(row)).codes for kind in kinds for row in release.index.rows(kind)]


def same(one: Release, other: Release) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(all_codes(one), all_codes(other), strict=True))


def test_a_web_server_gives_what_the_folder_gives(tiny_release, tmp_path):
    with http_server(tiny_release) as server:
        cache = Cache(folder=str(tmp_path / "cache"))
        remote, local = Release(server.url, cache), Release(tiny_release)
        assert remote.digest == local.digest
        assert same(remote, local)
        np.testing.assert_array_equal(remote.decoding.basis, local.decoding.basis)
        asked = len(server.requests)
        ranges = [spec for path, spec in server.requests if path.endswith(".tar")]
        assert all(ranges)
        assert len(ranges) == len(set(ranges)) < len(local.index) / 4  # a block at a time, once
        assert same(Release(server.url, cache), local)
        assert [path for path, _ in server.requests[asked:]] == [f"/{MANIFEST}", f"/{INDEX}"]


def test_an_object_store_gives_what_the_folder_gives(tiny_release, tmp_path, monkeypatch):
    pytest.importorskip("moto")
    from obstore import put
    from obstore.store import S3Store

    with s3_server() as url:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(f"{url}/spectra", method="PUT"))
        bucket = S3Store("spectra", prefix="release", client_options={"allow_http": True})
        for path in tiny_release.iterdir():
            put(bucket, path.name, path.read_bytes())
        remote = Release("s3://spectra/release", Cache(folder=str(tmp_path / "cache")))
        assert same(remote, Release(tiny_release))
        arguments = (
            "demo-cnn-mix", "--data.release", "s3://spectra/release", "--data.cache.folder", tmp_path / "cache",
            "--data.workers", 2, "--training.steps", 2, *TINY,
        )  # fmt: skip
        run(command("launch/train.py", *arguments, "--out", "run"), tmp_path)
        with pytest.raises(ReleaseError, match="is not a release"):
            Release("s3://spectra/nowhere", Cache(folder=str(tmp_path / "cache")))


def test_faults_of_the_network_are_outlived(tiny_release, tmp_path):
    with http_server(tiny_release) as server:
        server.faults = [503, 500]
        remote = Release(server.url, Cache(folder=str(tmp_path / "cache")))
        row = int(remote.index.rows("real")[0])
        server.faults = [502, "cut", 503]
        np.testing.assert_array_equal(remote.coded(row).codes, Release(tiny_release).coded(row).codes)
        assert not server.faults


def test_a_server_that_is_gone_is_named(tiny_release, tmp_path, monkeypatch):
    monkeypatch.setattr("harps_dist.data.stores._RETRIES", 1)
    with http_server(tiny_release) as server:
        url = server.url
        remote = Release(url, Cache(folder=str(tmp_path / "cache")))
        server.faults = [503, 503]
        with pytest.raises(ReleaseError, match="could not be read after 1 retries"):
            remote.coded(0)
    with pytest.raises(ReleaseError, match=f"{url}/{MANIFEST} could not be read"):
        Release(url, Cache(folder=str(tmp_path / "cache")))


def test_the_cache_stays_in_its_bounds_and_drops_what_was_used_longest_ago(tiny_release, tmp_path):
    folder = tmp_path / "cache"
    with http_server(tiny_release) as server:
        whole = Release(server.url, Cache(folder=str(folder)))
        all_codes(whole)
        blocks = sorted(folder.iterdir())
        sizes = [path.stat().st_size for path in blocks]
        shutil.rmtree(folder)
        bound = sum(sizes) - 1  # one of the three kinds must go
        small = Release(server.url, Cache(folder=str(folder), gb=bound / 1e9))
        for age, kind in enumerate(("generative", "real")):
            small.coded(int(small.index.rows(kind)[0]))
            (block,) = folder.glob(f"{kind}-*.block")
            os.utime(block, (age, age))
        small.coded(int(small.index.rows("simulated")[0]))
        assert {path.name.split("-")[0] for path in folder.iterdir()} == {"real", "simulated"}
        small = Release(server.url, Cache(folder=str(folder), gb=(max(sizes) + 1) / 1e9))
        for _ in range(3):
            assert same(small, Release(tiny_release))
            assert sum(path.stat().st_size for path in folder.iterdir()) <= max(sizes) + 1


def test_what_killed_writers_left_in_the_cache_is_removed(tiny_release, tmp_path):
    with http_server(tiny_release) as server:
        old, new = (tmp_path / f".real-{name}.block.0123abcd.tmp" for name in ("0-1", "1-1"))
        foreign = [tmp_path / name for name in ("notes.txt", "thesis.block", ".notes.0123abcd.tmp")]
        for path in (old, new, *foreign):
            path.write_text("x" * 1000)
        for path in (old, *foreign):
            os.utime(path, (0, 0))
        Release(server.url, Cache(folder=str(tmp_path), gb=1e-7)).coded(0)
        assert not old.exists()
        assert all(path.exists() for path in foreign)  # of someone else, whose folder was given for the cache
        assert new.exists()  # it may still be written


def test_many_readers_share_a_cache(tiny_release, tmp_path):
    with http_server(tiny_release) as server:
        cache = Cache(folder=str(tmp_path / "cache"), gb=2e-4)  # so small that blocks come and go
        expected = all_codes(Release(tiny_release))

        def read(_: int) -> bool:
            found = all_codes(Release(server.url, cache))
            return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(read, range(6)))


def test_a_byte_flipped_in_the_cache_is_told_and_fetched_again(tiny_release, tmp_path):
    with http_server(tiny_release) as server:
        remote = Release(server.url, Cache(folder=str(tmp_path / "cache")))
        row = int(remote.index.rows("real")[3])
        remote.coded(row)
        (block,) = (tmp_path / "cache").glob("real-*.block")
        for damage in ("flip", "cut"):
            start = int(block.stem.split("-")[-2])
            if damage == "flip":
                flip(block, int(remote.index["offset"][row]) - start + 5)
            else:
                block.write_bytes(block.read_bytes()[: int(remote.index["offset"][row]) - start + 5])
            with pytest.warns(UserWarning, match="in the cache; it is fetched again") as warned:
                codes = remote.coded(row).codes
            np.testing.assert_array_equal(codes, Release(tiny_release).coded(row).codes)
            text = str(warned[0].message)
            assert remote.index["key"][row] in text
            assert remote.index["shard"][row] in text


def test_a_byte_flipped_on_the_server_is_an_error_fresh_and_cached(copied, tmp_path):
    with http_server(copied) as server:
        remote = Release(server.url, Cache(folder=str(tmp_path / "cache")))
        row = int(remote.index.rows("simulated")[1])
        shard = remote.index["shard"][row]
        flip(copied / shard, int(remote.index["offset"][row]) + 200)
        with pytest.raises(ReleaseError, match="is damaged") as fresh:
            remote.coded(row)
        with (
            pytest.warns(UserWarning, match="fetched again"),
            pytest.raises(ReleaseError, match="is damaged") as cached,
        ):
            remote.coded(row)
        for error in (fresh, cached):
            assert shard in str(error.value)
            assert remote.index["key"][row] in str(error.value)


def test_no_flipped_byte_of_a_member_goes_unseen(copied):
    """Wherever it lies in the member: header of the array, first and last byte."""
    release = Release(copied)
    for kind in ("real", "simulated", "generative"):
        row = int(release.index.rows(kind)[0])
        path, offset = copied / release.index["shard"][row], int(release.index["offset"][row])
        for position in (0, 1, 60, int(release.index["bytes"][row]) // 2, int(release.index["bytes"][row]) - 1):
            flip(path, offset + position)
            with pytest.raises(ReleaseError, match="is damaged"):
                release.coded(row)
            flip(path, offset + position)
        release.coded(row)
    row = int(release.index.rows("basis")[0])
    flip(copied / release.index["shard"][row], int(release.index["offset"][row]) + 500)
    with pytest.raises(ReleaseError, match="response-basis"):
        _ = Release(copied).decoding


def test_no_flipped_byte_of_manifest_or_index_goes_unseen(copied):
    whole = Release(copied).manifest
    for name in (MANIFEST, INDEX):
        size = (copied / name).stat().st_size
        for position in np.linspace(0, size - 1, 60).astype(int):
            flip(copied / name, position)
            with contextlib.suppress(HarpsDistError):
                assert Release(copied).manifest == whole  # as with the last digit of a number that means the same
            flip(copied / name, position)
    assert Release(copied).manifest == whole


def test_opening_a_release_starts_no_threads(copied):
    """Arrow's may abort a process that ends soon after."""
    code = f"""
import os, pyarrow.parquet
from harps_dist.data.reader import Release
before = len(os.listdir("/proc/self/task"))
Release({str(copied)!r})
print(len(os.listdir("/proc/self/task")) - before)"""
    assert run([sys.executable, "-c", code], copied).strip() == "0"


def test_a_truncated_shard_says_so(copied):
    release = Release(copied)
    row = int(release.index.rows("generative")[-1])
    path = copied / release.index["shard"][row]
    path.write_bytes(path.read_bytes()[: int(release.index["offset"][row]) + 10])
    with pytest.raises(ReleaseError, match=r"the shard is truncated.*Copy the shard anew"):
        release.coded(row)


def test_a_missing_shard_on_a_server_is_named(copied, tmp_path):
    with http_server(copied) as server:
        remote = Release(server.url, Cache(folder=str(tmp_path / "cache")))
        shard = remote.index["shard"][0]
        (copied / shard).unlink()
        with pytest.raises(ReleaseError, match=f"{shard} is missing. Upload"):
            remote.coded(0)


def test_a_full_cache_disk_says_what_to_do(tiny_release, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        with http_server(tiny_release) as server:
            remote = Release(server.url, Cache(folder=str(small)))
            with pytest.raises(DiskFullError, match=r"--data\.cache"):
                remote.coded(0)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_without_obstore_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['obstore'] = sys.modules['obstore.store'] = None\n"
        "from harps_dist.data.reader import Release\nRelease('s3://a/b')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert "pip install 'harps_dist[remote]'" in done.stderr
