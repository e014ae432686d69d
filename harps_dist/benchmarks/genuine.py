"""What models read of stars whose labels are known: bias and scatter of each method, star by star and over stars.

Spectra are matched to stars as ingest does it, and read by what `predict` and `fit` run, each into a table.

Tested in tests/integration/test_genuine.py.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.benchmarks.visits import MethodScore, Sample, StarScore, method_score, star_score
from harps_dist.columns import read_columns
from harps_dist.errors import ConfigError
from harps_dist.fitting.files import fit_files
from harps_dist.fitting.fitter import Fitter
from harps_dist.fitting.stellar import CorrectedModel
from harps_dist.formats.readers import find_spectra, read_spectrum
from harps_dist.formats.records import Refusal
from harps_dist.inference.model import Exported
from harps_dist.inference.predict import predict_files
from harps_dist.models.refine import refines
from harps_dist.ownership import KEY, claimed, home, json_file, write_json
from harps_dist.progress import Progress, silent
from harps_dist.ranks.world import World
from harps_dist.sealed import unsealed
from harps_dist.spectra.labels import LABEL
from harps_dist.text import NAN, number, printable, sealed_json
from preprocessing.catalog import Catalog, Match, normalise_name
from preprocessing.ingest import existing

if TYPE_CHECKING:
    from rich.table import Table

READ = ("teff", "logg", "mh", "rv")  # labels that are compared
SAMPLES = 16  # blankings
SAMPLED: tuple[Sample, ...] = ("unflagged", "all")
DIGITS = {"teff": 0, "logg": 3, "mh": 3, "rv": 3}
TABLES = home("tables of a benchmark", "--tables")
GENUINE = json_file("benchmark of genuine spectra", "--json")


@dataclass(frozen=True)
class GenuineScores:
    """What methods read of spectra of known stars.

    command: that measured it. model: name and id of the network, '' without one; stars: of the model spectra that are
    fitted. spectra: that were read; simulated: of these, how many say that no telescope took them. left_out: spectra
    without a score, by why. of_stars: one score a star, method and label; of_methods: one a method, label and sample.
    """

    command: str
    model: str
    model_id: str
    stars: str
    grid: str
    device: str
    versions: Mapping[str, str]
    spectra: int
    simulated: int
    left_out: Mapping[str, int]
    of_stars: tuple[StarScore, ...]
    of_methods: tuple[MethodScore, ...]

    @property
    def title(self) -> str:
        """What was read, in words; what says that it is simulated is not called genuine."""
        many = f"{self.spectra} spectra of {len({score.star for score in self.of_stars})} stars"
        if self.simulated == self.spectra:
            return f"{many}, simulated"
        return f"{many}, {self.simulated} of them simulated" if self.simulated else f"{many}, genuine"

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(score.method for score in self.of_methods))


@dataclass
class _Known:
    """Spectra of stars with labels: their files, their stars by dp_id, the names of those by id, and the others."""

    paths: list[Path] = field(default_factory=list)
    matches: dict[str, Match] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def genuine_scores(
    spectra: Path,
    catalog: Catalog,
    fitter: Fitter,
    network: Exported | None = None,
    tables: Path | None = None,
    command: str = "",
    progress: Progress = silent,
) -> GenuineScores:
    """Read spectra of stars that a catalogue knows by every method, and compare.

    spectra: folder of files, or one file. fitter: on the network's grid where there is one (`fitting_grid`). network:
    an export; without it spectra are fitted alone, from cross-correlation. tables: folder that keeps the table of every
    method, from which an interrupted benchmark goes on. Raises ConfigError where no spectrum is of a star with labels,
    ArchiveError where there are none; OutputError for the folder of something else.
    """
    known = _known(spectra, catalog, progress)
    world = World.alone(fitter.device)
    with _folder(tables) as folder:
        read, failed = _read(known.paths, folder, network, fitter, world, progress)
    of_stars = [score for method, rows in read.items() for score in _scored(method, rows, known)]
    pairs = dict.fromkeys((score.method, score.label) for score in of_stars)
    rows = next(iter(read.values()))
    return GenuineScores(
        command=command,
        model=network.description.name if network else "",
        model_id=network.id if network else "",
        stars=f"{type(fitter.model).__name__} {fitter.model.id}".strip(),
        grid=fitter.grid.name,
        device=world.device_name,
        versions={package: version(package) for package in (KEY, "torch", "numpy", "astropy")},
        spectra=len(rows["dp_id"]),
        simulated=int((rows["simulated"] != "").sum()),
        left_out={why: count for why, count in (known.left_out + failed).items() if count},
        of_stars=tuple(sorted(of_stars, key=lambda score: score.star)),
        of_methods=tuple(method_score(of_stars, *pair, sample) for pair in pairs for sample in SAMPLED),
    )


def _known(spectra: Path, catalog: Catalog, progress: Progress) -> _Known:
    """Which spectra are of stars that have one of the labels; matched by `Catalog.match`, as of ingest."""
    found, paths = _Known(), find_spectra(existing(spectra))
    for done, path in enumerate(paths):
        progress("match spectra", done + 1, len(paths))
        record = read_spectrum(path)
        if isinstance(record, Refusal):
            found.left_out["could not be read"] += 1
            continue
        match = catalog.match(record)
        if match is None:
            found.left_out["not in the catalogue"] += 1
        elif match.note:
            found.left_out["with a name that contradicts the position"] += 1
        elif not match.labels.keys() & set(READ):
            found.left_out[f"of a star without {', '.join(READ)}"] += 1
        else:
            found.paths.append(path)
            found.matches[record.dp_id] = match
            found.names.setdefault(match.target_id, record.object)
    if not found.paths:
        told = ", ".join(f"{count} {why}" for why, count in sorted(found.left_out.items()))
        raise ConfigError(
            f"expected spectra of stars with labels in {printable(spectra)}, got {told or 'no file of spectra'}. Give "
            f"labels of their stars, or spectra of the catalogue's."
        )
    return found


@contextmanager
def _folder(tables: Path | None) -> Iterator[Path]:
    """Where tables are written: the folder that is given, or one that goes away."""
    if tables is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        with claimed(tables, TABLES):
            yield tables


def _read(
    paths: Sequence[Path],
    folder: Path,
    network: Exported | None,
    fitter: Fitter,
    world: World,
    progress: Progress,
) -> tuple[dict[str, dict[str, np.ndarray]], Counter[str]]:
    """Tables of all methods, by method, and how many spectra each could not read."""
    reports = {}

    def telling(method: str) -> Progress:
        return lambda what, done, total: progress(method, done, total)

    def table_of(method: str) -> Path:
        return folder / f"{method.replace(', ', '-').replace(' + ', '-')}.parquet"

    def predicted(method: str, **how: object) -> None:
        how |= {"world": world, "progress": telling(method)}
        reports[method] = predict_files(network, paths, table_of(method), **how)  # type: ignore[arg-type]

    def fitted(method: str, start: Exported | None) -> None:
        method += ", lines" if isinstance(fitter.model, CorrectedModel) else ""
        reports[method] = fit_files(fitter, paths, table_of(method), start, world=world, progress=telling(method))

    if network:
        predicted("network")
        if network.description.blanked:
            predicted("network, blanked", samples=SAMPLES)
        if refines(network.model):
            predicted("network, refined", refine="labels")
    fitted("fit", None)
    if network:
        fitted("network + fit", network)
    tables = {method: read_columns(report.table) for method, report in reports.items()}
    failed = Counter({f"could not be read by {method}": len(report.failed) for method, report in reports.items()})
    if missing := [method for method, table in tables.items() if table is None]:
        raise ConfigError(f"none of {len(paths)} spectra could be read by {', '.join(missing)}. Check the files.")
    return {method: table for method, table in tables.items() if table is not None}, failed


def _scored(method: str, rows: Mapping[str, np.ndarray], known: _Known) -> Iterator[StarScore]:
    """Scores of every star and label that a table of a method has."""
    targets = np.array([known.matches[dp_id].target_id for dp_id in rows["dp_id"]])
    for star in np.unique(targets):
        visits = targets == star
        match = known.matches[rows["dp_id"][visits][0]]
        for label in READ:
            if label in rows:
                yield star_score(
                    str(star),
                    known.names[str(star)],
                    method,
                    label,
                    (match.labels.get(label, NAN), match.errors.get(label, NAN)),
                    rows[label][visits],
                    stated_errors(rows, label)[visits],
                    rows["flags"][visits] != "",
                    rows["mjd"][visits],
                )


def stated_errors(rows: Mapping[str, np.ndarray], label: str) -> np.ndarray:
    """(n,) standard deviations that a table states of a label: of a fit that which residuals make, of a network half of
    the narrowest calibrated interval, else what the model has."""
    if f"{label}_error" in rows:
        return rows[f"{label}_error"]
    lows = sorted(name for name in rows if name.startswith(f"{label}_lo"))
    if not lows:
        return rows[f"{label}_sigma"]
    half = (rows[lows[0].replace("_lo", "_hi")] - rows[lows[0]]) / 2
    return np.where(np.isfinite(half), half, rows[f"{label}_sigma"])


def write_genuine(scores: GenuineScores, path: Path | None) -> None:
    """Write all scores as JSON, with the command, versions and device; NaN is null."""
    write_json(path, GENUINE, json.loads(sealed_json({KEY: GENUINE.name} | asdict(scores))))


def read_genuine(path: Path) -> GenuineScores:
    """What `write_genuine` wrote; raises ConfigError where it was changed since, or is something else."""
    try:
        content = unsealed(json.loads(path.read_text(encoding="utf-8")), required=True)
        content.pop(KEY)
        content["of_stars"] = tuple(StarScore(**_numbers(score)) for score in content["of_stars"])
        content["of_methods"] = tuple(MethodScore(**_numbers(score)) for score in content["of_methods"])
        return GenuineScores(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}. Run harps-dist benchmark genuine again.") from None


def _numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number(value) if value is None else value for name, value in content.items()}


def genuine_tables(scores: GenuineScores) -> list[Table]:
    """Scores of every star, and over stars, as two tables for the console."""
    from rich import box
    from rich.table import Table

    titles = [f"{LABEL[label].name} [{LABEL[label].unit}]" for label in READ]
    form: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)}
    stars = Table("star", "method", "visits", "flagged", *titles, "about a line [m/s]", title=scores.title, **form)
    stars.caption = (
        "bias ± scatter among visits (over the stated error), of unflagged visits; * all are flagged, and count; "
        "velocities also about a straight line in time"
    )
    rows: dict[tuple[str, str], dict[str, StarScore]] = {}
    for score in scores.of_stars:
        rows.setdefault((score.star, score.method), {})[score.label] = score
    for (star, method), row in rows.items():
        first = next(iter(row.values()))
        line = "" if np.isnan(about := row["rv"].about_line if "rv" in row else NAN) else f"{1e3 * about:.1f}"
        cells = [_of_star(row[label]) if label in row else "" for label in READ]
        called = first.name if normalise_name(first.name) == star else f"{first.name} ({star})"
        stars.add_row(called, method, f"{first.visits}", f"{first.flagged}", *cells, line)
    over = Table("method", "stars", *titles, title="over stars", **form)
    over.caption = "bias; scatter (without the references' errors); mean error of so many stars"
    for method in scores.methods:
        for sample in SAMPLED:
            found = {
                score.label: score for score in scores.of_methods if (score.method, score.sample) == (method, sample)
            }
            over.add_row(method, sample, *(_over_stars(found[label]) if label in found else "" for label in READ))
    return [stars, over]


def _of_star(score: StarScore) -> str:
    if not score.used:
        return "–"
    digits, mark = DIGITS[score.label], "" if score.trusted else "*"
    shown = _shown(score.bias if np.isfinite(score.bias) else score.median, digits, np.isfinite(score.bias))
    scatter = "" if np.isnan(score.scatter) else f" ± {score.scatter:.{digits}f}"
    return f"{shown}{scatter}{'' if np.isnan(score.ratio) else f' ({score.ratio:.2g})'}{mark}"


def _over_stars(score: MethodScore) -> str:
    if not score.stars:
        return "–"
    digits = DIGITS[score.label]
    intrinsic = "" if np.isnan(score.intrinsic) else f" ({score.intrinsic:.{digits}f})"
    scatter = "" if np.isnan(score.scatter) else f"; {score.scatter:.{digits}f}{intrinsic}"
    return f"{_shown(score.bias, digits, True)}{scatter}; {score.mae:.{digits}f} of {score.stars}"


def _shown(value: float, digits: int, signed: bool) -> str:
    return f"{value:+.{digits}f}" if signed else f"= {value:.{digits}f}"
