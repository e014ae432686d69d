"""The paper's tables from a folder of runs, each cell beside what is printed there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from harps_dist.evaluation.paper import LABEL_TABLES, LEGENDS, NAN, PAPER_ROWS, TABLE_7, TABLE_8_RVIS, Pair
from harps_dist.evaluation.report import format_pair, markdown_table, strict_json
from harps_dist.evaluation.significance import LEVEL, compare, mean_by_star
from harps_dist.files import atomic_write
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.spectra.labels import EXTRINSIC, INTRINSIC, LABEL

if TYPE_CHECKING:
    from pyarrow import Table as PredictionTable
    from rich.table import Table

    from harps_dist.data.manifest import Manifest

MARKS = {"": "{}", "spectra": "**{}**", "stars": "**{}** ★"}
COLUMNS = {"intrinsic": INTRINSIC, "extrinsic": EXTRINSIC}
UNSUPERVISED_NOTE = (
    "Labels of unsupervised models come from a regression that joins each latent with the labels of its own spectrum. "
    "The public code behind the printed table joins them by a mismatched row index, so its rows read like predicting "
    "the mean label."
)


@dataclass(frozen=True)
class Row:
    """One model in a table: legend, its cells, the printed ones, spectra and stars, steps; no step where not run.

    outperforms: for each cell whether it is significantly better than the column's others by "spectra", by "stars" too,
    or not.
    """

    legend: str
    cells: list[Pair]
    printed: list[Pair]
    spectra: int = 0
    stars: int = 0
    step: int | None = None
    outperforms: list[Literal["", "spectra", "stars"]] = field(default_factory=list)

    def measured(self) -> list[str]:
        """The cells as text, the significantly best marked."""
        if self.step is None:
            return ["–"] * len(self.cells)
        marks = self.outperforms or [""] * len(self.cells)
        return [MARKS[mark].format(format_pair(*cell)) for cell, mark in zip(self.cells, marks, strict=True)]


@dataclass(frozen=True)
class ReproducedTable:
    """A table of the paper with our numbers: its columns as printed, and its rows."""

    title: str
    columns: list[str]
    rows: list[Row]
    note: str = ""

    def lines(self) -> Iterator[list[str]]:
        """Two lines a row: what was measured here, and what the paper prints."""
        for row in self.rows:
            where = f"{row.spectra:,} / {row.stars:,}" if row.step is not None else "not run"
            yield [row.legend, *row.measured(), where, f"{row.step:,}" if row.step is not None else ""]
            yield ["  printed", *(format_pair(*cell) for cell in row.printed), "", ""]

    @property
    def header(self) -> list[str]:
        return ["", *self.columns, "spectra / stars", "step"]

    def markdown(self) -> str:
        note = f"\n\n{self.note}" if self.note else ""
        return f"## {self.title}\n\n{markdown_table(self.header, list(self.lines()))}{note}\n"

    def console(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.title, caption=self.note or None)
        for number, title in enumerate(map(escape, self.header)):
            table.add_column(title, justify="right" if number else "left", no_wrap=not number)
        for number, line in enumerate(self.lines()):
            table.add_row(*(cell.replace("**", "") for cell in line), style="dim" if number % 2 else None)
        return table


def table_recipes(demo: bool, sweeps: bool = False) -> list[str]:
    """Recipes behind Tables 4-8 and, on request, the sweeps of Figs. 2 and D.1: parents before those that need them."""
    names = [*TABLE_7, *dict.fromkeys(name for table in LABEL_TABLES.values() for name in table.rows)]
    if sweeps:
        names += [name for name in RECIPES if name.startswith(("fig2-", "figd1-"))]
    names = [f"demo-{name}" if demo else name for name in names]
    parents = {find_recipe(name).parent for name in names}
    return sorted(names, key=lambda name: name not in parents)


def reproduced_tables(runs: Path, demo: bool) -> list[ReproducedTable]:
    """Tables 4-8 from the evaluations of the runs in a folder, each run named as its recipe.

    Label errors and RVIS are of observed spectra (of the demo: those made to look observed), MAE' of decoders of
    simulated ones. NMAE ("All") is paper-comparable: divided as the printed tables do. A run that is missing is a row
    that says so.
    """
    tables = []
    for number, table in LABEL_TABLES.items():
        columns = [
            title
            for group, members in COLUMNS.items()
            for title in (*(f"{name} [{LABEL[name].unit or '-'}]" for name in members), f"All {group} [-]")
        ]
        better = _outperforming(runs, table.rows, demo)
        rows = [replace(_label_row(runs, name, demo), outperforms=better[name]) for name in table.rows]
        note = UNSUPERVISED_NOTE if any(name.endswith("-u") for name in table.rows) else ""
        tables.append(ReproducedTable(f"Table {number}: {table.title}, MAE of labels", columns, rows, note))
    rows = [
        _measure_row(runs, name, demo, "simulated", "MAE' (paper-comparable)", value) for name, value in TABLE_7.items()
    ]
    tables.append(ReproducedTable("Table 7: decoders on simulated spectra", ["MAE' (paper-comparable)"], rows))
    rows = [_measure_row(runs, name, demo, "real", "RVIS", value) for name, value in TABLE_8_RVIS.items()]
    tables.append(ReproducedTable("Table 8: generative results", ["RVIS"], rows))
    return tables


def write_tables(tables: list[ReproducedTable], runs: Path, manifest: Manifest) -> None:
    """Write RUNS/tables.md and tables.json, and say which data it was."""
    data = "genuine spectra" if manifest.genuine else "NOT genuine spectra"
    head = f"# The paper's tables\n\n**Data: {data}. {manifest.description}** Release sha256 `{manifest.digest}`.\n"
    legend = (
        "Upper line of a row: measured here. Lower line: printed in the paper, on its own test split of real HARPS "
        "spectra. ± is the standard error of the mean, every spectrum counted as independent. Bold outperforms every "
        f"other model of its column (Mann-Whitney U, Holm-Bonferroni, {LEVEL}) as the paper counts, by spectrum; "
        "★ also star by star, since repeated visits to a star are not independent.\n"
    )
    with atomic_write(runs / "tables.md") as aside:
        aside.write_text("\n".join([head, legend, *(table.markdown() for table in tables)]), encoding="utf-8")
    content = {
        "release_digest": manifest.digest,
        "genuine": manifest.genuine,
        "tables": [asdict(table) for table in tables],
    }
    with atomic_write(runs / "tables.json") as aside:
        aside.write_text(strict_json(content), encoding="utf-8")


def _evaluation(runs: Path, recipe: str, demo: bool, kind: str) -> Path:
    return runs / (f"demo-{recipe}" if demo else recipe) / "evaluation" / f"test-{kind}"


def _scores(runs: Path, recipe: str, demo: bool, kind: str) -> dict | None:
    path = _evaluation(runs, recipe, demo, kind) / "scores.json"
    return json.loads(path.read_text()) if path.exists() else None


def _label_row(runs: Path, recipe: str, demo: bool) -> Row:
    paper = PAPER_ROWS[recipe]
    printed = [
        pair
        for group, members in COLUMNS.items()
        for pair in (*(paper.labels[n] for n in members), paper.groups[group])
    ]
    scores = _scores(runs, recipe, demo, "real")
    if scores is None:
        return Row(paper.legend, [(NAN, NAN)] * len(printed), printed)
    labels = {score["name"]: _pair(score["mae"], score["standard_error"]) for score in scores["labels"]}
    groups = {score["name"]: _pair(score["nmae_paper"], score["standard_error_paper"]) for score in scores["groups"]}
    none = (NAN, NAN)
    cells = [
        pair
        for group, members in COLUMNS.items()
        for pair in (*(labels.get(name, none) for name in members), groups.get(group, none))
    ]
    return Row(paper.legend, cells, printed, scores["spectra"], scores["stars"], scores["step"])


def _outperforming(runs: Path, recipes: Sequence[str], demo: bool) -> dict[str, list[Literal["", "spectra", "stars"]]]:
    """By recipe, for each column of a table of label errors, whether the recipe outperforms all others there."""
    import pyarrow.parquet as pq

    paths = {name: _evaluation(runs, name, demo, "real") / "predictions.parquet" for name in recipes}
    tables = {name: pq.read_table(path) for name, path in paths.items() if path.exists()}
    columns = {name: _column_errors(table) for name, table in tables.items()}
    stars = {name: table["star"].to_numpy() for name, table in tables.items()}
    marks: dict[str, list[Literal["", "spectra", "stars"]]] = {name: [] for name in recipes}
    for number in range(sum(len(members) + 1 for members in COLUMNS.values())):
        errors = {name: columns[name][number] for name in tables}
        by_spectrum = compare(errors)
        by_star = compare({name: mean_by_star(errors[name], stars[name]) for name in tables})
        for name in recipes:
            spectra = by_spectrum is not None and by_spectrum.best == name and by_spectrum.significant()
            also_stars = spectra and by_star is not None and by_star.best == name and by_star.significant()
            marks[name].append("stars" if also_stars else "spectra" if spectra else "")
    return marks


def _column_errors(predictions: PredictionTable) -> list[np.ndarray]:
    """Absolute errors (n,) for each column of a table of label errors; "All" is the mean NMAE of whole groups."""
    columns = []
    for members in COLUMNS.values():
        errors = {
            name: np.abs(predictions[name].to_numpy() - predictions[f"{name}_true"].to_numpy()) for name in members
        }
        columns += [*errors.values(), np.mean([errors[name] / LABEL[name].paper_mad for name in members], axis=0)]
    return columns


def _measure_row(runs: Path, recipe: str, demo: bool, kind: str, measure: str, printed: Pair) -> Row:
    legend = LEGENDS[recipe]
    scores = _scores(runs, recipe, demo, kind)
    if scores is None:
        return Row(legend, [(NAN, NAN)], [printed])
    found = {score["name"]: _pair(score["value"], score["standard_error"]) for score in scores["measures"]}
    cell = found.get(measure, (NAN, NAN))
    return Row(legend, [cell], [printed], scores["spectra"], scores["stars"], scores["step"])


def _pair(value: float | None, error: float | None) -> Pair:
    """JSON has null for NaN."""
    return (NAN if value is None else value, NAN if error is None else error)
