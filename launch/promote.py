"""`launch/promote.py`: see `harps_dist.commands.promote`."""

from harps_dist.commands.promote import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
