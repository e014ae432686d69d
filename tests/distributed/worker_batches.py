"""Run under torchrun: writes which samples, with which draws and codes, global batches hold.

RELEASE OUT FIRST LAST RESIDENT: steps FIRST to LAST - 1, codes read as they are asked for or, RESIDENT, held in memory.
"""

from __future__ import annotations

import json
import sys
import zlib
from itertools import chain
from pathlib import Path

from harps_dist.config import Data
from harps_dist.data.augment import Augment
from harps_dist.data.batches import TrainingBatches, load, no_codes, read_codes
from harps_dist.data.order import Mix, Order
from harps_dist.data.reader import Release
from harps_dist.data.resident import ResidentCodes
from harps_dist.ranks.world import join_world

SIZE = 10


def main(release_path: str, out: str, first: str, last: str, resident: str) -> None:
    with join_world() as world:
        release, steps = Release(Path(release_path)), range(int(first), int(last))
        order = Order(release.index, Mix(star_weighting=False, pool=16), 0, release.digest)
        data = Data(augment=Augment(berv_kms=30))
        codes_of = no_codes if resident == "resident" else read_codes
        batches = TrainingBatches(release, order, data, 0, SIZE, world.rank, world.size, codes_of)
        stream = load(batches, steps, 0, world.device)
        if resident == "resident":
            held = ResidentCodes(release, order, world.rank, world.size, world.device, 0, world.exchange)
            stream = held.complete(stream, steps, SIZE)
        found = []
        for raw in stream:
            codes = [zlib.crc32(part.numpy().tobytes()) for codes in (raw.flux, raw.sed) for part in codes]
            scales = [zlib.crc32(part.numpy().tobytes()) for codes in (raw.flux_scale, raw.sed_scale) for part in codes]
            drawn = [value for value in raw.rv_kms.tolist()]
            parts = world.gather((raw.rows.tolist(), raw.epochs.tolist(), raw.key.tolist(), drawn, codes, scales))
            found.append([list(chain.from_iterable(part[field] for part in parts)) for field in range(6)])
        if world.is_main:
            Path(out).write_text(json.dumps({"order": order.state(int(first) * SIZE).model_dump(), "batches": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
