"""`torchrun … launch/compare.py`: see `harps_dist.commands.compare`."""

from harps_dist.commands.compare import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
