"""Figures of an evaluation: spectra, residuals, interventions and training curves.

Every function writes one PNG at 150 dpi, whole or not at all, and needs no display. Where the folder is ours, a PDF of
the same name lies beside it, with text as text. Colours are those of Okabe and Ito (2008), which survive colour
blindness.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.evaluation.metrics import mean_with_error
from harps_dist.files import atomic_write
from harps_dist.ownership import OutputKind, png_mark
from harps_dist.spectra.labels import INTRINSIC, LABEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE, VERMILLION, GREY = "#000000", "#0072B2", "#D55E00", "#8C8C8C"
GREEN, PURPLE = "#009E73", "#CC79A7"
DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "lines.linewidth": 0.9,
    "agg.path.chunksize": 10_000,  # a whole spectrum is one path of 327,680 points
    "pdf.fonttype": 42,  # TrueType, which journals and editors of figures take
}
MANY_POINTS = 20_000  # of a panel: more are pixels in a PDF too, or it would take minutes to open
ZOOMS = ((6119.0, 6125.5), (6158.5, 6165.5), (6276.0, 6282.5))  # Ca I 6122, Ca I 6162, head of O2 gamma
ZOOM_NAMES = dict(zip(ZOOMS, ("Ca I 6122", "Ca I 6162", "telluric O$_2$ γ"), strict=True))
LEGEND_ABOVE: dict[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "ncols": 2,
    "borderaxespad": 0.1,
}
WAVELENGTH = "air wavelength [Å]"


def spectrum_figure(
    path: Path,
    wave_aa: np.ndarray,
    observed: np.ndarray,
    reconstructed: np.ndarray,
    title: str,
    zooms: Sequence[tuple[float, float]] = ZOOMS,
) -> None:
    """A spectrum and its reconstruction, the residual beneath, and windows [Å] seen close up.

    wave_aa, observed, reconstructed: (L,); flux over median flux, NaN where invalid. Zooms outside the
    spectrum are left out.
    """
    zooms = [(low, high) for low, high in zooms if wave_aa[0] <= low and high <= wave_aa[-1]]
    rows = 3 if zooms else 2
    with styled_figure(path, 10.0, 2.6 * rows) as figure:
        grid = figure.add_gridspec(rows, max(1, len(zooms)), height_ratios=(2.0, 1.0, 2.0)[:rows])
        top = figure.add_subplot(grid[0, :])
        _overlay(top, wave_aa, observed, reconstructed, linewidth=0.5)
        top.set_title(title, parse_math=False)  # a name from outside may hold a dollar
        top.tick_params(labelbottom=False)
        for line in top.legend(**LEGEND_ABOVE).get_lines():
            line.set_linewidth(2.0)
        beneath = figure.add_subplot(grid[1, :], sharex=top)
        beneath.plot(wave_aa, observed - reconstructed, color=BLUE, linewidth=0.6)
        beneath.axhline(0.0, color=BLACK, linewidth=0.6)
        beneath.set(xlabel=WAVELENGTH, ylabel="obs. − rec.", xlim=(wave_aa[0], wave_aa[-1]))
        for column, (low, high) in enumerate(zooms):
            axes = figure.add_subplot(grid[2, column])
            near = (wave_aa >= low) & (wave_aa <= high)
            _overlay(axes, wave_aa[near], observed[near], reconstructed[near])
            axes.set(title=ZOOM_NAMES.get((low, high), ""), xlabel=WAVELENGTH, xlim=(low, high))
            axes.locator_params(axis="x", nbins=5)
            if column:
                axes.set_ylabel("")
        figure.align_ylabels()


def parts_figure(path: Path, parts: Mapping[str, np.ndarray], title: str) -> None:
    """A reconstruction and its factors beneath each other: the star at rest, the sky where it is seen, the continuum.

    parts: wave_aa [Å], reconstructed, star, sky and continuum, (L,) each, NaN where invalid.
    """
    panels = {"reconstructed": BLACK, "star": BLUE, "sky": VERMILLION, "continuum": GREEN}
    names = {"star": "star at rest", "sky": "sky and\ninstrument"}
    with styled_figure(path, 10.0, 7.5) as figure:
        rows = figure.subplots(len(panels), 1, sharex=True)
        for axes, (name, colour) in zip(rows, panels.items(), strict=True):
            axes.plot(parts["wave_aa"], parts[name] / np.nanmedian(parts[name]), color=colour, linewidth=0.5)
            axes.set_ylabel(names.get(name, name))
        rows[0].set_title(title, parse_math=False)
        rows[-1].set(xlabel=WAVELENGTH, xlim=(parts["wave_aa"][0], parts["wave_aa"][-1]))
        low, high = rows[-1].get_ylim()  # a continuum that hardly bends is shown so
        rows[-1].set_ylim(min(low, 0.98), max(high, 1.02))
        figure.align_ylabels()


def residual_figure(
    path: Path, truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], stars: np.ndarray, data_note: str
) -> None:
    """Predicted - true against true for every label, with the running median where there are enough, and the MAE.

    Of a label that visits to a star have in common, the mean of each star with several visits is drawn too.

    truth, predicted: (n, K) in the labels' units, truth NaN where missing. stars: (n,) whose spectra they are.
    data_note: which spectra these are, printed above. Axes hold the central 98 % with a margin; each panel counts the
    points outside, and the predictions that failed (not finite).
    """
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with styled_figure(path, 3.6 * columns, 0.4 + 3.0 * rows) as figure:
        figure.suptitle(data_note, fontsize=11, parse_math=False)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name, true, guess in zip(panels, names, truth.T, predicted.T, strict=False):
            known = np.isfinite(true)
            _residual_panel(axes, name, true[known], (guess - true)[known], stars[known])
        for axes in panels[len(names) :]:
            axes.remove()
        shared_legend(figure, panels[: len(names)])


def _residual_panel(axes: Axes, name: str, true: np.ndarray, residual: np.ndarray, stars: np.ndarray) -> None:
    label = LABEL[name]
    unit = f" {label.unit}" if label.unit else ""
    bracket = f" [{label.unit}]" if label.unit else ""
    axes.set(xlabel=f"true {label.symbol}{bracket}", ylabel=f"predicted − true{bracket}")
    good = np.isfinite(residual)
    if not good.any():
        axes.set(title="no label to compare", xticks=[], yticks=[])
        return
    failed = f", {np.sum(~good):,} failed" if not good.all() else ""
    true, residual, stars = true[good], residual[good], stars[good]
    x_range, y_range = robust_range(true), robust_range(np.append(residual, 0.0))
    inside = (true >= x_range[0]) & (true <= x_range[1]) & (residual >= y_range[0]) & (residual <= y_range[1])
    crowd = float(np.clip(400.0 / len(true), 0.1, 0.6))
    points: dict[str, Any] = {"alpha": crowd, "markersize": 5, "markeredgewidth": 0}
    axes.plot(true[inside], residual[inside], ".", color=BLUE, rasterized=len(true) > MANY_POINTS, **points)
    if name in INTRINSIC:
        means = means_by_star(true, residual, stars)
        style: dict[str, Any] = {"markersize": 5, "markerfacecolor": "none", "markeredgewidth": 0.8}
        named = "mean of a star's visits" if len(means[0]) else None
        axes.plot(*means, "o", color=BLACK, rasterized=len(means[0]) > MANY_POINTS, label=named, **style)
    axes.axhline(0.0, color=BLACK, linewidth=0.8)
    median = running_median(true, residual)
    axes.plot(*median, color=VERMILLION, linewidth=1.8, label="running median" if median[0] else None)
    mae, _ = mean_with_error(np.abs(residual))
    outside = f", {np.sum(~inside):,} outside" if not inside.all() else ""
    axes.set_title(f"MAE {mae:#.3g}{unit}   n = {len(true):,}{outside}{failed}")
    axes.set(xlim=x_range, ylim=y_range)
    axes.locator_params(axis="x", nbins=5)


def intervention_figure(
    path: Path,
    wave_aa: np.ndarray,
    base: np.ndarray,
    curves: Mapping[float, tuple[np.ndarray, np.ndarray]],
    label: str,
    unit: str,
) -> None:
    """Spectra decoded after interventions on one label, against what they should be; a panel for each.

    wave_aa, base: (L,), a narrow window and the spectrum decoded without intervention. curves: change of
    the label, in `unit`, to (decoded, expected), (L,) each. label: label name.
    """
    symbol = LABEL[label].symbol
    with styled_figure(path, 8.0, 0.9 + 1.5 * len(curves)) as figure:
        panels = figure.subplots(len(curves), 1, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (change, (decoded, expected)) in zip(panels, sorted(curves.items()), strict=True):
            axes.plot(wave_aa, base, color=GREY, linewidth=0.9, label="no intervention")
            axes.plot(wave_aa, expected, color=BLACK, linewidth=1.1, label="expected")
            axes.plot(wave_aa, decoded, color=VERMILLION, linewidth=1.3, linestyle=(0, (4, 2)), label="decoded")
            gap = np.nanmean(np.abs(decoded - expected))
            axes.set_title(f"do({symbol} {_signed(change)} {unit})    mean |decoded − expected| = {gap:.2g}")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
        panels[0].set_xlim(wave_aa[0], wave_aa[-1])
        panels[-1].set_xlabel(WAVELENGTH)
        figure.supylabel("flux / median", fontsize=10)


def curve_figure(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], ylabel: str, kind: OutputKind) -> None:
    """Curves by name, each of (step, loss), on a logarithmic axis of losses. kind: as for `styled_figure`."""
    with styled_figure(path, 6.5, 4.0, kind) as figure:
        axes = figure.subplots()
        for number, (name, points) in enumerate(curves.items()):
            colour = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, GREY)[number % 6]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=name)
        axes.set(xlabel="training step", ylabel=ylabel, yscale="log")
        axes.margins(x=0)
        axes.legend()


def learning_figure(path: Path, lines: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> None:
    """Losses by step above, and beneath what the parts of a step took [ms]. lines: of a log, in the order of steps."""
    steps = [line["step"] for line in lines]
    colours = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, GREY)
    names = list(dict.fromkeys(key for line in lines for key in line if key.startswith(("loss_", "validation_"))))
    kinds = list(dict.fromkeys(name.partition("_")[2] for name in names))
    kinds = [kind for kind in kinds if kind != "loss"]  # of the validation: the weighted sum of the others
    marker = "." if len(lines) < 30 else ""
    with styled_figure(path, 8.0, 5.6) as figure:
        top, beneath = figure.subplots(2, 1, sharex=True)
        for number, kind in enumerate(kinds):
            for prefix, line_style in (("loss", "-"), ("validation", "--")):
                found = [(line["step"], line[f"{prefix}_{kind}"]) for line in lines if known(line, f"{prefix}_{kind}")]
                if found:
                    label = f"{kind}, {'training' if prefix == 'loss' else prefix}"
                    style: dict[str, Any] = {"linestyle": line_style, "color": colours[number % len(colours)]}
                    mark = "o" if prefix == "validation" and len(found) < 30 else marker
                    top.plot(*zip(*found, strict=True), linewidth=1.4, marker=mark, label=label, **style)
        drawn = [value for line in top.get_lines() for value in np.asarray(line.get_ydata(), float)]
        top.set(ylabel="loss", yscale="log" if drawn and min(drawn) > 0 else "linear")
        if drawn:
            top.legend(fontsize=8, ncols=2)
        taken = [[line.get(f"ms_{part}") or 0.0 for line in lines] for part in parts]
        places = [place for place, of_part in enumerate(taken) if any(of_part)]
        if places and len(lines) > 1:
            beneath.stackplot(
                steps, [taken[place] for place in places], labels=[parts[place] for place in places],
                colors=[colours[place % len(colours)] for place in places], alpha=0.75, linewidth=0,
            )  # fmt: skip
            beneath.legend(fontsize=8, ncols=len(places), loc="upper right")
        beneath.set(xlabel="training step", ylabel="time of a step [ms]")
        beneath.margins(x=0)
        figure.align_ylabels()


def known(line: Mapping[str, Any], name: str) -> bool:
    """Whether a line of a log says a number by that name."""
    return isinstance(line.get(name), int | float) and bool(np.isfinite(line[name]))


@contextmanager
def styled_figure(path: Path, width_in: float, height_in: float, kind: OutputKind | None = None) -> Iterator[Figure]:
    """A styled figure, written to `path` when the block ends, and as a PDF beside it where the folder is ours.

    kind: what it says it is, where a user names the file; it is then the only one.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
        yield figure
        with atomic_write(path) as aside:
            figure.savefig(aside, format="png", metadata=png_mark(kind) if kind else None)
        if kind is None:
            with atomic_write(path.with_suffix(".pdf")) as aside:
                figure.savefig(aside, format="pdf", metadata={"CreationDate": None})  # the same bytes at any time


