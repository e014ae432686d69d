"""What each nuisance does to a simulated spectrum, and what it costs: each alone, on the data path of training.

Tested in tests/unit/test_rich_nuisances.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from harps_dist.data.augment import Augment, Nuisance
from harps_dist.data.batches import EvaluationBatches, RawBatch
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.evaluation.figures import BLACK, GREY, VERMILLION, WAVELENGTH, styled_figure
from harps_dist.ownership import check, claimed, png_file
from harps_dist.text import markdown_table

FIGURE = png_file("figure of nuisances", "--out")
SPECTRA = 32
REPEATS = 5
CLOSE = 600  # pixels of a close-up


class Effect(NamedTuple):
    """What a nuisance alone does. change: rms over spectra and pixels, in medians of the flux. ms: more time for
    SPECTRA spectra than without it. without, with_it: (pixel,) flux of the spectrum that it changes most."""

    name: str
    change: float
    ms: float
    without: np.ndarray
    with_it: np.ndarray


@torch.inference_mode()
def nuisance_effects(release: Release, nuisance: Nuisance, device: torch.device) -> list[Effect]:
    """Every nuisance that is on, alone, on the same simulated spectra of a release without noise, and all together.

    Raises ConfigError where the release has no simulated spectrum.
    """
    rows = np.resize(release.index.rows("simulated"), SPECTRA)
    if not len(release.index.rows("simulated")):
        raise ConfigError(f"{release.location} has no simulated spectrum. Give a release that has some.")
    quiet = Augment(rv_kms=0.0, noise=False)
    raw = EvaluationBatches(release, [rows], quiet, seed=0)[0]
    raw = RawBatch(*(part.to(device) for part in raw))._replace(key=torch.arange(SPECTRA, device=device) + 1)
    plain, without = _observed(release, Nuisance(), raw, device)
    effects = []
    for name in (*nuisance.on, "all"):
        ms, with_it = _observed(release, nuisance if name == "all" else nuisance.only(name), raw, device)
        change = ((with_it - without) ** 2)[:, release.grid.valid].mean(axis=1)
        most = int(change.argmax())
        effects.append(Effect(name, float(change.mean()) ** 0.5, ms - plain, without[most], with_it[most]))
    return effects


def _observed(release: Release, nuisance: Nuisance, raw: RawBatch, device: torch.device) -> tuple[float, np.ndarray]:
    """Milliseconds, the least of some repeats, and flux (spectrum, pixel)."""
    observer = Observer(release.decoding, Augment(rv_kms=0.0, noise=False, nuisance=nuisance), device)
    took, flux = [], observer(raw).flux
    for _ in range(REPEATS):
        begin = time.perf_counter()
        flux = observer(raw).flux
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(1e3 * (time.perf_counter() - begin))
    return min(took), flux.cpu().numpy()


def effect_table(effects: list[Effect]) -> str:
    """Name, change and cost of every nuisance, in Markdown."""
    rows = [[effect.name, f"{effect.change:.4f}", f"{effect.ms:.1f}"] for effect in effects]
    return markdown_table(["nuisance", "rms change [medians]", f"ms more for {SPECTRA} spectra"], rows)


def draw_effects(effects: list[Effect], release: Release, out: Path) -> None:
    """Draw every nuisance alone: its change over the whole spectrum, and flux where that is largest.

    Raises ConfigError where `out` is no PNG, OutputError where something else stands there.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"expected a figure's name that ends in .png, got {out.name!r}.")
    check(out, FIGURE)
    wave_aa = release.grid.wave_aa
    with claimed(out, FIGURE), styled_figure(out, 10.0, 1.5 * len(effects), FIGURE) as figure:
        axes = figure.subplots(len(effects), 2, squeeze=False)
        for (whole, close), effect in zip(axes, effects, strict=True):
            change = effect.with_it - effect.without
            whole.plot(wave_aa, change, color=VERMILLION, linewidth=0.5)
            whole.axhline(0.0, color=GREY, linewidth=0.5)
            whole.set(title=effect.name, ylabel="change", xlim=(wave_aa[0], wave_aa[-1]))
            first = int(np.clip(np.abs(change).argmax() - CLOSE // 2, 0, len(wave_aa) - CLOSE))
            near = slice(first, first + CLOSE)
            close.plot(wave_aa[near], effect.without[near], color=BLACK, label="without")
            close.plot(wave_aa[near], effect.with_it[near], color=VERMILLION, label="with")
            close.set(ylabel="flux / median", xlim=(wave_aa[near][0], wave_aa[near][-1]))
        axes[0, 1].legend(loc="lower right", ncols=2)
        for panel in axes[-1]:
            panel.set_xlabel(WAVELENGTH)
