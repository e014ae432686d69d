"""Retraining as a chain of SLURM jobs: ingest, merge, pack, verify, train, evaluate, compare, gate.

Every job can be run again: what is done stays done. Which of them are under way the queue itself says, by their names,
so that a chain that is submitted twice, or was killed while it was being submitted, has no job twice.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from harps_dist.cluster.submit import sbatch
from harps_dist.data.manifest import MANIFEST
from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.frozen import Frozen
from harps_dist.ownership import OutputKind, check, claimed
from harps_dist.promotion.retrain import Policy
from harps_dist.sealed import sealed, unsealed

if TYPE_CHECKING:
    from rich.table import Table

SETTINGS = "chain.json"


class Chain(Frozen):
    """What is retrained from what."""

    spectra: Path
    """Folder of files that the archive is to take in."""
    archive: Path
    """Zarr archive that grows."""
    parent: Path
    """Release that is grown."""
    registry: Path = Path("models")
    """Folder of the models in use."""
    model: Path | None = None
    """Run whose place the new one is to take; default is the registry's current one."""
    catalog: Path | None = None
    """Labels of the stars: CSV, FITS, VOTable or Parquet."""
    columns: str = ""
    """Columns of the catalogue that names do not tell, as teff=Teff_spec,logg=g_spec."""
    parts: int = Field(16, ge=1)
    """Jobs that ingest side by side."""
    genuine: bool = True
    """The spectra came from a telescope; say no where they did not and do not say so themselves."""
    policy: Policy = "warm"
    """How the model is trained again, as retrain takes it."""
    gate: Path | None = None
    """What the new model has to pass, in YAML or JSON; default is the usual one."""
    jobs: str = ""
    """Options of sbatch for the jobs that take one process, such as "--time=2:00:00"."""
    ranks: str = ""
    """Options of sbatch for the jobs that run on all ranks."""


def _is_chain(folder: Path) -> bool:
    return {"spectra", "archive", "parent", "registry"} <= json.loads((folder / SETTINGS).read_text()).keys()


CHAIN = OutputKind("chain", "folder", _is_chain, "home")


class Stage(NamedTuple):
    """One job: its name, script and arguments, and options of sbatch; it waits until the one before has succeeded."""

    name: str
    script: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]


def settle(folder: Path, chain: Chain) -> Chain:
    """The chain that this folder is of: what it was begun with, whatever the registry's current model is by now.

    Raises ConfigError where the folder is of another chain, or something that the chain begins with is missing;
    OutputError where it is of none.
    """
    check(folder, CHAIN)
    model = chain.model or chain.registry / "current"
    path = folder / SETTINGS
    if path.exists():
        begun = _read_chain(path)
        asked = chain.model_copy(update={"model": begun.model if chain.model is None else model.resolve()})
        if (found := _absolute(asked)) != begun:
            different = [name for name in Chain.model_fields if getattr(found, name) != getattr(begun, name)]
            raise ConfigError(
                f"{path} was begun with another {', '.join(different)}. Give what it says, or another folder."
            )
        return begun
    needed = {chain.spectra: "spectra", chain.parent / MANIFEST: "a release to grow", model: "a model to go on from"}
    for there, what in (needed | ({chain.catalog: "a catalogue"} if chain.catalog else {})).items():
        if not there.exists():
            raise ConfigError(f"there is no {there}, where the chain expects {what}. Check the path.")
    return _absolute(chain.model_copy(update={"model": model}))


def _read_chain(path: Path) -> Chain:
    """What a chain was begun with; raises ConfigError where chain.json is damaged."""
    try:
        return Chain.model_validate(unsealed(json.loads(path.read_text(encoding="utf-8")), required=False))
    except ValueError as error:  # pydantic's is one
        raise ConfigError(f"{path} is damaged: {error}. Restore it from a copy, or begin in another folder.") from None


def _absolute(chain: Chain) -> Chain:
    paths = {name: value.resolve() for name in Chain.model_fields if isinstance(value := getattr(chain, name), Path)}
    return chain.model_copy(update=paths)


