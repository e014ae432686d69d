"""`launch/benchmark.py`: see `harps_dist.commands.benchmark`."""

from harps_dist.commands.benchmark import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
