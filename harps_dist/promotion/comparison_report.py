"""The report of a comparison: comparison.md to read, and its figures.

Tested in tests/unit/test_entries.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harps_dist.evaluation.figures import BLACK, BLUE, GREY, VERMILLION, styled_figure
from harps_dist.evaluation.measures import is_coverage
from harps_dist.evaluation.report import Origin, origin_name, origin_words
from harps_dist.files import atomic_write
from harps_dist.promotion.comparison import (
    BYS,
    KINDS,
    POPULATION_WORDS,
    POPULATIONS,
    Comparison,
    Entry,
    Population,
    SpectraKind,
)
from harps_dist.spectra.labels import LABEL, NAMES
from harps_dist.text import format_value, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

REPORT, OVERVIEW, BINS = "comparison.md", "comparison.png", "comparison_bins.png"
BY_WORDS = {"snr": "S/N", "era": "era (fibre change of 2015-05-29)"}
HEADER = ("", "old", "new", "new - old", "95 %", "p", "stars", "spectra", "failed", "")
LEGEND = (
    "Labels: mean absolute error; the other measures are mean values. Every star counts once, its spectra averaged, "
    "and is the independent unit: *95 %* is the interval of new - old over stars (bootstrap, Student's for "
    "fewer than 20), *p* of Wilcoxon's signed-rank test, not adjusted for the number of lines. *failed*: spectra "
    "without a finite prediction, old / new; the mean is then –. All but coverages are better for being smaller. "
    "**worse** and **better** stand where the interval excludes 0."
)


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write comparison.md and the figures into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = _figures(comparison, folder)
    with atomic_write(folder / REPORT) as aside:
        aside.write_text(_markdown(comparison, figures), encoding="utf-8")


def comparison_table(comparison: Comparison, population: Population) -> Table:
    """The label errors of one population, overall, as a rich table."""
    from rich.table import Table

    words = f"{POPULATION_WORDS[population]}; {comparison.split} split of release {comparison.release.digest[:12]}"
    table = Table(title=_title(comparison), caption=words, padding=0)
    shown = [place for place, header in enumerate(HEADER) if header not in ("spectra", "failed")]  # the report has them
    for place in shown:
        textual = HEADER[place] == ""
        table.add_column(HEADER[place], justify="left" if textual else "right", no_wrap=not textual)
    for kind in KINDS:
        for first, entry in enumerate(_of(comparison, kind, population, NAMES)):
            if not first:
                table.add_section()
                table.add_row(_name(comparison, kind))
            row = _row(entry)
            table.add_row(*(row[place] for place in shown))
    return table


def _markdown(comparison: Comparison, figures: dict[str, str]) -> str:
    release = comparison.release
    parts = [f"# {_title(comparison)}", _data(comparison)]
    models = [model for model in (comparison.new, comparison.old) if model]
    rows = [
        [role, model.name, f"`{model.id}`", f"{model.step:,}", f"`{model.release_digest[:12]}`", f"`{model.git}`"]
        for role, model in zip(("new", "old"), models, strict=False)
    ]
    parts += [markdown_table(("", "recipe", "model", "step", "trained on release", "by commit"), rows), LEGEND]
    for kind in KINDS:
        overall = [entry for entry in comparison.entries if entry.kind == kind and entry.by == "overall"]
        if not overall:
            continue
        parts.append(f"## {_sentence(_words(comparison, kind))}")
        for population in POPULATIONS:
            of_population = [entry for entry in overall if entry.population == population]
            parts.append(f"### {POPULATION_WORDS[population].capitalize()}")
            if not of_population:
                parts.append("There are none.")
            elif population == "frozen" and not comparison.find(kind, "new"):
                parts.append("All of these; the release has no new stars.")
            else:
                parts.append(markdown_table(HEADER, [_row(entry) for entry in of_population]))
        for by in BYS[1:]:
            binned = [entry for entry in comparison.find(kind, "all", by) if entry.measure in NAMES]
            if binned:
                rows = [[f"{entry.measure}, {entry.bin}", *_row(entry)[1:]] for entry in binned]
                parts += [f"### All spectra, labels by {BY_WORDS.get(by, by)}", markdown_table(HEADER, rows)]
    if comparison.speed:
        speed = comparison.speed
        spread = f"{speed.ratio:.2f} (quartiles {speed.ratio_q25:.2f}-{speed.ratio_q75:.2f})"
        against = f"{spread} times the old model's {speed.old_ms:.3g} ms" if comparison.old else "no old model"
        parts += [
            "## Speed of inference",
            f"{speed.new_ms:.3g} ms a spectrum, {against}; batches of {speed.batch}, {speed.repeats} turns each, "
            f"{speed.threads} threads, {speed.device}.",
        ]
    if comparison.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in comparison.notes)]
    parts += [f"Manifest sha256 of the release `{release.digest}`, of its parent `{release.parent}`."]
    parts += [f"![{caption}]({name})" for caption, name in figures.items()]
    return "\n\n".join(parts) + "\n"


def _title(comparison: Comparison) -> str:
    new, old = comparison.new, comparison.old
    against = f" against {old.name} {old.id}, step {old.step:,}" if old else ", nothing to compare with"
    return f"{new.name} {new.id}, step {new.step:,}{against}"


def _data(comparison: Comparison) -> str:
    """How many spectra and stars of each kind and population."""
    lines = []
    for kind in KINDS:
        counts = []
        for population in POPULATIONS:
            entries = [entry for entry in comparison.find(kind, population)]
            spectra = max((entry.spectra for entry in entries), default=0)
            stars = max((entry.stars for entry in entries), default=0)
            counts.append(f"{spectra:,} of {stars:,} stars ({population})")
        lines.append(f"- {_words(comparison, kind)}: {', '.join(counts)}")
    return f"**Data: {comparison.split} split of release {comparison.release.digest[:12]}.**\n\n" + "\n".join(lines)


def _origin(comparison: Comparison, kind: SpectraKind) -> Origin:
    return "observed-like" if kind == "real" and not comparison.release.genuine else kind


def _words(comparison: Comparison, kind: SpectraKind) -> str:
    return origin_words(_origin(comparison, kind), comparison.release.not_genuine or "not genuine")


def _name(comparison: Comparison, kind: SpectraKind) -> str:
    return origin_name(_origin(comparison, kind), comparison.release.not_genuine or "not genuine")


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _of(comparison: Comparison, kind: SpectraKind, population: Population, measures: Sequence[str]) -> list[Entry]:
    return [entry for entry in comparison.find(kind, population) if entry.measure in measures]


def _row(entry: Entry) -> list[str]:
    name = f"{entry.measure} [{entry.unit}]" if entry.unit else entry.measure
    error = (entry.high - entry.low) / 4 if math.isfinite(entry.high - entry.low) else abs(entry.difference) / 10
    spread = "" if math.isnan(entry.low) else f"{_signed(entry.low, error)} to {_signed(entry.high, error)}"
    return [
        name,
        format_value(entry.old, error),
        format_value(entry.new, error),
        "–" if math.isnan(entry.difference) else _signed(entry.difference, error),
        spread,
        "" if math.isnan(entry.p_value) else f"{entry.p_value:.2g}",
        f"{entry.stars:,}",
        f"{entry.spectra:,}",
        f"{entry.failed_old} / {entry.failed_new}" if entry.failed_old or entry.failed_new else "",
        entry.note or _tendency(entry),
    ]


def _signed(value: float, error: float) -> str:
    return f"{'+' if value > 0 else ''}{format_value(value, error)}"


def _tendency(entry: Entry) -> str:
    """worse or better, where the interval says so."""
    if is_coverage(entry.measure):
        return ""
    return "**worse**" if entry.low > 0 else "**better**" if entry.high < 0 else ""


def _figures(comparison: Comparison, folder: Path) -> dict[str, str]:
    """Caption to name of the figures that there is something to draw for; old ones of another comparison go."""
    figures = {}
    for name, caption, draw in (
        (OVERVIEW, "Change of the label errors, in % of the old ones, with intervals of 95 %", _overview),
        (BINS, "Change of the label errors by bins, in % of the old ones, all spectra", _bins),
    ):
        (folder / name).unlink(missing_ok=True)
        if draw(comparison, folder / name):
            figures[caption] = name
    return figures


def _overview(comparison: Comparison, path: Path) -> bool:
    """A panel for each kind, a row for each label, a mark for each population."""
    kinds = [kind for kind in KINDS if any(map(_drawn, _of(comparison, kind, "all", NAMES)))]
    if not kinds:
        return False
    with styled_figure(path, 1.0 + 3.4 * len(kinds), 4.2) as figure:
        _say_not_genuine(figure, comparison, kinds)
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            names = [entry.measure for entry in _of(comparison, kind, "all", NAMES)]
            for place, population in enumerate(POPULATIONS):
                entries = [entry for entry in _of(comparison, kind, population, NAMES) if _drawn(entry)]
                rows = [names.index(entry.measure) + 0.22 * (place - 1) for entry in entries]
                if entries:
                    _marks(axes, entries, rows, "os^"[place], population)
            axes.set(title=_origin(comparison, kind), xlabel="new − old [% of old]", ylim=(len(names) - 0.5, -0.5))
            axes.set_yticks(range(len(names)), [LABEL[name].symbol for name in names])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return True


def _say_not_genuine(figure: Figure, comparison: Comparison, kinds: Sequence[SpectraKind]) -> None:
    """Title a figure with what its observed-like spectra are, where there are such."""
    if "real" in kinds and not comparison.release.genuine:
        figure.suptitle(_words(comparison, "real"), fontsize=9, wrap=True)


def _bins(comparison: Comparison, path: Path) -> bool:
    """A row of panels for each kind, a panel for each quantity binned by, a mark for each label and bin."""
    kinds = [kind for kind in KINDS if any(_drawn(entry) for by in BYS[1:] for entry in _binned(comparison, kind, by))]
    if not kinds:
        return False
    with styled_figure(path, 12.0, 0.4 + 3.6 * len(kinds)) as figure:
        _say_not_genuine(figure, comparison, kinds)
        panels = figure.subplots(len(kinds), len(BYS) - 1, squeeze=False)
        for row, kind in zip(panels, kinds, strict=True):
            for axes, by in zip(row, BYS[1:], strict=True):
                entries = [entry for entry in _binned(comparison, kind, by) if _drawn(entry)]
                if not entries:
                    axes.set_axis_off()
                    continue
                places = [f"{entry.bin}  {LABEL[entry.measure].symbol}" for entry in entries]
                _marks(axes, entries, list(range(len(entries))), "o", "all")
                axes.set(
                    title=f"{_origin(comparison, kind)}, by {BY_WORDS.get(by, by)}", ylim=(len(entries) - 0.5, -0.5)
                )
                axes.set_yticks(range(len(entries)), places, fontsize=6)
                axes.set_xlabel("new − old [% of old]")
    return True


def _binned(comparison: Comparison, kind: SpectraKind, by: str) -> list[Entry]:
    entries = comparison.find(kind, "all", by)  # type: ignore[arg-type]
    return [entry for entry in entries if entry.measure in ("teff", "logg", "mh", "rv")]


def _drawn(entry: Entry) -> bool:
    return math.isfinite(entry.difference) and entry.reference > 0


def _marks(axes: Axes, entries: Sequence[Entry], rows: Sequence[float], marker: str, name: str) -> None:
    """Differences in % of the old value, with intervals where there are any; vermillion is worse, blue better."""
    axes.axvline(0.0, color=BLACK, linewidth=0.8)
    axes.plot([], [], marker, color=GREY, label=name)
    for entry, row in zip(entries, rows, strict=True):
        scale = 100 / entry.reference
        colour = VERMILLION if entry.low > 0 else BLUE if entry.high < 0 else GREY
        if math.isfinite(entry.low):
            axes.plot([entry.low * scale, entry.high * scale], [row, row], color=colour, linewidth=1.4)
        axes.plot([entry.difference * scale], [row], marker, color=colour, markersize=4)
