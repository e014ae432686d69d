"""A figure of a fit: the spectrum, what fits it, and what is left.

Tested in tests/integration/test_fitting.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harps_dist.evaluation.figures import BLACK, GREY, VERMILLION, WAVELENGTH, ZOOM_NAMES, ZOOMS, styled_figure


def fit_figure(
    path: Path, wave_aa: np.ndarray, flux: np.ndarray, model: np.ndarray, clipped: np.ndarray, title: str
) -> None:
    """Spectrum, model and residual, whole and close up, with the clipped pixels marked.

    wave_aa, flux, model: (pixel,), flux in medians, NaN where there is none. clipped: (pixel,) bool.
    """
    zooms = [(low, high) for low, high in ZOOMS if wave_aa[0] <= low and high <= wave_aa[-1]] or [
        (wave_aa[0], wave_aa[-1])
    ]
    left = flux - model
    reach = 1.2 * float(np.nanpercentile(np.abs(left), 99))
    with styled_figure(path, 10.0, 8.0) as figure:
        grid = figure.add_gridspec(4, len(zooms), height_ratios=[3, 1.2, 3, 1.2])
        places = [(grid[0, :], grid[1, :], (wave_aa[0], wave_aa[-1]), title)]
        places += [(grid[2, n], grid[3, n], zoom, ZOOM_NAMES.get(zoom, "")) for n, zoom in enumerate(zooms)]
        for above, below, (low, high), name in places:
            top = figure.add_subplot(above)
            beneath = figure.add_subplot(below, sharex=top)
            near = (wave_aa >= low) & (wave_aa <= high)
            width = 0.5 if near.all() else 1.0
            top.plot(wave_aa[near], flux[near], color=BLACK, linewidth=width, label="observed")
            top.plot(wave_aa[near], model[near], color=VERMILLION, linewidth=width, label="fitted")
            beneath.axhline(0.0, color=GREY, linewidth=0.6)
            beneath.plot(wave_aa[near], left[near], color=BLACK, linewidth=width)
            lost = near & clipped
            beneath.plot(
                wave_aa[lost], left[lost].clip(-reach, reach), ".", color=VERMILLION, markersize=2, label="clipped"
            )
            top.set_title(name, wrap=True, fontsize=8, parse_math=not near.all())  # names may hold a dollar sign
            top.set(xlim=(low, high))
            top.tick_params(labelbottom=False)
            beneath.set(xlabel=WAVELENGTH, ylim=(-reach, reach))
            beneath.locator_params(axis="x", nbins=10 if near.all() else 5)
            if low in (wave_aa[0], zooms[0][0]):
                top.set_ylabel("flux / median")
                beneath.set_ylabel("residual")
            if near.all():
                top.legend(loc="lower left", ncols=2)
                beneath.legend(loc="lower left")
