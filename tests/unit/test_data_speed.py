"""What the speed of reading is measured against gives the same spectra, and the measurement is whole."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch

from harps_dist.benchmarks.data_speed import (
    OURS,
    Loading,
    _load_as_training,
    data_speeds,
    shuffling,
    with_ratios,
    write_loading,
)
from harps_dist.benchmarks.nine_arrays import nine_arrays, simulated_spectrum, standardised
from harps_dist.benchmarks.other_ways import KINDS, NINE
from harps_dist.data.augment import Augment
from harps_dist.data.batches import EvaluationBatches
from harps_dist.data.observer import Observer
from harps_dist.data.order import Mix
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from tests.commands import command, run
from tests.unit.test_order import make_index

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def release(tiny_release) -> Release:
    return Release(tiny_release)


@pytest.mark.parametrize("compile", [False, True])
def test_ours_are_the_spectra_of_the_nine_arrays(release, compile):
    rows = release.index.rows("simulated")[:3]
    augment = Augment(noise=False)
    raw = EvaluationBatches(release, [rows], augment, 0)[0]
    ours = Observer(release.decoding, augment, CPU, compile)(raw).flux.numpy()
    inside = slice(300, -300)  # the nine arrays have no margin to shift from
    for number, row in enumerate(rows):
        theirs = simulated_spectrum(nine_arrays(release, row), float(raw.rv_kms[number]), release.grid, None)
        ratio = ours[number, inside] / theirs[inside]
        assert np.abs(ratio / np.median(ratio) - 1).std() < 1e-3  # they interpolate linearly
        assert np.median(ratio) == pytest.approx(1, abs=2e-3)


def test_noise_of_the_nine_arrays_is_ours(release):
    row = release.index.rows("simulated")[0]
    arrays = nine_arrays(release, row)
    assert np.isnan(arrays[1]).any()
    assert (np.isfinite(arrays[1]) | np.isfinite(arrays[2])).all()
    theirs = np.stack([simulated_spectrum(arrays, 0.0, release.grid, np.random.default_rng(k)) for k in range(60)])
    augment = Augment(rv_kms=0)
    observer = Observer(release.decoding, augment, CPU)
    ours = []
    for epoch in range(60):
        batches = EvaluationBatches(release, [np.array([row])], augment, 0)
        batches.EPOCH = epoch
        ours.append(observer(batches[0]).flux[0].numpy())
    spread = np.std(theirs, axis=0) / np.std(np.stack(ours), axis=0)
    assert np.median(spread) == pytest.approx(1, abs=0.02)
    assert np.median(np.mean(ours, axis=0) / np.mean(theirs, axis=0)) == pytest.approx(1, abs=2e-3)


def test_a_real_sample_is_standardised_as_ours(release):
    flux = release.array(int(release.index.rows("real")[0]))
    np.testing.assert_allclose(standardised(flux * 7, release.grid), flux / np.median(flux), rtol=1e-5)


def test_every_way_is_measured_and_written(release, tmp_path):
    found = data_speeds(release, 8, (1,), 0.0, False, tmp_path)
    ways = {one.way for one in found}
    assert {OURS, NINE, "webdataset, .npy"} <= ways
    for kind in ("simulated", "real"):
        for way in ways:
            mine = [one for one in found if (one.way, one.kind) == (way, kind)]
            assert {(one.what, one.cold) for one in mine if not one.workers} == {
                (what, cold) for what in ("load", "whole") for cold in (False, True)
            }
            assert [one.workers for one in mine if one.workers] == [1]
            assert all(one.spectra_per_s > 0 for one in mine)
            assert all((one.floor_per_s is not None) == (way == OURS and one.what == "load") for one in mine)
    assert list(tmp_path.iterdir()) == []
    order = shuffling(release.index, release.digest, Mix(real=0.0))
    write_loading(found, order, release, False, "cpu", tmp_path / "data.json")
    written = json.loads((tmp_path / "data.json").read_text())
    assert len(written["loading"]) == len(found)
    assert written["release"] == release.digest


@pytest.mark.parametrize("threads", [0, 3])
def test_loading_takes_the_same_samples_as_the_other_ways_and_counts_them(release, threads, monkeypatch):
    rows = release.index.rows("simulated")[:5]
    taken: list[list[int]] = []
    monkeypatch.setattr(
        "harps_dist.benchmarks.data_speed._consume", lambda stream: taken.extend(raw.rows.tolist() for raw in stream)
    )
    run_once, samples = _load_as_training(release, rows, threads, CPU)
    run_once()
    assert taken == [rows.tolist()] * max(1, 4 * threads)
    assert samples == sum(map(len, taken))


def test_loading_is_measured_for_every_number_of_threads_beside_what_a_copy_takes(release, monkeypatch):
    monkeypatch.setattr("harps_dist.benchmarks.data_speed._copied_per_s", lambda threads: 1e9 * (threads + 1))
    monkeypatch.setattr("harps_dist.benchmarks.data_speed.write_other_ways", lambda folder, arrays: {})
    found = [one for one in data_speeds(release, 8, (1, 2, 4), 0.0, False) if one.what == "load"]
    assert [(one.kind, one.workers) for one in found if not one.cold] == list(product(KINDS, (0, 1, 2, 4)))
    for one in found:
        moved = sum(part.nbytes for part in release.coded(int(release.index.rows(one.kind)[0])))
        assert one.floor_per_s == pytest.approx(1e9 * (one.workers + 1) / (1e6 * one.mb + moved))


def test_ratios_compare_like_with_like():
    def one(way: str, what: str, workers: int, rate: float) -> Loading:
        return Loading(way, "real", what, workers, False, rate, 1.0)

    found = [one(NINE, "load", 0, 8.0), one(NINE, "whole", 0, 2.0), one(NINE, "whole", 2, 4.0)]
    found += [
        one(OURS, "load", 0, 4.0),
        one(OURS, "whole", 0, 6.0),
        one(OURS, "load", 2, 40.0),
        one("x", "load", 1, 1.0),
    ]
    assert [loading.ratio for loading in with_ratios(found)] == [1, 1, 1, 0.5, 3, 10, None]


def test_shuffling_tells_a_full_shuffle_from_small_pools(release):
    full = shuffling(release.index, release.digest, Mix(real=0.0), batch=4, epochs=60)
    assert full.meeting_again == pytest.approx(1, abs=0.15)
    assert full.pools_read_mb > 3 * full.random_read_mb
    count, block = 2_000, 8
    index = make_index([], count)
    for pool in (count, 500, 32):
        together = (block - 1) / (pool - 1) if pool < count else 0  # of a batch's pairs, those of one block
        apart = (pool - block) / (count - block) if pool < count else (pool - 1) / (count - 1)
        expected = (count - 1) / (pool - 1) * (together + (1 - together) * apart)
        measured = shuffling(index, "digest", Mix(real=0.0, pool=pool), batch=32, epochs=12)
        assert measured.meeting_again == pytest.approx(expected, rel=0.1), pool


def test_a_release_without_samples_is_refused(release, monkeypatch):
    monkeypatch.setattr(release.index, "rows", lambda kind, split="all": np.empty(0, np.int64))
    with pytest.raises(ConfigError, match="neither real nor simulated"):
        data_speeds(release, 8, (), 0.0, False)


@pytest.mark.slow
def test_the_command_prints_a_table(tiny_release, tmp_path):
    arguments = ("data", "--release", tiny_release, "--samples", 4, "--seconds", 0, "--no-compile", "--workers", 1)
    printed = run(command("launch/benchmark.py", *arguments, "--json", "data.json"), tmp_path)
    assert "nine arrays, memmap" in printed
    assert (tmp_path / "data.json").exists()
