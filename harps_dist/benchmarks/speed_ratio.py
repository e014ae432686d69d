"""How much slower a new model is than an old one, as a comparison keeps it.

Tested in tests/integration/test_compare.py.
"""

from __future__ import annotations

from harps_dist.frozen import Frozen, Number


class SpeedRatio(Frozen):
    """Time of inference of the new model over the old one's, both measured in turns: median and quartiles.

    old_ms, new_ms: milliseconds a spectrum, NaN without an old model.
    """

    device: str
    threads: int
    batch: int
    repeats: int
    old_ms: Number
    new_ms: Number
    ratio: Number
    ratio_q25: Number
    ratio_q75: Number
