"""`torchrun … launch/evaluate.py`: see `harps_dist.commands.evaluate`."""

from harps_dist.commands.evaluate import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
