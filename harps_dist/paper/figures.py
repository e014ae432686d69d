"""The paper's figures from a folder of runs. A model has the same colour and line in all of them.

Tested in tests/unit/test_paper_figures.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.evaluation.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILLION,
    WAVELENGTH,
    robust_range,
    running_median,
    shared_legend,
    styled_figure,
)
from harps_dist.evaluation.measures import GIS, MAE, RVIS
from harps_dist.evaluation.printed import LEGENDS, TABLE_7, TABLE_8
from harps_dist.paper.evaluations import Evaluations
from harps_dist.spectra.labels import EXTRINSIC, INTRINSIC, LABEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harps_dist.data.manifest import Index

ORANGE = "#E69F00"
MODELS = ("beta-vae-cnn-u", "cnn-mix", "ae-real", "ae-mix", "infovae-mix", "cnn-etc")  # Table 4
LINES = ((GREY, ":"), (BLUE, "-"), (GREEN, "--"), (VERMILLION, "-"), (PURPLE, "-."), (ORANGE, "--"))
STYLES = dict(zip(MODELS, LINES, strict=True))
DECODER_STYLES = {"cnn-dec-etc": (BLUE, "-"), "resnet-etc": (VERMILLION, (0, (4, 2)))}
RESIDUAL_MODELS = ("cnn-mix", "ae-real", "ae-mix", "infovae-mix")
SUPERVISED = ("ae-real", "ae-mix", "infovae-mix")
RECONSTRUCTING = tuple(TABLE_8)
BOTTLENECKS = range(7, 21)
LABEL_WEIGHTS = (0.01, 0.1, 1, 10, 20, 100)
DECODER_WINDOW_AA = (6118.0, 6132.0)
WHISKERS = (5, 95)


@dataclass(frozen=True)
class PaperFigure:
    """A figure that was drawn: its number in the paper, what it shows, and where it lies."""

    number: str
    caption: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.stem


def draw_paper_figures(evaluations: Evaluations, index: Index, folder: Path) -> list[PaperFigure]:
    """Draw Figs. 1-8 and D.1 into `folder`, as PNG; one without any run behind it is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    return list(_figures(evaluations, index, folder))


def _figures(evaluations: Evaluations, index: Index, folder: Path) -> Iterator[PaperFigure]:
    rows = index.rows("real")
    if len(rows):
        path = folder / "fig1.png"
        label_distribution(path, *(index[name][rows] for name in ("teff", "logg", "mh")))
        known = np.isfinite(index["teff"][rows] + index["logg"][rows])
        stars = len(np.unique(index["star"][rows][known].astype(str)))
        yield PaperFigure(
            "Fig. 1",
            f"Effective temperature, surface gravity and metallicity of the {known.sum():,} spectra (of {stars:,} "
            "stars) that have the first two; black where the metallicity is not known.",
            path,
        )
    sweep = {
        name: _bottlenecks(evaluations, suffix) for name, suffix in (("u = 0 supervised", ""), ("u free", "-free"))
    }
    sweep = {name: points for name, points in sweep.items() if points}
    if sweep:
        path = folder / "fig2.png"
        bottleneck_curves(path, sweep)
        yield PaperFigure(
            "Fig. 2",
            "RVIS against the size of the bottleneck, seven nodes of which are labels. Autoencoders on mixed data, "
            "with and without supervising the others towards zero on simulated spectra. Bars: standard error.",
            path,
        )
    errors = {
        label: _present({name: np.abs(evaluations.residuals(name, label)) for name in MODELS})
        for label in (*INTRINSIC, *EXTRINSIC)
    }
    if any(errors.values()):
        path = folder / "fig3.png"
        error_densities(path, errors)
        yield PaperFigure(
            "Fig. 3",
            "Distribution of absolute label errors of the models of Table 4 on observed spectra: kernel density with "
            "Scott's bandwidth, drawn between the 1st and the 99th percentile.",
            path,
        )
    residuals = {
        name: {
            label: (evaluations.column(name, "real", f"{label}_true"), evaluations.residuals(name, label))
            for label in INTRINSIC
        }
        for name in RESIDUAL_MODELS
        if evaluations.predictions(name, "real")
    }
    if residuals:
        path = folder / "fig4.png"
        residuals_by_model(path, residuals)
        yield PaperFigure(
            "Fig. 4",
            "Predicted minus true label against the true one on observed spectra; line: running median, where they "
            "suffice for one.",
            path,
        )
    drawn = [name for name in TABLE_7 if evaluations.scores(name, "simulated")]
    spectra = {name: evaluations.table(name, "simulated", "spectrum.parquet") for name in drawn}
    decoded = {name: columns for name, columns in spectra.items() if columns}
    if decoded:
        path = folder / "fig5.png"
        decoder_spectra(path, decoded)
        yield PaperFigure(
            "Fig. 5",
            "A simulated spectrum of the test split and what the decoders make of its labels; below, simulated minus "
            "decoded.",
            path,
        )
    maes = _present({name: evaluations.column(name, "real", MAE.name) for name in RECONSTRUCTING})
    if maes:
        path = folder / "fig6.png"
        reconstruction_densities(path, maes)
        yield PaperFigure(
            "Fig. 6", "Distribution of the reconstruction error MAE' on observed spectra, drawn as in Fig. 3.", path
        )
    scores = _present({name: evaluations.column(name, "real", RVIS.name) for name in RECONSTRUCTING})
    if scores:
        path = folder / "fig7.png"
        score_boxes(path, {RVIS.name: scores}, {RVIS.name: {name: RVIS.printed_for(name)[0] for name in TABLE_8}})
        yield PaperFigure("Fig. 7", f"RVIS on observed spectra. {_BOXES}", path)
    gis = {
        label: _present({name: _of_label(evaluations, name, GIS.name, label) for name in SUPERVISED})
        for label in INTRINSIC
    }
    if any(gis.values()):
        path = folder / "fig8.png"
        printed = {
            f"{GIS.name}, {LABEL[label].symbol}": {name: GIS.printed_for(name, label)[0] for name in SUPERVISED}
            for label in INTRINSIC
        }
        score_boxes(path, dict(zip(printed, gis.values(), strict=True)), printed)
        yield PaperFigure("Fig. 8", f"GIS on the test half of the generative set. {_BOXES}", path)
    weights = _label_weights(evaluations)
    if weights:
        path = folder / "figd1.png"
        label_weight_curves(path, weights)
        yield PaperFigure(
            "Fig. D.1",
            "Label and reconstruction errors on observed spectra against the weight of the label loss; autoencoders on "
            "mixed data.",
            path,
        )


