"""`torchrun … launch/retrain.py`: see `harps_dist.commands.retrain`."""

from harps_dist.commands.retrain import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
