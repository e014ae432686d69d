"""The paper's tables and figures from a folder of runs, and one page that shows them beside what is printed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harps_dist.benchmarks.genuine import read_genuine
from harps_dist.benchmarks.inference_speed import InferenceSpeed, read_speeds
from harps_dist.evaluation.evaluate import EVALUATION, evaluate_run, is_evaluated
from harps_dist.evaluation.predicting import origin_of
from harps_dist.evaluation.printed import LABEL_TABLES, TABLE_7
from harps_dist.evaluation.report import EVALUATED, origin_words
from harps_dist.evaluation.significance import LEVEL
from harps_dist.evaluation.templates import PAGE, page_kind, picture, render, write_text
from harps_dist.files import atomic_write
from harps_dist.ownership import KEY, OutputKind, check, claimed, home, json_file
from harps_dist.paper.evaluations import Evaluations
from harps_dist.paper.figures import PaperFigure, draw_paper_figures
from harps_dist.paper.genuine import genuine_table
from harps_dist.paper.tables import PaperTable, paper_tables
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.runs.run import RUN
from harps_dist.text import strict_json
from harps_dist.training.loop import train_run

if TYPE_CHECKING:
    from rich.console import Console

    from harps_dist.data.reader import Release
    from harps_dist.ranks.world import World

TABLES, FIGURES = "tables", "figures"
GENERATOR = "harps_dist: reproduced tables and figures"
REPRODUCED = page_kind(
    "page of reproduced tables", "folder of runs", GENERATOR, "<title>Cvrček et al. (2024), reproduced</title>"
)


def _is_markdown(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        head = file.read(4096)
    return re.match(r"# The paper's tables\n\n\*\*Data: .*\*\* Release sha256 `[0-9a-f]{64}`\.\n", head) is not None


def _are_figures(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return REPRODUCED.ours(folder.parent / PAGE) and all(re.fullmatch(r"fig\w+\.(png|pdf)", name) for name in names)


MARKDOWN = OutputKind("file of reproduced tables", "folder of runs", _is_markdown)
CONTENT = json_file("reproduced tables", "folder of runs", {"release_digest", "genuine", "tables"}, parents=True)
DRAWN = home("folder of reproduced figures", "folder of runs", _are_figures)
LEGEND = (
    "Of each row the first line is measured here, the second is printed in the paper, on its own test split of real "
    "HARPS spectra. ± is the standard error of the mean, every spectrum counted as independent; by star: every star. "
    f"Bold outperforms every other model of its column (Mann-Whitney U, Holm-Bonferroni, {LEVEL}) as the paper counts, "
    "by spectrum; ★ also star by star, since repeated visits to a star are not independent."
)


@dataclass(frozen=True)
class Reproduction:
    """Tables and figures of a folder of runs, and in one sentence which data they show."""

    data: str
    genuine: bool
    digest: str
    tables: list[PaperTable]
    figures: list[PaperFigure]


def table_recipes(demo: bool, sweeps: bool = False) -> list[str]:
    """Recipes behind Tables 3-9 and, on request, the sweeps of Figs. 2 and D.1: parents before those that need them."""
    names = [*TABLE_7, *dict.fromkeys(name for table in LABEL_TABLES.values() for name in table.rows)]
    if sweeps:
        names += [name for name in RECIPES if name.startswith(("fig2-", "figd1-"))]
    names = [f"demo-{name}" if demo else name for name in names]
    parents = {find_recipe(name).parent for name in names}
    return sorted(names, key=lambda name: name not in parents)


def outputs_of(runs: Path) -> list[tuple[Path, OutputKind]]:
    """All that `reproduce` writes into a folder of runs, but what the runs hold."""
    files = ((PAGE, REPRODUCED), (f"{TABLES}.md", MARKDOWN), (f"{TABLES}.json", CONTENT), (FIGURES, DRAWN))
    return [(runs / name, kind) for name, kind in files]


def check_outputs(runs: Path, rows: Sequence[str] = ()) -> None:
    """Raises OutputError where something else stands in the place of what is to be written, or of a run or its
    evaluation: to be called before any work."""
    of_runs = [(runs / name, RUN) for name in rows]
    of_runs += [(runs / name / EVALUATION, EVALUATED) for name in rows]
    for output in (*outputs_of(runs), *of_runs):
        check(*output)


def missing_rows(runs: Path, release: Release, demo: bool, sweeps: bool = False) -> list[str]:
    """Rows of `table_recipes` whose run in `runs` is missing or was not evaluated, as it is, on the release."""
    return [name for name in table_recipes(demo, sweeps) if not is_evaluated(runs / name, release, "test")]


def complete(
    name: str,
    runs: Path,
    release: Release,
    release_name: str,
    changes: Mapping[str, object],
    world: World,
    console: Console,
) -> None:
    """Train a recipe's run in `runs` to its end and evaluate it; what is done already is not done again.

    changes: to the recipe's training settings.
    """
    recipe = find_recipe(name).changed(data={"release": release_name}, training=changes)
    train_run(recipe, name, release, runs / name, world)
    if not is_evaluated(runs / name, release, "test"):
        evaluate_run(runs / name, release, "test", runs / name / EVALUATION, world, console)
    world.barrier()


def reproduce(runs: Path, demo: bool, release: Release) -> Reproduction:
    """Read the evaluations on the release, speed*.json and genuine*.json in `runs`; write tables.md, tables.json,
    figures, as PNG and PDF, and index.html there, which holds all of it and needs no other file. Raises OutputError
    where something else is in their place, or another process writes them; ConfigError for JSON that is damaged."""
    page_, *beside = outputs_of(runs)
    with claimed(*page_, *beside), claimed(*beside.pop()):
        return _reproduce(runs, demo, release)


def _reproduce(runs: Path, demo: bool, release: Release) -> Reproduction:
    evaluations, manifest = Evaluations(runs, demo, release.digest), release.manifest
    speeds: list[InferenceSpeed] = [speed for path in sorted(runs.glob("speed*.json")) for speed in read_speeds(path)]
    genuine = genuine_table([read_genuine(path) for path in sorted(runs.glob("genuine*.json"))])
    origin = origin_words(origin_of("real", release), manifest.not_genuine)
    made = Reproduction(
        data=f"{origin}. {manifest.description}".strip(),
        genuine=manifest.genuine,
        digest=manifest.digest,
        tables=[*paper_tables(evaluations, speeds), *filter(None, [genuine])],
        figures=draw_paper_figures(evaluations, release.index, runs / FIGURES),
    )
    _write_tables(made, runs)
    write_text(runs / PAGE, page(made, runs))
    return made


def _write_tables(made: Reproduction, runs: Path) -> None:
    head = f"# The paper's tables\n\n**Data: {made.data}** Release sha256 `{made.digest}`.\n"
    with atomic_write(runs / f"{TABLES}.md") as aside:
        text = "\n".join([head, LEGEND + "\n", *(table.markdown() for table in made.tables)])
        aside.write_text(text, encoding="utf-8")
    content = {
        KEY: CONTENT.name,
        "release_digest": made.digest,
        "genuine": made.genuine,
        "tables": [asdict(table) for table in made.tables],
    }
    with atomic_write(runs / f"{TABLES}.json") as aside:
        aside.write_text(strict_json(content), encoding="utf-8")


def page(made: Reproduction, folder: Path) -> str:
    """The whole as one HTML page for a folder; pictures are within it."""
    note = "" if made.genuine else " Not genuine spectra."
    pictures = {
        figure.name: picture(figure.path, figure.number, f"{figure.caption}{note}", folder) for figure in made.figures
    }
    rows = [row for table in made.tables if table.of_runs for row in table.rows]
    trained = [row for row in rows if row.step is not None]
    return render(
        "harps_dist.paper",
        "page.html.j2",
        GENERATOR,
        made=made,
        pictures=pictures,
        legend=LEGEND,
        trained=f"{len(trained)} of {len(rows)} rows trained",
    )
