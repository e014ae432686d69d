"""The paper's tables from a folder of runs, each cell beside what is printed there.

Tested in tests/unit/test_page.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harps_dist.benchmarks.inference_speed import CONVENTION, InferenceSpeed
from harps_dist.evaluation.measures import (
    BERV_LEAKAGE,
    BERV_RESPONSE,
    COMPARABLE,
    GIS,
    GIS_TRUE,
    RESPONSE,
    RV_LEAKAGE,
    RV_RESPONSE,
    RV_SENSITIVITY,
    RVIS,
    RVIS_TRUE,
    SENSITIVITY,
    Measure,
    SpectraKind,
    label_measure,
)
from harps_dist.evaluation.printed import LABEL_TABLES, LEGENDS, PAPER_ROWS, TABLE_3, TABLE_7, TABLE_8, TABLE_9, Pair
from harps_dist.evaluation.significance import compare, mean_by_star
from harps_dist.paper.evaluations import Evaluations
from harps_dist.spectra.labels import EXTRINSIC, INTRINSIC, LABEL
from harps_dist.text import NAN, format_pair, format_value, markdown_table, number

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Outperforms = Literal["", "spectra", "stars"]
MARKS = {"": "{}", "spectra": "**{}**", "stars": "**{}** ★"}
COLUMNS = {"intrinsic": INTRINSIC, "extrinsic": EXTRINSIC}
TITLES = {"teff": "Teff", "mh": "[M/H]", "logg": "log g", "rv": "rv", "berv": "BERV", "airmass": "airmass"}
UNSUPERVISED_NOTE = (
    "Labels of unsupervised models come from a regression that joins each latent with the labels of its own spectrum. "
    "The public code behind the printed table joins them by a mismatched row index, so its rows read like predicting "
    "the mean label."
)


@dataclass(frozen=True)
class Cell:
    """value ± error as measured here, what is printed, and how many spectra of how many stars were measured.

    NaN where not measured or printed. error_stars: the standard error with the star as the independent unit.
    outperforms: whether the model is significantly better than all others of the column by "spectra", by "stars" too,
    or not.
    """

    value: float = NAN
    error: float = NAN
    error_stars: float = NAN
    printed: Pair = (NAN, NAN)
    spectra: int = 0
    stars: int = 0
    outperforms: Outperforms = ""

    @property
    def measured(self) -> str:
        """A measured value as text, marked where significantly the best."""
        return MARKS[self.outperforms].format(format_pair(self.value, self.error))

    @property
    def paper(self) -> str:
        return format_pair(*self.printed)

    @property
    def by_star(self) -> str:
        """The error by star, empty where it is not known."""
        return "" if np.isnan(self.error_stars) else f"± {format_value(self.error_stars, self.error_stars)}"

    @property
    def sample(self) -> str:
        """Spectra / stars."""
        return f"{self.spectra:,} / {self.stars:,}" if self.spectra else ""


@dataclass(frozen=True)
class Row:
    """One model in a table; step: optimiser steps of its run, None where it was not run."""

    legend: str
    cells: list[Cell]
    step: int | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper with our numbers. printed: whether the paper has it, or it stands beside one that it has.
    of_runs: whether its rows are runs, which have steps."""

    title: str
    columns: list[str]
    rows: list[Row]
    note: str = ""
    printed: bool = True
    of_runs: bool = True

    def lines(self) -> Iterator[list[str]]:
        """Lines of a row: what was measured here, what is printed, the error by star, and spectra / stars."""
        for row in self.rows:
            blank = [""] * self.of_runs
            step = [f"{row.step:,}" if row.step is not None else "not run"] * self.of_runs
            yield [row.legend, *(cell.measured for cell in row.cells), *step]
            if self.printed:
                yield ["  printed", *(cell.paper for cell in row.cells), *blank]
            if any(cell.spectra for cell in row.cells):
                yield ["  by star", *(cell.by_star for cell in row.cells), *blank]
                yield ["  spectra / stars", *(cell.sample for cell in row.cells), *blank]

    @property
    def header(self) -> list[str]:
        return ["", *self.columns, *["step"] * self.of_runs]

    @property
    def anchor(self) -> str:
        """The table's place on a page, for links."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())

    def markdown(self) -> str:
        note = f"\n\n{self.note}" if self.note else ""
        return f"## {self.title}\n\n{markdown_table(self.header, list(self.lines()))}{note}\n"

    def console(self) -> RichTable:
        from rich.table import Table

        table = Table(title=self.title, caption=self.note or None)
        for place, title in enumerate(self.header):
            table.add_column(title, justify="right" if place else "left", no_wrap=not place)
        for line in self.lines():
            table.add_row(*(cell.replace("**", "") for cell in line), style="dim" if line[0].startswith(" ") else None)
        return table


def paper_tables(evaluations: Evaluations, speeds: Sequence[InferenceSpeed] = ()) -> list[PaperTable]:
    """Tables 3-9 from the evaluations of the runs in a folder; a run that is missing is a row that says so.

    Label errors and RVIS are of observed spectra (of the demo: those made to look observed), MAE' of decoders of
    simulated ones, GIS of the generative set. NMAE ("All") is divided as the printed tables do.
    """
    tables = [_summary(evaluations)]
    for name, table in LABEL_TABLES.items():
        rows = _mark_best(evaluations, table.rows, [_label_row(evaluations, recipe) for recipe in table.rows])
        note = UNSUPERVISED_NOTE if any(recipe.endswith("-u") for recipe in table.rows) else ""
        tables.append(PaperTable(f"Table {name}: {table.title}, MAE of labels", LABEL_TITLES, rows, note))
    return [*tables, _decoders(evaluations), *_generative(evaluations), _speed(speeds)]


def label_title(label: str) -> str:
    """A label with its unit, as the head of a column."""
    return f"{TITLES[label]} [{LABEL[label].unit or '-'}]"


LABEL_TITLES = [
    title for group, members in COLUMNS.items() for title in (*map(label_title, members), f"All {group} [-]")
]  # as printed: teff, mh, logg, All | rv, berv, airmass, All


def _summary(evaluations: Evaluations) -> PaperTable:
    rows = []
    for legend, recipes, printed in TABLE_3:
        scores = [evaluations.scores(recipe, "real") for recipe in recipes]
        whole = [score for score in scores if score is not None]
        cells = [Cell(printed=(value, NAN)) for value in printed]
        if len(whole) == len(recipes):
            errors = [[_named(score["labels"], label) for score in whole] for label in INTRINSIC]
            cells = [
                replace(
                    cell,
                    value=float(np.mean([number(label.get("mae")) for label in of_label])),
                    spectra=of_label[0].get("count", 0),
                    stars=of_label[0].get("stars", 0),
                )
                for cell, of_label in zip(cells, errors, strict=True)
            ]
        step = min(score["step"] for score in whole) if len(whole) == len(recipes) else None
        rows.append(Row(legend, cells, step))
    note = "Means over " + "; ".join(f"{', '.join(LEGENDS[r] for r in row.recipes)}" for row in TABLE_3) + "."
    return PaperTable("Table 3: summary of label errors", [label_title(label) for label in INTRINSIC], rows, note)


def _label_row(evaluations: Evaluations, recipe: str) -> Row:
    paper, scores = PAPER_ROWS[recipe], evaluations.scores(recipe, "real")
    cells = []
    for group, members in COLUMNS.items():
        of_labels = [_named(scores["labels"], label) if scores else {} for label in members]
        for label, score in zip(members, of_labels, strict=True):
            cells.append(_cell(score, "mae", "standard_error", paper.labels[label]))
        whole = _named(scores["groups"], group) if scores else {}
        least = min(of_labels, key=lambda score: score.get("count", 0))
        sample = {name: least[name] for name in ("count", "stars") if name in least}
        cells.append(_cell(whole | sample, "nmae_paper", "standard_error_paper", paper.groups[group]))
    return Row(paper.legend, cells, scores["step"] if scores else None)


def _mark_best(evaluations: Evaluations, recipes: Sequence[str], rows: list[Row]) -> list[Row]:
    """The rows with those cells marked whose model outperforms all others of the column (Mann-Whitney, Holm)."""
    columns = {
        recipe: _column_errors(evaluations, recipe) for recipe in recipes if evaluations.predictions(recipe, "real")
    }
    stars = {recipe: evaluations.column(recipe, "real", "star") for recipe in columns}
    marks: dict[str, list[Outperforms]] = {recipe: [] for recipe in recipes}
    for place in range(len(LABEL_TITLES)):
        errors = {recipe: columns[recipe][place] for recipe in columns}
        by_spectrum = compare(errors)
        by_star = compare({recipe: mean_by_star(errors[recipe], stars[recipe]) for recipe in columns})
        for recipe in recipes:
            spectra = by_spectrum is not None and by_spectrum.best == recipe and by_spectrum.significant()
            also_stars = spectra and by_star is not None and by_star.best == recipe and by_star.significant()
            marks[recipe].append("stars" if also_stars else "spectra" if spectra else "")
    return [
        replace(
            row,
            cells=[replace(cell, outperforms=mark) for cell, mark in zip(row.cells, marks[recipe], strict=True)],
        )
        for recipe, row in zip(recipes, rows, strict=True)
    ]


def _column_errors(evaluations: Evaluations, recipe: str) -> list[np.ndarray]:
    """Absolute errors (n,) for each column of a table of label errors; "All" is the mean NMAE of whole groups."""
    columns = []
    for members in COLUMNS.values():
        errors = {label: np.abs(evaluations.residuals(recipe, label)) for label in members}
        columns += [*errors.values(), np.mean([errors[label] / LABEL[label].paper_mad for label in members], axis=0)]
    return columns


def _decoders(evaluations: Evaluations) -> PaperTable:
    rows = []
    for recipe in TABLE_7:
        cell = _measured(evaluations, recipe, "simulated", COMPARABLE)
        rows.append(Row(LEGENDS[recipe], [cell], _step(evaluations, recipe, "simulated")))
    return PaperTable("Table 7: decoders on simulated spectra", [COMPARABLE.name], rows)


MeasuredColumns = dict[str, tuple[SpectraKind, Measure, str]]  # title to spectra, measure, and label where it is of one


def _generative(evaluations: Evaluations) -> list[PaperTable]:
    def table(title: str, columns: MeasuredColumns, note: str) -> PaperTable:
        rows = []
        for recipe in TABLE_8:
            cells = [_measured(evaluations, recipe, *column) for column in columns.values()]
            rows.append(Row(LEGENDS[recipe], cells, _step(evaluations, recipe, "real")))
        return PaperTable(title, list(columns), rows, note, any(measure.printed for _, measure, _ in columns.values()))

    def of_labels(measure: Measure) -> MeasuredColumns:
        return {f"{measure.name} {TITLES[label]}": ("generative", measure, label) for label in INTRINSIC}

    as_printed: MeasuredColumns = {RVIS.name: ("real", RVIS, ""), **of_labels(GIS)}
    against: MeasuredColumns = {RVIS_TRUE.name: ("simulated", RVIS_TRUE, ""), **of_labels(GIS_TRUE)}
    sensitivities: MeasuredColumns = {
        "sensitivity rv": ("simulated", RV_SENSITIVITY, ""),
        **of_labels(SENSITIVITY),
        "leakage rv": ("simulated", RV_LEAKAGE, ""),
        "leakage BERV": ("simulated", BERV_LEAKAGE, ""),
    }
    responses: MeasuredColumns = {
        "response rv": ("simulated", RV_RESPONSE, ""),
        "response BERV": ("simulated", BERV_RESPONSE, ""),
        **of_labels(RESPONSE),
    }
    return [
        table(
            "Table 8: interventions on labels",
            as_printed,
            "RVIS and GIS compare a model with itself, so that a decoder that ignores its input scores a perfect 0: "
            "read them with the next three tables. An unsupervised model has no node of its own for a label.",
        ),
        table(
            "Table 8, against the noise-free simulator",
            against,
            "The same interventions, but what is decoded is compared with what the simulator makes of the new value.",
        ),
        table(
            "Table 8, how much decoders change",
            sensitivities,
            "Sensitivity: mean |change| decoded over mean |change| due (1 faithful, 0 deaf), whatever it is that "
            "changes. Leakage: the share of the telluric change in an intervention on rv, and of the stellar one in an "
            "intervention on BERV (0 faithful).",
        ),
        table(
            "Table 8, how far decoders follow",
            responses,
            "Response: the share of the change due that is decoded (1 faithful, 0 deaf).",
        ),
    ]


def _speed(speeds: Sequence[InferenceSpeed]) -> PaperTable:
    """Table 9 from measurements on a CPU and on a GPU, whichever there are, of what the paper measured: PyTorch's
    layers in fp32."""
    speeds = [speed for speed in speeds if (speed.precision, speed.convolutions) == ("fp32", "torch")]
    columns = ["GPU [ms]", "CPU [ms]", "parameters [M]", "CPU peak [MiB]", "GPU peak [MiB]"]
    rows = []
    for recipe, (gpu_ms, cpu_ms, millions) in TABLE_9.items():
        by_device = {speed.device: speed for speed in speeds if speed.recipe.removeprefix("demo-") == recipe}
        gpu, cpu = by_device.get("cuda"), by_device.get("cpu")
        parameters = next((speed.parameters / 1e6 for speed in (gpu, cpu) if speed), NAN)
        cells = [
            Cell(gpu.ms if gpu else NAN, printed=(gpu_ms, NAN)),
            Cell(cpu.ms if cpu else NAN, printed=(cpu_ms, NAN)),
            Cell(parameters, printed=(millions, NAN)),
            *(Cell(speed.peak_memory_mib if speed else NAN) for speed in (cpu, gpu)),
        ]
        rows.append(Row(LEGENDS[recipe], cells))
    devices = {f"{s.device_name} (grid {s.grid}, batch {s.batch}, {s.threads} thread, torch {s.torch})" for s in speeds}
    here = f"Here: {'; '.join(sorted(devices)) or 'not measured; benchmark.py speed --json RUNS/speed.json does'}."
    note = f"{here} Printed: RTX 3090; one core of a Ryzen 9 3900X, whole HARPS grid. {CONVENTION if speeds else ''}"
    return PaperTable("Table 9: time and memory of inference", columns, rows, note.strip(), of_runs=False)


def _measured(evaluations: Evaluations, recipe: str, kind: SpectraKind, measure: Measure, label: str = "") -> Cell:
    """A measure of a recipe's run beside what the paper prints of it. label: where it is of one."""
    name = label_measure(measure.name, label) if label else measure.name
    score = evaluations.measure(recipe, kind, name)
    return _cell(score, "value", "standard_error", measure.printed_for(recipe, label))


def _cell(score: dict[str, Any], value: str, error: str, printed: Pair) -> Cell:
    """A cell from an entry of scores.json; an empty one is a cell that was not measured."""
    mean, by_spectrum, by_star = (number(score.get(name)) for name in (value, error, f"{error}_stars"))
    return Cell(mean, by_spectrum, by_star, printed, score.get("count", 0), score.get("stars", 0))


def _step(evaluations: Evaluations, recipe: str, kind: SpectraKind) -> int | None:
    scores = evaluations.scores(recipe, kind)
    return scores["step"] if scores else None


def _named(scores: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((score for score in scores if score["name"] == name), {})