_BOXES = (
    f"Boxes: quartiles and median; whiskers: {WHISKERS[0]}th and {WHISKERS[1]}th percentile; dots: mean; diamonds: "
    "mean printed in the paper (Table 8), of its own data."
)


def _present(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The finite values of each model, of those that have any."""
    finite = {name: array[np.isfinite(array)] for name, array in values.items()}
    return {name: array for name, array in finite.items() if len(array)}


def _of_label(evaluations: Evaluations, recipe: str, name: str, label: str) -> np.ndarray:
    values, varied = (evaluations.column(recipe, "generative", column) for column in (name, "varied"))
    return values[varied == label]


def _bottlenecks(evaluations: Evaluations, suffix: str) -> list[tuple[float, float, float]]:
    points = []
    for size in BOTTLENECKS:
        score = evaluations.measure(f"fig2-b{size}{suffix}", "real", RVIS.name)
        if score.get("value") is not None:
            points.append((float(size), score["value"], score["standard_error"] or 0.0))
    return points


def _label_weights(evaluations: Evaluations) -> list[tuple[float, float, float, float]]:
    points = []
    for weight in LABEL_WEIGHTS:
        scores = evaluations.scores(f"figd1-lab{weight:g}", "real")
        if scores:
            groups = {score["name"]: score["nmae_paper"] for score in scores["groups"]}
            reconstruction = evaluations.measure(f"figd1-lab{weight:g}", "real", MAE.name)["value"]
            points.append((weight, groups["intrinsic"], groups["extrinsic"], reconstruction))
    return points


def scott_density(values: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Kernel density of values (n,) with Scott's bandwidth, between their 1st and 99th percentile (paper, Sect. 3.4).

    Returns x and density, (points,) each; empty for fewer than three values or values that do not differ.
    """
    from scipy.stats import gaussian_kde

    if len(values) < 3 or np.ptp(values) == 0:
        return np.empty(0), np.empty(0)
    x = np.linspace(np.percentile(values, 1), np.percentile(values, 99), points)
    return x, gaussian_kde(values, bw_method="scott")(x)


def label_distribution(path: Path, teff_k: np.ndarray, logg: np.ndarray, mh: np.ndarray) -> None:
    """Fig. 1: log g against Teff, coloured by [M/H], black where that is NaN; histograms of both. (n,) each."""
    known = np.isfinite(teff_k) & np.isfinite(logg)
    teff_k, logg, mh = teff_k[known], logg[known], mh[known]
    with styled_figure(path, 6.5, 5.2) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
        axes = figure.add_subplot(grid[1, 0])
        size = float(np.clip(6000 / max(1, len(teff_k)), 2, 14))
        missing = ~np.isfinite(mh)
        axes.scatter(teff_k[missing], logg[missing], s=size, color=BLACK, linewidths=0, label="[M/H] not known")
        points = axes.scatter(teff_k[~missing], logg[~missing], s=size, c=mh[~missing], cmap="viridis", linewidths=0)
        axes.set(xlabel=f"{LABEL['teff'].symbol} [K]", ylabel=f"{LABEL['logg'].symbol} [dex]")
        axes.invert_xaxis()
        axes.invert_yaxis()
        top = figure.add_subplot(grid[0, 0], sharex=axes)
        top.hist(teff_k, bins=40, color=GREY)
        top.tick_params(labelbottom=False)
        top.set_ylabel("spectra")
        side = figure.add_subplot(grid[1, 1], sharey=axes)
        side.hist(logg, bins=40, orientation="horizontal", color=GREY)
        side.tick_params(labelleft=False)
        side.set_xlabel("spectra")
        if len(mh[~missing]):
            figure.colorbar(points, ax=[top, axes, side], label="[M/H] [dex]", aspect=40, pad=0.02)


def bottleneck_curves(path: Path, curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    """Fig. 2: for each curve (bottleneck, RVIS, its standard error)."""
    with styled_figure(path, 6.0, 3.8) as figure:
        axes = figure.subplots()
        styles = ((VERMILLION, "-", "o"), (BLUE, "--", "s"))
        for (name, points), (colour, line, marker) in zip(curves.items(), styles, strict=False):
            size, rvis, error = np.transpose(points)
            axes.errorbar(
                size, rvis, yerr=error, color=colour, linestyle=line, marker=marker, markersize=4, capsize=2, label=name
            )
        axes.set(xlabel="nodes of the bottleneck", ylabel=f"{RVIS.name} ({RVIS.unit})")
        axes.locator_params(axis="x", integer=True)
        axes.legend()


def error_densities(path: Path, errors: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Fig. 3: label to model to (n,) absolute errors; a panel for each label."""
    with styled_figure(path, 10.0, 6.0) as figure:
        panels = figure.subplots(2, -(-len(errors) // 2)).ravel()
        for axes, (label, models) in zip(panels, errors.items(), strict=True):
            _densities(axes, models)
            unit = f" [{LABEL[label].unit}]" if LABEL[label].unit else ""
            axes.set_xlabel(f"|predicted − true| of {LABEL[label].symbol}{unit}")
        for axes in panels[:: -(-len(errors) // 2)]:
            axes.set_ylabel("density")
        shared_legend(figure, panels)


def reconstruction_densities(path: Path, maes: Mapping[str, np.ndarray]) -> None:
    """Fig. 6: model to (n,) MAE' of its spectra."""
    with styled_figure(path, 6.0, 3.8) as figure:
        axes = figure.subplots()
        _densities(axes, maes)
        axes.set(xlabel=f"{MAE.name} ({MAE.unit})", ylabel="density")
        axes.legend()


def _densities(axes: Axes, models: Mapping[str, np.ndarray]) -> None:
    """Densities of (n,) values by model; a model far off the others does not set the scale."""
    reach = []
    for name, values in models.items():
        x, density = scott_density(values)
        colour, line = STYLES[name]
        axes.plot(x, density, color=colour, linestyle=line, linewidth=1.6, label=LEGENDS[name])
        reach += x[-1:].tolist()
    axes.set_ylim(bottom=0)
    if reach:
        axes.set_xlim(0, min(max(reach), 4 * float(np.median(reach))))
    axes.tick_params(labelleft=False)


def residuals_by_model(path: Path, models: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    """Fig. 4: model to label to true labels and predicted - true, (n,) each; labels in rows, models in columns."""
    labels = list(next(iter(models.values())))
    with styled_figure(path, 2.6 * len(models) + 0.6, 2.3 * len(labels)) as figure:
        panels = figure.subplots(len(labels), len(models), sharex="row", sharey="row", squeeze=False)
        for row, label in zip(panels, labels, strict=True):
            pooled = np.concatenate([of_label[label][1] for of_label in models.values()])
            limits = robust_range(np.append(pooled[np.isfinite(pooled)], 0.0))
            unit = f" [{LABEL[label].unit}]"
            for axes, (name, of_label) in zip(row, models.items(), strict=True):
                true, residual = of_label[label]
                good = np.isfinite(residual)
                crowd = float(np.clip(400.0 / max(1, good.sum()), 0.1, 0.6))
                axes.plot(true[good], residual[good], ".", color=BLUE, alpha=crowd, markersize=5, markeredgewidth=0)
                axes.axhline(0.0, color=BLACK, linewidth=0.8)
                axes.plot(*running_median(true[good], residual[good]), color=VERMILLION, linewidth=1.8)
                axes.set_title(f"{LEGENDS[name]}   n = {good.sum():,}")
                axes.set_ylim(limits)
                axes.locator_params(axis="x", nbins=4)
                axes.set_xlabel(f"true {LABEL[label].symbol}{unit}")
            row[0].set_ylabel(f"predicted − true{unit}")
        figure.align_ylabels()


def decoder_spectra(path: Path, decoded: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Fig. 5: decoder to wave_aa, observed and reconstructed, (L,) each, of the same spectrum."""
    first = next(iter(decoded.values()))
    near = (first["wave_aa"] >= DECODER_WINDOW_AA[0]) & (first["wave_aa"] <= DECODER_WINDOW_AA[1])
    near = near if near.any() else np.ones(len(near), dtype=bool)
    wave_aa, simulated = first["wave_aa"][near], first["observed"][near]
    with styled_figure(path, 8.0, 4.6) as figure:
        top, beneath = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        top.plot(wave_aa, simulated, color=BLACK, linewidth=1.0, label="simulated")
        for name, columns in decoded.items():
            colour, line = DECODER_STYLES[name]
            shape: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 1.2}
            top.plot(wave_aa, columns["reconstructed"][near], label=LEGENDS[name], **shape)
            beneath.plot(wave_aa, simulated - columns["reconstructed"][near], **shape)
        beneath.axhline(0.0, color=BLACK, linewidth=0.6)
        top.set_ylabel("flux / median")
        beneath.set(xlabel=WAVELENGTH, ylabel="sim. − dec.", xlim=(wave_aa[0], wave_aa[-1]))
        figure.legend(*top.get_legend_handles_labels(), loc="outside upper right", ncols=3)
        figure.align_ylabels()


def score_boxes(
    path: Path,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    printed: Mapping[str, Mapping[str, float]],
) -> None:
    """Figs. 7 and 8: title of a panel to model to (n,) scores, and to model to the mean that the paper prints."""
    models = list(dict.fromkeys(name for of_panel in panels.values() for name in of_panel))
    with styled_figure(path, 1.2 + 2.9 * max(1.4, len(panels)), 3.6) as figure:
        axes_of = figure.subplots(1, len(panels), squeeze=False).ravel()
        for axes, (title, scores) in zip(axes_of, panels.items(), strict=True):
            for place, name in enumerate(models):
                if name in scores:
                    colour, _ = STYLES[name]
                    axes.boxplot(
                        scores[name], positions=[place], widths=0.55, whis=WHISKERS, showfliers=False, showmeans=True,
                        patch_artist=True, boxprops={"facecolor": f"{colour}55", "edgecolor": colour},
                        medianprops={"color": BLACK}, whiskerprops={"color": colour}, capprops={"color": colour},
                        meanprops={"marker": "o", "markerfacecolor": BLACK, "markeredgecolor": BLACK, "markersize": 4},
                    )  # fmt: skip
                axes.plot(
                    place, printed[title].get(name, np.nan), "D", color="white", markeredgecolor=BLACK, markersize=5
                )
            axes.set_xticks(range(len(models)), [LEGENDS[name].replace(" ", "\n") for name in models])
            axes.set_ylim(bottom=0)
            axes.set_ylabel(f"{title} (flux / median)")


def label_weight_curves(path: Path, points: Sequence[tuple[float, float, float, float]]) -> None:
    """Fig. D.1: (weight of the label loss, NMAE of intrinsic labels, of extrinsic ones, MAE')."""
    weight, intrinsic, extrinsic, reconstruction = np.transpose(points)
    with styled_figure(path, 6.0, 3.8) as figure:
        axes = figure.subplots()
        axes.plot(weight, intrinsic, "o-", color=BLUE, markersize=4, label="intrinsic labels")
        axes.plot(weight, extrinsic, "s--", color=VERMILLION, markersize=4, label="extrinsic labels")
        axes.set(xscale="log", xlabel=r"weight of the label loss, $\lambda_\mathrm{lab}$", ylabel="NMAE of labels")
        right = axes.twinx()
        right.plot(weight, reconstruction, "^:", color=BLACK, markersize=4, label="reconstruction (right)")
        right.spines["right"].set_visible(True)
        right.set_ylabel(f"{MAE.name} ({MAE.unit})")
        axes.set_ylim(bottom=0)
        right.set_ylim(bottom=0)
        handles = [handle for side in (axes, right) for handle in side.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