def shared_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend above all panels, each name once; none where nothing has a name."""
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside upper right", ncols=len(handles))


def _overlay(
    axes: Axes, wave_aa: np.ndarray, observed: np.ndarray, reconstructed: np.ndarray, linewidth: float = 0.9
) -> None:
    axes.plot(wave_aa, observed, color=BLACK, linewidth=linewidth, label="observed")
    axes.plot(wave_aa, reconstructed, color=VERMILLION, linewidth=linewidth, label="reconstructed")
    axes.set_ylabel("flux / median")


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "−")


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """The 1st to 99th percentile, widened by a tenth at either end."""
    low, high = np.percentile(values, [1.0, 99.0])
    margin = 0.1 * (high - low) or 0.5 * (abs(high) or 1.0)
    return float(low - margin), float(high + margin)


def means_by_star(x: np.ndarray, y: np.ndarray, stars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y over the spectra of every star that has several, in the order of the stars' names."""
    _, number, visits = np.unique(stars.astype(str), return_inverse=True, return_counts=True)
    several = visits > 1
    mean_x, mean_y = (np.bincount(number, values)[several] / visits[several] for values in (x, y))
    return mean_x, mean_y


def running_median(x: np.ndarray, y: np.ndarray, bins: int = 15) -> tuple[list[float], list[float]]:
    """Medians of x and y in bins of equally many points, at least 8 in each; empty for fewer than four bins."""
    bins = min(bins, len(x) // 8)
    if bins < 4:
        return [], []
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    return [float(np.median(x[part])) for part in parts], [float(np.median(y[part])) for part in parts]
