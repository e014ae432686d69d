"""Order, split and keyed randomness: pure functions, whatever the ranks.

Draws are hashes of what stands in a test, so that shares of them are the same in every run and on every machine.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harps_dist.data.keyed import key_of, keys_of, permutation, raw_bits_of_keys, uniforms, uniforms_of_keys
from harps_dist.data.ledger import LedgerFile, read_ledger
from harps_dist.data.manifest import INDEX_COLUMNS, Index
from harps_dist.data.order import Mix, Order, OrderState, rank_slice
from harps_dist.data.split import split_of
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.spectra.labels import NAMES


def make_index(visits: list[int], simulated: int) -> Index:
    """An index of stars with so many visits each, and simulated samples, all for training."""
    stars = [f"star{s}" for s, count in enumerate(visits) for _ in range(count)]
    rows = len(stars) + simulated
    columns = {name: np.zeros(rows) for name in INDEX_COLUMNS}
    columns |= {name: np.full(rows, np.nan) for name in NAMES}
    columns["key"] = [f"key{row}" for row in range(rows)]
    columns["star"] = stars + [f"sed{n}" for n in range(simulated)]
    columns["kind"] = ["real"] * len(stars) + ["simulated"] * simulated
    columns["split"] = ["train"] * rows
    columns["block"] = np.arange(rows) // 8
    columns["response"] = columns["object"] = columns["shard"] = [""] * rows
    return Index(pa.table(columns))


def test_keyed_draws_are_the_same_on_every_machine():
    """Frozen values: a change here changes every run ever made."""
    assert key_of("a", 1, ("b", 2)) == key_of("a", 1, ("b", 2)) != key_of("a", 1, ("b", 3))
    assert key_of("release", 0) == 3816599277793829973
    np.testing.assert_allclose(uniforms(3, "x", 5), [0.56836462, 0.38019295, 0.81054162], atol=1e-8)
    assert permutation(6, "p").tolist() == [4, 0, 2, 5, 3, 1]


def test_many_keys_at_a_time_draw_what_each_draws_alone():
    rng = np.random.default_rng(0)
    keys = np.concatenate([rng.integers(0, 2**64, 500, np.uint64), np.array([0, 1, 2**32 - 1, 2**64 - 1], np.uint64)])
    for count in (0, 1, 2, 4, 5, 8, 23):
        alone = np.stack([np.random.Philox(key=int(key)).random_raw(count) for key in keys])
        np.testing.assert_array_equal(raw_bits_of_keys(count, keys), alone)
    assert raw_bits_of_keys(3, keys[:0]).shape == (0, 3)
    names = [f"{seed}\0{name}" for seed in (0, 7) for name in ("TIC 1", "ζ")]
    keys = keys_of("velocity", names)
    assert keys.tolist() == [key_of("velocity", *name.split("\0")) for name in names]
    alone = [uniforms(2, "velocity", *name.split("\0")) for name in names]
    np.testing.assert_array_equal(uniforms_of_keys(2, keys), alone)


def test_keyed_uniforms_are_uniform():
    draws = np.concatenate([uniforms(2, "velocity", n) for n in range(5_000)])
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert draws.var() == pytest.approx(1 / 12, rel=0.03)
    assert np.corrcoef(draws[::2], draws[1::2])[0, 1] == pytest.approx(0, abs=0.04)


@given(
    visits=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    simulated=st.integers(1, 40),
    size=st.integers(1, 17),
    world=st.integers(1, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_ranks_together_see_the_global_batch(visits, simulated, size, world, seed):
    order = Order(make_index(visits, simulated), Mix(star_weighting=False), seed, "digest")
    for step in (0, 3, 11):
        rows, epochs = order.batch(step, size)
        parts = [rows[rank_slice(size, rank, world)] for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(parts), rows)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len(epochs) == size


@given(count=st.integers(1, 50), size=st.integers(1, 13), simulated=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_sample_exactly_once_an_epoch_without_weights(count, size, simulated):
    index = make_index([1] * (0 if simulated else count), count if simulated else 0)
    mix = Mix(real=float(not simulated), simulated=float(simulated), star_weighting=False)
    order = Order(index, mix, 0, "digest")
    steps = -(-3 * order.epoch_length // size)
    batches = [order.batch(step, size) for step in range(steps)]
    rows, epochs = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    for epoch in range(3):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(count))


@given(
    count=st.integers(1, 300),
    pool=st.integers(1, 400),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
    weighted=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_pools_draw_the_same_samples_and_take_blocks_together(count, pool, seed, epoch, weighted):
    index = make_index([3] * count if weighted else [], 0 if weighted else count)
    mixes = [Mix(real=float(weighted), simulated=float(not weighted), pool=p) for p in (pool, 10**9)]
    pooled, whole = (Order(index, mix, seed, "digest").epoch(epoch) for mix in mixes)
    assert len(pooled) == len(whole)
    if not weighted:
        assert sorted(pooled) == sorted(whole) == list(range(count))
    if len(pooled) > pool:
        for first in range(0, len(pooled), pool):
            part = pooled[first : first + pool]
            inner = set(index["block"][part])
            rest = set(index["block"][np.concatenate([pooled[:first], pooled[first + pool :]])])
            assert len(inner & rest) <= 2  # only the blocks at its edges are shared with the pools beside it


def test_a_pool_is_shuffled_and_pools_differ_by_epoch():
    order = Order(make_index([], 4_000), Mix(real=0.0, pool=500), 0, "digest")
    first, second = order.epoch(0), order.epoch(1)
    assert abs(np.corrcoef(first[:500], np.arange(500))[0, 1]) < 0.15
    assert set(first[:500]) != set(second[:500])
    together = np.abs(np.subtract.outer(first[:32], first[:32])) < 8
    assert together.sum() < 32 + 40  # few of a batch are of one block


def test_state_is_five_values_of_json_and_refuses_another_order():
    index = make_index([3, 1, 4], 20)
    order = Order(index, Mix(), 7, "digest")
    for samples in (0, 1, 39, 40, 41, 999):
        text = order.state(samples).model_dump_json()
        assert len(json.loads(text)) == 5
        assert order.samples_before(OrderState.model_validate_json(text)) == samples
    for other, name in (
        (Order(index, Mix(pool=3), 7, "digest"), "mix"),
        (Order(index, Mix(), 8, "digest"), "seed"),
        (Order(index, Mix(), 7, "grown"), "release"),
    ):
        with pytest.raises(ResumeError, match=f"order of {name}"):
            other.samples_before(order.state(5))


@given(target=st.text(), others=st.lists(st.text(), max_size=5), train=st.floats(0.1, 0.9))
def test_a_star_keeps_its_split_whatever_else_there_is(target, others, train):
    fractions = (train, (1 - train) / 2, (1 - train) / 2)
    before = split_of(target, fractions)
    for other in others:
        split_of(other, fractions)
    assert split_of(target, fractions) == before
    larger = (min(1.0, train + 0.05), *((1 - min(1.0, train + 0.05)) / 2,) * 2)
    if before == "train":
        assert split_of(target, larger) == "train"  # a larger share takes no star away


def test_a_killed_ledger_is_cut_to_where_the_run_goes_on(tmp_path):
    order = Order(make_index([], 20), Mix(real=0.0), 0, "digest")
    path = tmp_path / "ledger.jsonl"
    lines = [
        {"step": s, "rows": b.rows.tolist(), "epochs": b.epochs.tolist()} for s in range(6) for b in [order.batch(s, 5)]
    ]
    LedgerFile(path, 0).write(lines)
    with path.open("a") as file:
        file.write('{"step": 6, "rows": [1, 2')  # killed here
    assert read_ledger(path, 20).differences(order, 30) == []
    again = LedgerFile(path, 4)
    assert "seen 0 times, expected 1" in read_ledger(path, 20).differences(order, 30)[0]
    again.write(lines[4:])
    assert read_ledger(path, 20).differences(order, 30) == []


def test_order_does_not_depend_on_the_batch_size():
    order = Order(make_index([3, 1, 4], 20), Mix(), 7, "digest")
    small = np.concatenate([order.batch(step, 4).rows for step in range(30)])
    large = np.concatenate([order.batch(step, 24).rows for step in range(5)])
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("change", [{"seed": 1}, {"digest": "other"}, {"mix": Mix(real=2.0)}])
def test_order_depends_on_seed_digest_and_mix(change):
    settings_ = {"mix": Mix(), "seed": 0, "digest": "digest"}
    index = make_index([2] * 20, 40)
    first, second = Order(index, **settings_), Order(index, **(settings_ | change))
    assert not np.array_equal(first.epoch(0)[:40], second.epoch(0)[:40])
    assert not np.array_equal(first.epoch(0), first.epoch(1))


def test_each_epoch_shuffles_simulated_samples_anew():
    order = Order(make_index([], 40), Mix(real=0.0), 0, "digest")
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert sorted(order.epoch(0)) == sorted(order.epoch(1))


def test_batches_are_mixed_by_weight_to_within_one_sample():
    order = Order(make_index([5] * 10, 90), Mix(real=1.0, simulated=3.0), 0, "digest")
    assert order.epoch_length == 120
    for step in range(40):
        real = (order.batch(step, 12).rows < 50).sum()
        assert abs(real - 3) <= 1


def test_sequential_passes_do_not_mix():
    mixed = Order(make_index([5] * 10, 60), Mix(), 0, "digest")
    sequential = Order(make_index([5] * 10, 60), Mix(sequential=True), 0, "digest")
    kinds = sequential.epoch(0) < 50  # real rows come first in the index
    assert kinds.tolist() == [False] * 60 + [True] * 60
    assert sequential.epoch_length == mixed.epoch_length


def test_star_weighting_draws_every_star_equally_often():
    visits = [1, 2, 4, 40]
    index = make_index(visits, 0)
    order = Order(index, Mix(real=1.0, simulated=0.0), 0, "digest")
    drawn = np.concatenate([order.epoch(epoch) for epoch in range(400)])
    stars = Counter(index["star"][drawn])
    for count in stars.values():
        assert count / len(drawn) == pytest.approx(1 / 4, rel=0.07)  # 5.5 deviations of 18,800 draws
    plain = Order(index, Mix(real=1.0, simulated=0.0, star_weighting=False), 0, "digest").epoch(0)
    assert Counter(index["star"][plain])["star3"] == 40


def test_a_mix_without_samples_says_what_to_do():
    with pytest.raises(ConfigError, match=r"--data\.mix\.simulated 0"):
        Order(make_index([1], 0), Mix(), 0, "digest")
    with pytest.raises(ConfigError, match="positive share"):
        Order(make_index([1], 1), Mix(real=0.0, simulated=0.0), 0, "digest")


def test_split_is_frozen_and_has_its_fractions():
    names = [f"TIC {n}" for n in range(20_000)]
    splits = Counter(map(split_of, names))
    assert splits["train"] / len(names) == pytest.approx(0.90, abs=0.01)
    assert splits["test"] / len(names) == pytest.approx(0.05, abs=0.005)
    assert [split_of(name) for name in ("TIC 256364928", "TIC 2", "TIC 13", "TIC 15", "TIC 46")] == FROZEN


FROZEN = ["train", "validation", "validation", "test", "test"]
