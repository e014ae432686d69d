"""`torchrun … launch/train.py`: see `harps_dist.commands.train`."""

from harps_dist.commands.train import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
