"""The page of an evaluation: scores in words, figures, how the run learned, on what it was trained, what it took.

It is made of what lies in the folder of the evaluation alone, so it can be made again at any time. Tested in
tests/integration/test_evaluation_page.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

from harps_dist.evaluation.calibration_report import calibration_rows
from harps_dist.evaluation.captions import LEARNING, caption
from harps_dist.evaluation.figures import known, learning_figure
from harps_dist.evaluation.measures import SpectraKind, measure_of
from harps_dist.evaluation.record import Record, Training, read_records
from harps_dist.evaluation.report import (
    CALIBRATION_LEGEND,
    LABEL_LEGEND,
    SCORES,
    Report,
    group_table,
    label_table,
    measure_table,
    origin_words,
    printed_legend,
    read_scores,
)
from harps_dist.evaluation.templates import PAGE, Picture, page_kind, picture, render, write_text
from harps_dist.spectra.labels import LABEL
from harps_dist.text import Shown

GENERATOR = "harps_dist: evaluation"
EVALUATION_PAGE = page_kind("page of an evaluation", "--out", GENERATOR)
LEARNING_FIGURE = "learning.png"
PARTS = {
    "data": "waiting for the next batch",
    "augment": "velocities, tellurics and noise put on the spectra",
    "forward": "from spectra to loss",
    "backward": "from loss to gradients",
    "optimizer": "from gradients to new weights",
    "step": "forward, backward and optimizer, launched as one CUDA graph",
}
COMM = "gradients on their way between ranks, most of it during backward and not added to it"
RATES = {
    "spectra_per_s": ("spectra a second", "{:,.1f}"),
    "data_wait": ("share of the time that waits for data", "{:.1%}"),
    "peak_memory_gb": ("most memory of the main rank [GiB]", "{:.2f}"),
    "flop_utilisation": ("arithmetic, as share of the measured peak", "{:.1%}"),
    "traffic_over_bandwidth": ("unfused memory traffic over the measured bandwidth", "{:.1%}"),
}
UNKNOWN = "not noted"


class Section(NamedTuple):
    """The scores of a kind and split. anchor: its place on the page."""

    report: Report
    anchor: str
    labels: Shown
    groups: Shown
    measures: Shown
    calibration: tuple[Shown, ...]
    printed: str
    pictures: list[Picture]


def write_page(out: Path) -> None:
    """Draw the learning of the run, and write index.html, from the records, scores and figures in the folder `out`.

    Raises ConfigError where one of them is damaged.
    """
    records = read_records(out)
    record = max(records.values(), key=lambda one: (one.date or "", one.step), default=None)
    training = record.training if record else None
    for ending in (".png", ".pdf"):  # of an evaluation before
        (out / LEARNING_FIGURE).with_suffix(ending).unlink(missing_ok=True)
    if training and training.log:
        learning_figure(out / LEARNING_FIGURE, training.log, list(PARTS))
    write_text(out / PAGE, page(out, records, record))


def page(out: Path, records: Mapping[str, Record], record: Record | None) -> str:
    """The page. record: the newest of the records, which says how the run came about."""
    folders = sorted((path.parent for path in out.glob(f"*/{SCORES}")), key=_place)
    sections = [_section(folder, out) for folder in folders]
    training = record.training if record else None
    learning = out / LEARNING_FIGURE
    return render(
        "harps_dist.evaluation",
        "evaluation.html.j2",
        GENERATOR,
        sections=sections,
        record=record,
        genuine=not any(section.report.origin == "observed-like" for section in sections),
        origins=_origins(record),
        label_legend=LABEL_LEGEND.replace("*", ""),
        calibration_legend=CALIBRATION_LEGEND,
        learning=picture(learning, "Learning", LEARNING, out) if learning.is_file() else None,
        losses=_losses(training.log) if training else None,
        times=_times(training) if training else None,
        rates=_rates(training.log) if training else (),
        data=_data(record) if record else (),
        samples=[(s.kind, s.split, s.origin, f"{s.spectra:,}", f"{s.stars:,}") for s in record.samples]
        if record
        else (),
        settings=list(_flat(training.recipe)) if training else (),
        cost=_cost(record) if record else (),
        code=_code(records),
    )


def _place(folder: Path) -> tuple[str, int, str]:
    """By split, then observed spectra before simulated ones."""
    split, _, kind = folder.name.rpartition("-")
    kinds = get_args(SpectraKind)
    return split, kinds.index(kind) if kind in kinds else len(kinds), kind


def _section(folder: Path, out: Path) -> Section:
    report = Report.of(folder, read_scores(folder))
    header, rows = label_table(report)
    rows = [[name, unit or "1", *row, LABEL[name].meaning if name in LABEL else ""] for name, unit, *row in rows]
    _, measures = measure_table(report)
    figures = {title: folder / path.name for title, path in report.figures.items()}
    pictures = [picture(path, title, caption(report, path), out) for title, path in figures.items() if path.is_file()]
    return Section(
        report=report,
        anchor=folder.name,
        labels=([*header, "what it is"], rows),
        groups=group_table(report),
        measures=(
            ["score", "unit", "value", "± by star", "best", "spectra", "stars", "what it means"],
            [_in_words(*row) for row in measures],
        ),
        calibration=calibration_rows(report.calibrations) if report.calibrations else (),
        printed=printed_legend(report.paper) if report.paper else "",
        pictures=pictures,
    )


def _in_words(name: str, value: str, by_star: str, spectra: str, stars: str, note: str) -> list[str]:
    """A row of `measure_table` with its unit, its best value, and what it means."""
    measure, label = measure_of(name)
    if measure is None:
        return [name, "", value, by_star, "", spectra, stars, note]
    best = "least" if measure.best is None else f"{measure.best:g}"
    of = f"for {LABEL[label].meaning}: " if label in LABEL else ""
    words = f"{of}{measure.meaning}" + (f" ({note})" if note and note not in measure.meaning else "")
    return [name, measure.unit or "1", value, by_star, best, spectra, stars, words]


def _origins(record: Record | None) -> str:
    """Where the real spectra of the release come from, as their files say."""
    if record is None or record.release is None:
        return ""
    release = record.release
    if release.genuine:
        return "genuine: as their files say, a telescope took all of them"
    return origin_words("observed-like", release.not_genuine or "not genuine")


def _losses(log: Sequence[Mapping[str, Any]]) -> Shown:
    """First, least and last value of every loss."""
    names = list(dict.fromkeys(key for line in log for key in line if key.startswith(("loss_", "validation_"))))
    rows = []
    for name in names:
        found = [(line[name], line["step"]) for line in log if known(line, name)]
        if found:
            least, step = min(found)
            kind, _, part = name.partition("_")
            shown = ["training" if kind == "loss" else kind, "weighted sum" if part == "loss" else part]
            rows.append([*shown, f"{found[0][0]:.4g}", f"{least:.4g}", f"{step:,}", f"{found[-1][0]:.4g}"])
    return ["split", "part of the loss", "first", "least", "at step", "last"], rows


def _times(training: Training) -> Shown:
    """What the parts of a step took, as medians over the log."""
    found = {part: _median(training.log, f"ms_{part}") for part in (*PARTS, "comm")}
    rate, batch = _median(training.log, "spectra_per_s"), training.recipe.get("training", {}).get("batch_size")
    whole = 1e3 * batch / rate if rate and batch else None
    rows = [
        [part, f"{found[part]:,.2f}", f"{found[part] / whole:.0%}" if whole else "–", PARTS.get(part, COMM)]
        for part in found
        if found[part]
    ]
    if whole:
        rows.append(["whole step", f"{whole:,.2f}", "100%", "by the clock, logging included"])
    return ["part", "median [ms]", "share", "what it is"], rows


def _rates(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = {name: _median(log, name) for name in RATES}
    if (memory := [line["peak_memory_gb"] for line in log if known(line, "peak_memory_gb")]) and memory:
        found["peak_memory_gb"] = max(memory)
    return [(words, form.format(found[name])) for name, (words, form) in RATES.items() if found[name] is not None]


def _median(log: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line[name] for line in log if known(line, name)]
    return median(values) if values else None


def _data(record: Record) -> list[tuple[str, str]]:
    """What the run was trained on, and evaluated on."""
    trained = record.model.release_digest if record.model else UNKNOWN
    rows = [("trained on the release", trained)]
    if record.training:
        said = record.training.not_genuine
        genuine = UNKNOWN if said is None else said or "genuine, as their files say"
        rows.append(("its spectra called real", genuine))
        rows.append(("began with the weights of", record.training.start_from or "no other run"))
    same = " (the same)" if trained == record.release_digest else ""
    rows.append(("evaluated on the release", f"{record.release_digest}{same}"))
    if release := record.release:
        rows.append(("its spectra called real", _origins(record)))
        rows.append(("its description", release.description or UNKNOWN))
        rows.append(("it grew from", release.parent or "no other release"))
    rows.append(("grid", record.grid or UNKNOWN))
    return rows


def _cost(record: Record) -> list[tuple[str, str]]:
    training, rows = record.training, []
    last = training.log[-1] if training and training.log else {}
    if training:
        rows.append(("time of the training steps", _duration(training.seconds)))
        rows.append(("spectra learned from", f"{last['samples']:,}" if known(last, "samples") else UNKNOWN))
        rows.append(("passes over the training split", f"{last['epoch']:g}" if known(last, "epoch") else UNKNOWN))
        rows.append(("device of the training", ", then ".join(training.devices) or UNKNOWN))
    rows.append(("time of this evaluation", _duration(record.seconds)))
    rows.append(("device of this evaluation", f"{record.ranks} × {record.device}" if record.device else UNKNOWN))
    return rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _code(records: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Which code trained and evaluated, and when."""
    rows: list[tuple[str, str]] = []
    for split, record in records.items():
        rows.append((f"evaluated, {split} split", f"{record.date or UNKNOWN}, step {record.step:,}"))
        rows.append(("by commit", f"{record.git or UNKNOWN}, version {record.version or UNKNOWN}"))
        if model := record.model:
            rows.append(("model", f"{model.name}, {model.checkpoint} checkpoint, id {model.id}"))
            rows.append(("sha256 of its weights", model.weights_sha256))
            rows.append(("digest of its recipe", model.recipe_digest))
            rows.append(("trained by commit", model.git or UNKNOWN))
        if (training := record.training) and training.versions:
            versions = {"python": training.python} | training.versions
            rows.append(("trained with", ", ".join(f"{name} {of}" for name, of in versions.items() if of)))
    return rows


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings as the command line names them, each with its value."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{above}{name}", text
