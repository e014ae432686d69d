"""Simulate spectra with a trained decoder: `launch/simulate.py MODEL [--teff 5800] [--rv 20] [--snr 100] [-o OUT]`.

MODEL is a run or an export. Labels that are not given are the training mean. -o OUT.fits, .png, .csv, .ecsv or .parquet
takes one spectrum. With --labels TABLE there is one a row: -o OUT.zarr, OUT.parquet, OUT.fits or a folder of ESO Phase
3 files (also under torchrun); killed and started again, it goes on. With --traverse NODE one node runs through its
range, for the labels given or a spectrum observed: -o OUT.png, and OUT.csv beside it.

Example: `harps-dist simulate model --teff 5800 --logg 4.4 --mh 0 --snr 100 -o star.fits`.
"""

from __future__ import annotations

import tyro

from harps_dist.inference.options import Options


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    from harps_dist.console import console_for
    from harps_dist.inference.options import carry_out
    from harps_dist.progress import progress_bars
    from harps_dist.ranks.world import join_world

    with join_world(options.max_minutes) as world, progress_bars(quiet=not world.is_main) as progress:
        carry_out(options, world, console_for(quiet=not world.is_main), progress)
    return 0
