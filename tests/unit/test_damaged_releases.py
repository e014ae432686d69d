"""A release as others find it: damaged bytes, missing pieces, the shards read by stock tools."""

from __future__ import annotations

import os
import shutil
import tarfile

import numpy as np
import pytest

from harps_dist.data.batches import read_codes
from harps_dist.data.codec import Coded
from harps_dist.data.manifest import SCHEMA
from harps_dist.data.reader import Release
from harps_dist.errors import ReleaseError


@pytest.fixture(scope="module")
def release(tiny_release) -> Release:
    return Release(tiny_release)


def flip_byte(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_names_shard_and_sample(tiny_release, tmp_path):
    shutil.copytree(tiny_release, tmp_path / "release")
    release = Release(tmp_path / "release")
    row = int(release.index.rows("simulated")[3])
    shard = release.index["shard"][row]
    flip_byte(tmp_path / "release" / shard, int(release.index["offset"][row]) + 1_000)
    with pytest.raises(ReleaseError) as error:
        release.array(row)
    assert shard in str(error.value)
    assert release.index["key"][row] in str(error.value)


@pytest.mark.parametrize("kind", ["real", "simulated"])
@pytest.mark.parametrize("how", ["first byte", "last byte", "cut"])
def test_a_damaged_sample_within_a_batch_is_named(tiny_release, tmp_path, kind, how):
    shutil.copytree(tiny_release, tmp_path / "release")
    release = Release(tmp_path / "release")
    index, rows = release.index, release.index.rows(kind)[:4]
    read_codes(release, rows)
    shard, start, size = (index[name][rows[2]] for name in ("shard", "offset", "bytes"))
    if how == "cut":
        os.truncate(tmp_path / "release" / shard, start + size // 2)
    else:
        flip_byte(tmp_path / "release" / shard, int(start + (size - 1 if how == "last byte" else 0)))
    with pytest.raises(ReleaseError, match=rf"{index['key'][rows[2]]} in .*{shard} is damaged"):
        read_codes(release, rows)


def test_an_sed_of_another_length_is_refused(release):
    row = int(release.index.rows("simulated")[0])
    codes, scale = release.coded(row)
    with pytest.raises(ReleaseError, match="has another length than the samples before it"):
        release.coded_into(row, Coded(np.empty((2, len(codes) // 2), codes.dtype), np.empty_like(scale)))


@pytest.mark.parametrize(
    ("name", "message"), [("index.parquet", "index.parquet is damaged"), ("manifest.json", "states digest")]
)
def test_a_damaged_index_or_manifest_is_refused(tiny_release, tmp_path, name, message):
    shutil.copytree(tiny_release, tmp_path / "release")
    path = tmp_path / "release" / name
    position = path.read_text().index('"description": "') + 16 if name == "manifest.json" else 500
    flip_byte(path, position)
    with pytest.raises(ReleaseError, match=message):
        Release(tmp_path / "release")


def test_missing_pieces_are_named(tiny_release, tmp_path):
    with pytest.raises(ReleaseError, match="python -m preprocessing pack"):
        Release(tmp_path)
    shutil.copytree(tiny_release, tmp_path / "release")
    release = Release(tmp_path / "release")
    shard = release.index["shard"][0]
    (tmp_path / "release" / shard).unlink()
    with pytest.raises(ReleaseError, match=shard):
        release.array(0)


def test_a_newer_schema_is_refused(tiny_release, tmp_path):
    shutil.copytree(tiny_release, tmp_path / "release")
    path = tmp_path / "release" / "manifest.json"
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA}', f'"schema_version": {SCHEMA + 1}'))
    with pytest.raises(ReleaseError, match="Update harps_dist"):
        Release(tmp_path / "release")


def test_stock_webdataset_reads_every_sample(release):
    import webdataset

    urls = [f"{release.location}/{shard.name}" for shard in release.manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    rows = {key: row for row, key in enumerate(release.index["key"])}
    described = [(sample, row) for sample in samples for row in sample["json"]["samples"]]
    assert sorted(row["key"] for _, row in described) == sorted(rows)
    for sample, row in described:
        number = rows[row["key"]]
        for name in ("snr", "teff", "airmass"):
            np.testing.assert_equal(row[name], None if np.isnan(found := release.index[name][number]) else found)
        if "flux.zst" in sample:
            np.testing.assert_array_equal(release.codec.decode(sample["flux.zst"]).codes, release.coded(number).codes)
        elif "sed.npy" in sample:
            np.testing.assert_array_equal(sample["sed.npy"], release.coded(number).codes)
        elif "basis.npy" in sample:
            np.testing.assert_array_equal(sample["basis.npy"], release.decoding.basis)


def test_idx_says_where_every_member_lies(release):
    for shard in release.manifest.shards:
        lines = (release.location / shard.name).with_suffix(".idx").read_text().splitlines()
        assert lines[0] == f"v1.2 {shard.samples}"
        with tarfile.open(release.location / shard.name) as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
        listed = {}
        for line in lines[1:]:
            parts = line.split()
            for tail, offset, size, name in zip(*(parts[k::4] for k in range(4)), strict=True):
                assert name.split(".", 1)[1] == tail
                listed[name] = int(offset), int(size)
        assert listed == members
