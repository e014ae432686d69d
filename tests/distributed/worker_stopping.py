"""launch/train.py, whose first rank gets SIGUSR1 after so many steps: worker_stopping.py STEPS [its arguments]."""

from __future__ import annotations

import os
import signal
import sys

from harps_dist.console import end_with
from harps_dist.training.loop import Trainer
from launch.train import main

STEPS = int(sys.argv.pop(1))
_conclude = Trainer._conclude


def conclude(self: Trainer, line: dict) -> None:
    _conclude(self, line)
    if self.step == STEPS and self.world.is_main:  # the others are to agree
        os.kill(os.getpid(), signal.SIGUSR1)


if __name__ == "__main__":
    Trainer._conclude = conclude
    end_with(main)
