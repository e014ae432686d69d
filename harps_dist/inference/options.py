"""What `launch/simulate.py` is asked for, and doing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from harps_dist.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from harps_dist.inference.simulated import Request
    from harps_dist.inference.simulator import Simulator
    from harps_dist.training.distributed import World


@dataclass
class Options:
    """model: folder of a run or an export. out: what is written, in the form that its ending says.

    teff … pwv: labels in K, dex, km/s and mm; one that is not given is the training mean. u: unknown factors: zero,
    drawn from the prior, or numbers with commas between. snr: photon noise, per pixel at the median flux; without,
    there is none. seed: of what is drawn; rows of a table count up from it. name: of the object. rv_by: set the
    velocity's node, or shift what is decoded, exactly. extrapolate: also beyond what training saw. labels: table, one
    spectrum a row. traverse: node to vary: a label, or u1, u2, …; points: values; span: least and largest, default what
    training saw; spectrum: a HARPS file whose nodes are held, instead of labels. checkpoint: of a run. batch_size:
    spectra decoded at once. max_minutes: stop after so long, to be continued.
    """

    model: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    teff: float | None = None
    logg: float | None = None
    mh: float | None = None
    rv: float | None = None
    berv: float | None = None
    airmass: float | None = None
    pwv: float | None = None
    u: str = "zero"
    snr: float | None = None
    seed: int = 0
    name: str = ""
    rv_by: Literal["node", "shift"] = "node"
    extrapolate: bool = False
    labels: Path | None = None
    traverse: str | None = None
    points: int = 7
    span: tuple[float, float] | None = None
    spectrum: Path | None = None
    checkpoint: Literal["best", "newest"] = "best"
    batch_size: int = 16
    max_minutes: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """Labels that are given, by name."""
        names = ("teff", "logg", "mh", "rv", "berv", "airmass", "pwv")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def unknown(self) -> str | list[float]:
        if self.u in ("zero", "prior"):
            return self.u
        try:
            return [float(number) for number in self.u.split(",")]
        except ValueError:
            raise ConfigError(f"--u takes zero, prior or numbers with commas between, got {self.u!r}.") from None


def carry_out(options: Options, world: World, console: Console) -> None:
    """Simulate what is asked for, and say what was assumed and written."""
    from harps_dist.inference.simulator import Simulator

    if options.labels and options.traverse:
        raise ConfigError("--labels simulates a table and --traverse varies one node; give one of them.")
    if options.spectrum and not options.traverse:
        raise ConfigError("--spectrum gives the nodes that --traverse holds; say which node is to vary.")
    simulator = Simulator.load(options.model, options.checkpoint, world.device)
    if options.labels:
        _simulate_table(options, options.labels, simulator, world, console)
    elif world.is_main:
        work = _traverse if options.traverse else _simulate_one
        console.print(f"{work(options, simulator, console)}", soft_wrap=True)


def _request(options: Options, simulator: Simulator, console: Console) -> Request:
    request = simulator.request(
        options.given, options.unknown, options.snr, options.seed, options.name, options.extrapolate
    )
    _say(request.notes, console)
    return request


def _simulate_one(options: Options, simulator: Simulator, console: Console) -> Path:
    from harps_dist.inference.spectrum_files import write_spectrum

    out = options.out or Path("simulated.fits")
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
    out = options.out or Path(f"traverse-{options.traverse}.png")
    table = found.write(out)
    return f"{found.headline}\n{out}, {table}"


def _simulate_table(options: Options, labels: Path, simulator: Simulator, world: World, console: Console) -> None:
    from harps_dist.inference.label_table import read_request
    from harps_dist.inference.many import lost_in_fits, simulate_many
    from preprocessing.progress import progress_bars

    out = options.out or Path("simulated.zarr")
    request = read_request(
        labels, simulator, options.given, options.unknown, options.snr, options.seed, options.extrapolate
    )
    _say((*request.notes, *lost_in_fits(request, out)), console)
    with progress_bars(quiet=not world.is_main) as progress:
        written = simulate_many(simulator, request, out, world, options.rv_by, progress, options.batch_size)
    console.print(f"{len(request)} spectra {'are in' if written else 'were there already:'} {out}", soft_wrap=True)


def _say(notes: tuple[str, ...], console: Console) -> None:
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False)
