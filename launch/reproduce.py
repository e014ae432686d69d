"""`torchrun … launch/reproduce.py`: see `harps_dist.commands.reproduce`."""

from harps_dist.commands.reproduce import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
