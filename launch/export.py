"""`launch/export.py`: see `harps_dist.commands.export`."""

from harps_dist.commands.export import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
