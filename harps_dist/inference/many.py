"""Many simulated spectra: block by block into a folder or one file, in bounded memory, resumable.

OUT.zarr      group: flux (n, pixel), one shard a block; wave_aa; a column for every label; opens in xarray
OUT.parquet   one row a spectrum: labels, flux as a list; one row group a block
OUT.fits      image (n, pixel) with a linear wavelength axis, and a table of the labels
OUT           folder: one ESO Phase 3 file a spectrum, 000000.fits, and labels.ecsv

What is not finished lies in OUT.parts, block by block, each there whole or not at all. What a simulation is (model,
labels, settings) is written beside the blocks and in the result, so that one is never taken for another.

Tested in tests/unit/test_simulate_many.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from harps_dist import __version__
from harps_dist.errors import ConfigError, Interrupted
from harps_dist.files import ASIDE, atomic_write, remove
from harps_dist.inference.simulated import Request
from harps_dist.inference.simulator import BATCH, RvBy, Simulator
from harps_dist.inference.sinks import (
    IDENTITY,
    FitsFolder,
    FitsImage,
    ParquetRows,
    Sink,
    ZarrGroup,
    parts_path,
    rows_within,
)
from harps_dist.inference.spectrum_files import ascii_text
from harps_dist.ownership import OutputKind, check, claimed
from harps_dist.progress import Progress, silent
from harps_dist.ranks.world import World
from harps_dist.sealed import sealed, unsealed

BLOCK_BYTES = 64 * 2**20  # of flux; what is held at a time is a few times that
MOST_ROWS = 1024  # of a block

SINKS: dict[str, type[Sink]] = {".zarr": ZarrGroup, ".parquet": ParquetRows, ".fits": FitsImage, "": FitsFolder}


PARTS = OutputKind(
    "folder of simulated blocks", "-o", lambda parts: "request_sha256" in FitsFolder.read_identity(parts), "home"
)


def outputs_of(out: Path) -> list[tuple[Path, OutputKind]]:
    """All that is written for a simulation."""
    return [(out, SINKS[out.suffix.lower()].kind()), *([(parts_path(out), PARTS)] if out.suffix else [])]


def check_simulation(out: Path) -> None:
    """Raises ConfigError or OutputError where no simulation can be written there."""
    if out.suffix.lower() not in SINKS:
        names = ", ".join(filter(None, SINKS))
        raise ConfigError(f"expected a name that ends in {names}, or the name of a folder, got {out.name!r}.")
    for output in outputs_of(out):
        check(*output)


def simulate_many(
    simulator: Simulator,
    request: Request,
    out: Path,
    world: World,
    rv_by: RvBy = "node",
    progress: Progress = silent,
    batch_size: int = BATCH,
    block_bytes: int = BLOCK_BYTES,
) -> bool:
    """Write the spectra of a request; returns False where they were all there already.

    Ranks share the blocks. Killed and started again with the same request, it goes on with the blocks that are missing.
    Raises ConfigError where `out` or what lies unfinished beside it is another simulation; OutputError where it is
    none, or another process is at it; Interrupted on all ranks where one was asked to stop.
    """
    check_simulation(out)
    if not len(request):
        raise ConfigError("there is nothing to simulate: the request has no rows.")
    rows = min(MOST_ROWS, rows_within(block_bytes, simulator.grid))
    identity = identity_of(simulator, request, rv_by, rows)
    sink = SINKS[out.suffix.lower()](out, simulator, request, identity, rows)
    (first, *beside) = outputs_of(out)
    with world.claiming(lambda: claimed(*first, *beside)):
        missing = world.of_main(lambda: _prepare(sink, identity))
        if missing is None:
            return False
        mine, total = missing[world.rank :: world.size], len(request)
        done = total - sum(map(sink.count, missing))
        progress("simulate", done, total)
        try:
            for block in world.in_step(mine, -(-len(missing) // world.size)):
                sink.write(block, simulator.draw(request.rows(sink.rows(block)), rv_by, batch_size))
                done = min(total, done + world.size * sink.count(block))
                progress("simulate", done, total)
        except Interrupted as error:
            raise Interrupted(str(error), f"{out}: {done} of {total} spectra are there") from None
        world.barrier()
        if world.is_main:
            sink.finish()
    return True


def lost_in_fits(request: Request, out: Path) -> tuple[str, ...]:
    """A sentence on object names that FITS cannot hold, where the result is FITS."""
    changed = [name for name in map(str, request.names) if ascii_text(name) != name]
    if not changed or out.suffix.lower() not in (".fits", ""):
        return ()
    return (
        f"{len(changed)} object names hold characters that FITS cannot, the first as {ascii_text(changed[0])!r} for "
        f"{changed[0]!r}; {'labels.ecsv keeps them' if not out.suffix else 'Zarr and Parquet keep them'}.",
    )


def identity_of(simulator: Simulator, request: Request, rv_by: RvBy, rows: int) -> dict[str, Any]:
    """What makes a simulation this one: model, everything that is asked, how it is cut into blocks."""
    digest = hashlib.sha256()
    for part in (request.labels, request.unknown, request.snr, request.seed):
        digest.update(repr((part.shape, part.dtype.str)).encode())
        digest.update(part.tobytes())
    digest.update("\0".join(map(str, request.names)).encode())
    return {
        "model": simulator.name,
        "model_id": simulator.id,
        "labels": list(simulator.labels),
        "request_sha256": digest.hexdigest(),
        "spectra": len(request),
        "rv_by": rv_by,
        "block": rows,
        "grid": {"start": simulator.grid.start, "length": simulator.grid.length},
        "medium": "air",
        "frame": "barycentric",
        "flux": "in medians of the flux",
        "made_by": f"harps_dist {__version__}; drawn by a neural network, not observed",
    }


def _prepare(sink: Sink, identity: dict[str, Any]) -> list[int] | None:
    """The blocks that are missing; None where the result is there. Tidies up what was killed while it finished."""
    found = sink.identity_of_result()
    if found is not None:
        _same(found, identity, sink.out)
        if sink.parts != sink.out:
            shutil.rmtree(sink.parts, ignore_errors=True)
        return None
    note = sink.parts / IDENTITY
    if note.exists():
        _same(_read_identity(note), identity, sink.parts)
    else:
        sink.parts.mkdir(exist_ok=True)
        with atomic_write(note) as aside:
            aside.write_text(json.dumps(sealed(identity), indent=1, ensure_ascii=False), encoding="utf-8")
    for left in sink.parts.rglob(".*.tmp"):  # of a process that was killed while it wrote
        if ASIDE.fullmatch(left.name):
            remove(left)
    sink.begin()
    return [block for block in range(sink.blocks) if not sink.has(block)]


def _read_identity(note: Path) -> dict[str, Any]:
    """What simulation.json says; raises ConfigError where it is damaged."""
    try:
        return unsealed(json.loads(note.read_text(encoding="utf-8")), required=False)
    except ValueError as error:
        raise ConfigError(
            f"{note} is damaged: {error}. Remove {note.parent}, or choose another name for the result."
        ) from None


def _same(stated: dict[str, Any], identity: dict[str, Any], where: Path) -> None:
    differing = [name for name in identity if name != "made_by" and stated.get(name) != identity[name]]
    if differing:
        raise ConfigError(
            f"{where} is another simulation, or none: {', '.join(differing)} differ from what is asked for now. Choose "
            f"another name, or remove it."
        )
