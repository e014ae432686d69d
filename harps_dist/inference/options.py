"""What `launch/simulate.py` is asked for, and doing it.

Tested in tests/unit/test_simulate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from harps_dist.errors import ConfigError
from harps_dist.progress import Progress, silent
from harps_dist.spectra.labels import NAMES
from harps_dist.text import cleaned

if TYPE_CHECKING:
    from rich.console import Console

    from harps_dist.inference.simulated import Request
    from harps_dist.inference.simulator import Simulator
    from harps_dist.ranks.world import World


@dataclass
class Options:
    """The command line."""

    model: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or an export."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """What is written, in the form that its ending says."""
    teff: float | None = None
    """Effective temperature [K]. A label that is not given is the training mean."""
    logg: float | None = None
    """Surface gravity [dex]."""
    mh: float | None = None
    """Metallicity [dex]."""
    rv: float | None = None
    """Radial velocity of the star [km/s], barycentric."""
    berv: float | None = None
    """Barycentric velocity of the Earth [km/s]."""
    airmass: float | None = None
    """Airmass of the observation."""
    pwv: float | None = None
    """Precipitable water vapour [mm]."""
    vmic: float | None = None
    """Microturbulence [km/s]."""
    u: str = "zero"
    """Unknown factors: zero, prior (drawn; variational models have one), or numbers with commas between."""
    snr: float | None = None
    """Photon noise: S/N per pixel at the median flux. Without it there is none."""
    seed: int = 0
    """Seed of what is drawn; rows of a table count up from it."""
    name: str = ""
    """Name of the object."""
    rv_by: Literal["node", "shift"] = "node"
    """Set the velocity's node, or shift what is decoded, exactly, tellurics too."""
    extrapolate: bool = False
    """Take labels beyond what training saw, too."""
    labels: Path | None = None
    """Table, one spectrum a row: columns of labels, u1, u2, …, snr, seed, object; CSV, ECSV, FITS, VOTable, Parquet."""
    traverse: str | None = None
    """Node to vary: a label, or u1, u2 and so on."""
    points: int = 7
    """Values of a traversal."""
    span: tuple[float, float] | None = None
    """Least and largest value of a traversal; default is what training saw."""
    spectrum: Path | None = None
    """A HARPS file whose nodes a traversal holds, instead of labels: an intervention on it."""
    checkpoint: Literal["best", "newest"] = "best"
    """Checkpoint of a run: that with the least validation loss, or the newest."""
    batch_size: int = 16
    """Spectra decoded at once."""
    max_minutes: float | None = None
    """Stop after so long, to be continued."""

    @property
    def given(self) -> dict[str, float]:
        """Labels that are given, by name."""
        return {name: value for name in NAMES if (value := getattr(self, name, None)) is not None}

    @property
    def unknown(self) -> str | list[float]:
        if self.u in ("zero", "prior"):
            return self.u
        try:
            return [float(number) for number in self.u.split(",")]
        except ValueError:
            raise ConfigError(
                f"--u takes zero, prior or numbers with commas between, got {cleaned(self.u, 100)!r}."
            ) from None


def carry_out(options: Options, world: World, console: Console, progress: Progress = silent) -> None:
    """Simulate what is asked for, and say what was assumed and written."""
    from harps_dist.inference.simulators import open_simulator

    if options.labels and options.traverse:
        raise ConfigError("--labels simulates a table and --traverse varies one node; give one of them.")
    if options.spectrum and not options.traverse:
        raise ConfigError("--spectrum gives the nodes that --traverse holds; say which node is to vary.")
    world.of_main(lambda: _check_out(options))
    simulator = open_simulator(options.model, options.checkpoint, world.device)
    if options.labels:
        _simulate_table(options, options.labels, simulator, world, console, progress)
    elif world.is_main:
        work = _traverse if options.traverse else _simulate_one
        console.print(f"{work(options, simulator, console)}", soft_wrap=True)


def out_of(options: Options) -> Path:
    """What is written."""
    if options.labels:
        return options.out or Path("simulated.zarr")
    return options.out or Path(f"traverse-{options.traverse}.png" if options.traverse else "simulated.fits")


def _check_out(options: Options) -> None:
    from harps_dist.inference.many import check_simulation
    from harps_dist.inference.spectrum_files import check_spectrum
    from harps_dist.inference.traverse import check_traversal

    check = check_simulation if options.labels else check_traversal if options.traverse else check_spectrum
    check(out_of(options))


def _request(options: Options, simulator: Simulator, console: Console) -> Request:
    request = simulator.request(
        options.given, options.unknown, options.snr, options.seed, cleaned(options.name, 100), options.extrapolate
    )
    _say(request.notes, console)
    return request


def _simulate_one(options: Options, simulator: Simulator, console: Console) -> Path:
    from harps_dist.inference.spectrum_files import write_spectrum

    out = out_of(options)
    simulated = simulator.draw(_request(options, simulator, console), options.rv_by)
    write_spectrum(out, simulated)
    return out


def _traverse(options: Options, simulator: Simulator, console: Console) -> str:
    from harps_dist.inference.traverse import nodes_of_file, traverse

    assert options.traverse is not None
    if options.spectrum and (options.given or options.u != "zero"):
        raise ConfigError("--spectrum gives all nodes; leave labels and --u out, or --spectrum.")
    if options.snr or options.rv_by != "node":
        raise ConfigError("a traversal is what nodes do, without noise or shift; leave --snr and --rv-by out.")
    if options.spectrum:
        base, of = nodes_of_file(simulator, options.spectrum)
        found = traverse(simulator, options.traverse, base, of, options.points, options.span)
    else:
        request = _request(options, simulator, console)
        of = options.name or "the labels given" if options.given else "the mean labels"
        found = traverse(simulator, options.traverse, request, of, options.points, options.span)
    out = out_of(options)
    table = found.write(out)
    return f"{found.headline}\n{out}, {table}"


def _simulate_table(
    options: Options, labels: Path, simulator: Simulator, world: World, console: Console, progress: Progress
) -> None:
    from harps_dist.inference.label_table import read_request
    from harps_dist.inference.many import lost_in_fits, simulate_many

    out = out_of(options)
    request = read_request(
        labels, simulator, options.given, options.unknown, options.snr, options.seed, options.extrapolate
    )
    _say((*request.notes, *lost_in_fits(request, out)), console)
    written = simulate_many(simulator, request, out, world, options.rv_by, progress, options.batch_size)
    console.print(f"{len(request)} spectra {'are in' if written else 'were there already:'} {out}", soft_wrap=True)


def _say(notes: tuple[str, ...], console: Console) -> None:
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False)
