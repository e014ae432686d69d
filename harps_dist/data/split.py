"""Which split a star belongs to: a pure function of its resolved target id, so that growth moves no star.

Tested in tests/unit/test_order.py.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
PAPER_FRACTIONS = (0.90, 0.05, 0.05)
SALT = "harps_dist-1"


def split_of(target: str, fractions: tuple[float, float, float] = PAPER_FRACTIONS, salt: str = SALT) -> SplitName:
    """The split of a star (or of an SED), from the hash of its id.

    target: resolved target id, one per star whatever its aliases. fractions: of train, validation and test,
    adding up to one. The paper's public code draws among names of targets, so that an alias may cross.
    """
    digest = hashlib.blake2b(f"{salt}\0{target}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    train, validation, _ = fractions
    if position < train:
        return "train"
    return "validation" if position < train + validation else "test"
