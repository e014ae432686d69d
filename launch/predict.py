"""`torchrun … launch/predict.py`: see `harps_dist.commands.predict`."""

from harps_dist.commands.predict import main
from harps_dist.console import end_with

if __name__ == "__main__":
    end_with(main)
