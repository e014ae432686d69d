"""Run under torchrun: writes which samples, with which draws, every global batch holds."""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

from harps_dist.config import Data
from harps_dist.data.augment import Augment
from harps_dist.data.batches import TrainingBatches
from harps_dist.data.order import Mix, Order
from harps_dist.data.reader import Release
from harps_dist.training.distributed import join_world


def main(release_path: str, out: str) -> None:
    with join_world() as world:
        release = Release(Path(release_path))
        order = Order(release.index, Mix(), 0, release.digest)
        batches = TrainingBatches(release, order, Data(augment=Augment(berv_kms=30)), 0, 10, world.rank, world.size)
        steps = []
        for step in range(6):
            raw = batches[step]
            parts = world.gather((raw.rows.tolist(), raw.rv_kms.tolist(), raw.key.tolist()))
            steps.append([sorted(chain.from_iterable(part[field] for part in parts)) for field in range(3)])
        if world.is_main:
            Path(out).write_text(json.dumps(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
