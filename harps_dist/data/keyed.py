"""Randomness that is keyed, not streamed: every draw is a function of names, never of what was drawn before.

A resumed run, or one on another number of ranks, therefore draws the same radial velocity and the same noise
for the same sample of the same epoch. Only raw bits of Philox are used, whose stream NumPy guarantees.

Tested in tests/unit/test_order.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_ROUNDS = 10  # of Philox4x64-10 (Salmon et al. 2011), as its constants below
_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_KEY_STEPS = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_BY_LOW, _BY_HIGH = _MULTIPLIERS & _LOW, _MULTIPLIERS >> _HALF


def key_of(*names: object) -> int:
    """A 64-bit key from any names that print alike on every machine (str, int, tuple of these)."""
    return int.from_bytes(_digest("\0".join(map(str, names))), "little")


def keys_of(name: str, others: Iterable[str]) -> np.ndarray:
    """(other,) uint64: key_of(name, other) for each of many others; "\\0" joins names in one of them."""
    return np.frombuffer(b"".join([_digest(f"{name}\0{other}") for other in others]), "<u8")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def raw_bits(count: int, *names: object) -> np.ndarray:
    """(count,) uint64 random bits for this key."""
    return np.random.Philox(key=key_of(*names)).random_raw(count)


def raw_bits_of_keys(count: int, keys: np.ndarray) -> np.ndarray:
    """(key, count) uint64 random bits for keys (key,) uint64: those of `raw_bits`, many keys at a time."""
    if not len(keys):
        return np.empty((0, count), np.uint64)
    blocks = -(-count // 4)
    # Words 0 and 2 of the counter, and 1 and 3: (2, key x block). NumPy counts from 1; the second word of a key is 0.
    even = np.zeros((2, len(keys) * blocks), np.uint64)
    even[0] = np.tile(np.arange(1, blocks + 1, dtype=np.uint64), len(keys))
    odd = np.zeros_like(even)
    key = np.zeros_like(even)
    key[0] = np.repeat(keys, blocks)
    for _ in range(_ROUNDS):
        even, odd = _high_product(even)[::-1] ^ odd ^ key, (_MULTIPLIERS * even)[::-1]
        key += _KEY_STEPS
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=1).reshape(len(keys), 4 * blocks)[:, :count]


def _high_product(words: np.ndarray) -> np.ndarray:
    """The upper 64 bits of the 128 of _MULTIPLIERS times words (2, n) uint64, by halves of 32 bits."""
    low, high = words & _LOW, words >> _HALF
    middle = _BY_HIGH * low + (_BY_LOW * low >> _HALF)
    return _BY_HIGH * high + (middle >> _HALF) + (_BY_LOW * high + (middle & _LOW) >> _HALF)


def uniforms(count: int, *names: object) -> np.ndarray:
    """(count,) float64 in [0, 1) for this key."""
    return _in_unit_interval(raw_bits(count, *names))


def uniforms_of_keys(count: int, keys: np.ndarray) -> np.ndarray:
    """(key, count) float64 in [0, 1) for keys (key,) uint64: those of `uniforms`, many keys at a time."""
    return _in_unit_interval(raw_bits_of_keys(count, keys))


def _in_unit_interval(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(count: int, *names: object) -> np.ndarray:
    """(count,) int64 permutation for this key."""
    return np.argsort(raw_bits(count, *names), kind="stable")
