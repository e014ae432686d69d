"""Randomness that is keyed, not streamed: every draw is a function of names, never of what was drawn before.

A resumed run, or one on another number of ranks, therefore draws the same radial velocity and the same noise
for the same sample of the same epoch. Only raw bits of Philox are used, whose stream NumPy guarantees.

Tested in tests/unit/test_order.py.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key_of(*names: object) -> int:
    """A 64-bit key from any names that print alike on every machine (str, int, tuple of these)."""
    text = "\0".join(map(str, names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def raw_bits(count: int, *names: object) -> np.ndarray:
    """(count,) uint64 random bits for this key."""
    return np.random.Philox(key=key_of(*names)).random_raw(count)


def uniforms(count: int, *names: object) -> np.ndarray:
    """(count,) float64 in [0, 1) for this key."""
    return (raw_bits(count, *names) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, *names: object) -> np.ndarray:
    """(count,) int64 permutation for this key."""
    return np.argsort(raw_bits(count, *names), kind="stable")
