"""`launch/lines.py`: see `harps_dist.commands.lines`."""

from harps_dist.commands.lines import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