def stages_of(folder: Path, chain: Chain, overrides: Sequence[str] = ()) -> list[Stage]:
    """The jobs in their order. overrides: options of launch/retrain.py besides, such as "--training.steps 1000"."""
    folder = folder.resolve()
    release, run, comparison = str(folder / "release"), str(folder / "run"), str(folder / "comparison")
    archive, parent, model = str(chain.archive), str(chain.parent), str(chain.model)
    jobs, ranks = tuple(shlex.split(chain.jobs)), tuple(shlex.split(chain.ranks))
    named = {"--catalog": chain.catalog, "--columns": chain.columns}
    catalog = tuple(word for option, value in named.items() if value for word in (option, str(value)))
    genuine = () if chain.genuine else ("--no-genuine",)  # the files decide
    grid = ("--grid", _grid(chain.parent))
    grow = ("pack", "--archive", archive, "--release", release, "--grow", parent, *genuine)
    retrain = ("--from", model, "--release", release, "--policy", chain.policy, "--out", run, *overrides)
    gate = ("--gate", str(chain.gate)) if chain.gate else ()
    array = (f"--array=0-{chain.parts - 1}", *jobs)
    ingest = [
        Stage("ingest", "preprocess_array", (str(chain.spectra), archive, *catalog, *grid), array),
        Stage("merge", "preprocess_merge", (archive, str(chain.parts)), jobs),
        Stage("pack", "command", ("-m", "preprocessing", *grow), jobs),
    ]
    packed = (folder / "release" / MANIFEST).exists()  # what the model is trained on does not change any more
    return [
        *([] if packed else ingest),
        Stage("verify", "command", ("-m", "preprocessing", "verify", release), jobs),
        Stage(
            "diff", "command", ("-m", "preprocessing", "diff", parent, release, "--json", f"{folder}/diff.json"), jobs
        ),
        Stage("train", "ranks", ("launch/retrain.py", *retrain), ranks),
        Stage("evaluate", "ranks", ("launch/evaluate.py", run), ranks),
        Stage("compare", "ranks", ("launch/compare.py", run, model, "--release", release, "-o", comparison), ranks),
        Stage(
            "gate",
            "command",
            ("launch/promote.py", "promote", run, "--comparison", comparison, "--registry", str(chain.registry), *gate),
            jobs,
        ),
    ]


def submit_chain(folder: Path, chain: Chain, stages: Sequence[Stage]) -> dict[str, str]:
    """Submit what is not in the queue yet, each job after the one before; returns every stage's job id.

    Raises ConfigError where sbatch refuses, OutputError where another process is submitting the same chain.
    """
    with claimed(folder, CHAIN):
        with atomic_write(folder / SETTINGS) as aside:
            aside.write_text(json.dumps(sealed(chain.model_dump(mode="json")), indent=1) + "\n", encoding="utf-8")
        (folder / "logs").mkdir(exist_ok=True)
        queued, jobs, last = _queued(), {}, ""
        for stage in stages:
            name = job_name(folder, stage)
            if name not in queued:
                logs = folder.resolve() / "logs" / ("%x-%A_%a.log" if stage.name == "ingest" else "%x-%j.log")
                options = (f"--job-name={name}", f"--output={logs}", "--kill-on-invalid-dep=yes")
                waiting = (f"--dependency=afterok:{last}",) if last else ()
                queued[name] = sbatch(
                    *options, *waiting, *stage.options, f"slurm/{stage.script}.sbatch", *stage.arguments
                )
            jobs[stage.name] = last = queued[name]
    return jobs


def job_name(folder: Path, stage: Stage) -> str:
    """A stage's name in the queue, that of no other chain."""
    return f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]}-{stage.name}"


def _queued() -> dict[str, str]:
    """Jobs of this user that wait or run, by name."""
    try:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%F %j"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise ConfigError("there is no squeue here. Run on a SLURM login node, or with --dry-run.") from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"squeue failed: {error.stderr.strip()}. Try again when SLURM answers.") from None
    rows = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {name: job for job, name in rows}


def _grid(release: Path) -> str:
    from harps_dist.data.manifest import read_manifest
    from harps_dist.data.stores import Cache, open_store

    return read_manifest(open_store(release, Cache()), release).grid.name


def chain_table(folder: Path, stages: Sequence[Stage], jobs: dict[str, str] | None = None) -> Table:
    """The jobs of a chain for the console, with their ids where they were submitted."""
    from rich.table import Table

    table = Table("job", "id", "command", title=f"{folder}: each job after the one above")
    for stage in stages:
        words = shlex.join([*stage.options, f"slurm/{stage.script}.sbatch", *stage.arguments])
        table.add_row(stage.name, (jobs or {}).get(stage.name, "-"), words)
    return table
