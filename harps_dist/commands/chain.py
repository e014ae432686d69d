"""Retrain on what an archive has gained, as a chain of SLURM jobs that wait for one another:
`python launch/chain.py FOLDER --spectra DIR --archive A.zarr --parent R --registry models [options of retrain.py]`.

Ingest (an array), merge, pack, verify, diff, train, evaluate, compare and gate; FOLDER gets release, run, comparison,
diff.json and logs. Given again, it submits what is not in the queue and not done; --dry-run submits nothing.
`sbatch slurm/retrain.sbatch FOLDER …` does the same from a job, for what should start by itself every month.

Example: `harps-dist chain chains/may --spectra night --archive A.zarr --parent R1 --dry-run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harps_dist.cluster.chain import Chain


@dataclass
class Arguments:
    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of this chain."""
    chain: Annotated[Chain, tyro.conf.arg(name="")]
    """What is retrained from what."""
    dry_run: bool = False
    """Say what would be submitted."""


def main() -> int:
    arguments, overrides = tyro.cli(Arguments, description=__doc__, return_unknown_args=True)
    from harps_dist.cluster.chain import chain_table, settle, stages_of, submit_chain
    from harps_dist.console import console_for

    chain = settle(arguments.folder, arguments.chain)
    stages = stages_of(arguments.folder, chain, overrides)
    jobs = None if arguments.dry_run else submit_chain(arguments.folder, chain, stages)
    console_for().print(chain_table(arguments.folder, stages, jobs))
    return 0
