"""`launch/chain.py`: see `harps_dist.commands.chain`."""

from harps_dist.commands.chain import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
