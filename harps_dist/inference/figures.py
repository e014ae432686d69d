"""Figures of simulated spectra and of traversals of the latent nodes.

Tested in tests/unit/test_traverse.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harps_dist.evaluation.figures import BLACK, GREY, WAVELENGTH, ZOOM_NAMES, ZOOMS, styled_figure
from harps_dist.ownership import OutputKind

COLOURS = "cividis"  # of values in order; survives colour blindness


def simulated_figure(
    path: Path, wave_aa: np.ndarray, flux: np.ndarray, title: str, kind: OutputKind | None = None
) -> None:
    """A spectrum, and windows of it seen close up. wave_aa, flux: (pixel,); flux over median, NaN where invalid. kind:
    as for `styled_figure`."""
    zooms = _zooms(wave_aa)
    rows = 2 if zooms else 1
    with styled_figure(path, 10.0, 3.0 * rows, kind) as figure:
        grid = figure.add_gridspec(rows, max(1, len(zooms)))
        top = figure.add_subplot(grid[0, :])
        top.plot(wave_aa, flux, color=BLACK, linewidth=0.5)
        top.set_title(title, wrap=True, fontsize=8, parse_math=False)  # names may hold a dollar sign
        top.set(xlabel=WAVELENGTH, ylabel="flux / median", xlim=(wave_aa[0], wave_aa[-1]))
        for column, (low, high) in enumerate(zooms):
            axes, near = figure.add_subplot(grid[1, column]), (wave_aa >= low) & (wave_aa <= high)
            axes.plot(wave_aa[near], flux[near], color=BLACK)
            axes.set(title=ZOOM_NAMES[low, high], xlabel=WAVELENGTH, xlim=(low, high))
            axes.locator_params(axis="x", nbins=5)


def traversal_figure(
    path: Path,
    wave_aa: np.ndarray,
    base: np.ndarray,
    values: np.ndarray,
    flux: np.ndarray,
    expected: np.ndarray | None,
    axis_label: str,
    title: str,
    kind: OutputKind | None = None,
) -> None:
    """What one node does: spectra coloured by its value, their difference from the base, and windows close up.

    base: (pixel,) decoded before; values: (m,) of the node; flux: (m, pixel) decoded with them. expected: (m, pixel)
    what they should be, where that is known, dotted in the windows. axis_label: of the colour bar. kind: as for
    `styled_figure`.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    zooms = _zooms(wave_aa) or [(wave_aa[0], wave_aa[-1])]
    scale = ScalarMappable(Normalize(values.min(), values.max()), colormaps[COLOURS])
    with styled_figure(path, 10.0, 8.0, kind) as figure:
        grid = figure.add_gridspec(3, len(zooms))
        top = figure.add_subplot(grid[0, :])
        beneath = figure.add_subplot(grid[1, :], sharex=top)
        for value, one in zip(values, flux, strict=True):
            top.plot(wave_aa, one, color=scale.to_rgba(value), linewidth=0.5)
            beneath.plot(wave_aa, one - base, color=scale.to_rgba(value), linewidth=0.5)
        top.set_title(title, wrap=True, fontsize=8, parse_math=False)  # names may hold a dollar sign
        top.set(ylabel="flux / median", xlim=(wave_aa[0], wave_aa[-1]))
        top.tick_params(labelbottom=False)
        beneath.set(xlabel=WAVELENGTH, ylabel="change")
        for column, (low, high) in enumerate(zooms):
            axes, near = figure.add_subplot(grid[2, column]), (wave_aa >= low) & (wave_aa <= high)
            axes.plot(wave_aa[near], base[near], color=GREY, linewidth=1.6)
            for number, (value, one) in enumerate(zip(values, flux, strict=True)):
                axes.plot(wave_aa[near], one[near], color=scale.to_rgba(value))
                if expected is not None:
                    colour = scale.to_rgba(value)
                    axes.plot(wave_aa[near], expected[number][near], color=colour, linestyle=":", linewidth=1.2)
            axes.set(title=ZOOM_NAMES.get((low, high), ""), xlabel=WAVELENGTH, xlim=(low, high))
            axes.locator_params(axis="x", nbins=5)
        figure.colorbar(scale, ax=figure.axes, label=axis_label, fraction=0.03)


def _zooms(wave_aa: np.ndarray) -> list[tuple[float, float]]:
    return [(low, high) for low, high in ZOOMS if wave_aa[0] <= low and high <= wave_aa[-1]]
