"""`torchrun … launch/simulate.py`: see `harps_dist.commands.simulate`."""

from harps_dist.commands.simulate import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
