"""`torchrun … launch/fit.py`: see `harps_dist.commands.fit`."""

from harps_dist.commands.fit import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
