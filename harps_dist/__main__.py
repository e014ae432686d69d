"""`harps-dist COMMAND …`, `python -m harps_dist COMMAND …`, `torchrun … -m harps_dist COMMAND …`."""

from harps_dist.commands.door import main
from harps_dist.console import end_with


def run() -> None:
    """Run the command line and end the process."""
    end_with(main)


if __name__ == "__main__":
    run()
