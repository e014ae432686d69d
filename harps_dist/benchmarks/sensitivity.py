"""How far each nuisance moves what a network reads: pairs of simulated spectra, with and without it.

Tested in tests/unit/test_rich_nuisances.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from harps_dist.data.augment import Augment, Nuisance
from harps_dist.data.batches import EvaluationBatches, RawBatch, in_batches
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.inference.model import BATCH, Exported
from harps_dist.ownership import json_file, write_json
from harps_dist.spectra.labels import LABEL, NAMES
from harps_dist.text import markdown_table

SENSITIVITY = json_file("sensitivity to nuisances", "--json")
READ = ("teff", "logg", "mh", "rv")
DIGITS = {"teff": 0, "logg": 3, "mh": 3, "rv": 2}
EDGES_K = (5000.0, 6000.0)  # between stars of which nuisances may differ in what they do
SPECTRA = 64  # of the stars between two edges
LEAST = 4  # of them
QUIET = Augment(rv_kms=30.0, berv_kms=15.0, noise=False)


@dataclass(frozen=True)
class Shift:
    """By how much a nuisance moves a label.

    stars: their temperatures, in words. shift: mean over `spectra` pairs; error: its standard deviation; scatter: that
    of single pairs. For the nuisance "none": what the network is off by, without any.
    """

    nuisance: str
    stars: str
    label: str
    spectra: int
    shift: float
    error: float
    scatter: float


@torch.inference_mode()
def sensitivity(
    release: Release, network: Exported, nuisance: Nuisance, edges_k: Sequence[float] = EDGES_K, spectra: int = SPECTRA
) -> list[Shift]:
    """Shifts of labels by every nuisance that is on, alone, and by all together, of simulated spectra without noise.

    A pair has the same star, which may be of any split, velocities and response. edges_k: temperatures [K] between
    which stars are looked at by themselves; spectra: pairs of each. Raises ConfigError where the grids of release and
    network differ, the network reads no labels, or the release has too few simulated spectra.
    """
    network.check_reads()
    if release.grid != network.grid:
        raise ConfigError(
            f"{release.location} has spectra on grid {release.grid.name}, expected that of "
            f"{network.description.name}, {network.grid.name}. Give the release that it was trained on, or one like it."
        )
    columns = {fact.name: number for number, fact in enumerate(network.description.labels) if fact.name in READ}
    read = partial(_read, release, network, list(columns.values()))
    names = [*nuisance.on, "all"]
    found: dict[tuple[str, str], np.ndarray] = {}
    for stars, rows in _stars(release, edges_k, spectra):
        batches = EvaluationBatches(release, in_batches(rows, BATCH), QUIET, seed=0)
        raws = [batches[number] for number in range(len(batches))]
        truths = np.concatenate([raw.labels.numpy() for raw in raws])[:, [NAMES.index(name) for name in columns]]
        alone = read(Nuisance(), raws)
        offs = {"none": alone - truths}
        for name in names:
            offs[name] = read(nuisance if name == "all" else nuisance.only(name), raws) - alone
        found |= {(name, stars): off for name, off in offs.items()}
    return [
        _shift(name, stars, label, off)
        for name in ("none", *names)
        for stars in dict.fromkeys(stars for _, stars in found)
        for label, off in zip(columns, found[name, stars].T, strict=True)
    ]


def _stars(release: Release, edges_k: Sequence[float], most: int) -> Iterator[tuple[str, np.ndarray]]:
    """Temperatures between edges in words, and rows of simulated spectra (`most` or fewer,) of such stars."""
    rows = release.index.rows("simulated")
    teff = release.index.truths[rows, NAMES.index("teff")]
    for low, high in pairwise((-np.inf, *edges_k, np.inf)):
        among = rows[(teff >= low) & (teff < high)]
        if len(among) < LEAST:
            raise ConfigError(
                f"{release.location} has {len(among)} simulated spectra of {low:g} to {high:g} K, expected at least "
                f"{LEAST}. Give a release that has more."
            )
        yield _between(low, high), among[np.linspace(0, len(among) - 1, min(most, len(among))).round().astype(int)]


def _between(low_k: float, high_k: float) -> str:
    if not np.isfinite(low_k):
        return f"below {high_k:.0f} K" if np.isfinite(high_k) else "all"
    return f"{low_k:.0f} to {high_k:.0f} K" if np.isfinite(high_k) else f"from {low_k:.0f} K"


def _read(
    release: Release, network: Exported, columns: list[int], nuisance: Nuisance, raws: Sequence[RawBatch]
) -> np.ndarray:
    """(spectrum, label) of the same spectra with that nuisance; each draws the same whatever the others do."""
    observe = Observer(release.decoding, QUIET.model_copy(update={"nuisance": nuisance}), network.device)
    flux = (observe(RawBatch(*(part.to(network.device) for part in raw))).flux for raw in raws)
    return np.concatenate([network.predict_flux(one.cpu().numpy(), chi2=False).labels for one in flux])[:, columns]


def _shift(name: str, stars: str, label: str, off: np.ndarray) -> Shift:
    scatter = float(off.std(ddof=1))
    return Shift(name, stars, label, len(off), float(off.mean()), scatter / len(off) ** 0.5, scatter)


def sensitivity_tables(shifts: Sequence[Shift]) -> str:
    """A table for each label, a row a nuisance and a column for each kind of star, in Markdown."""
    by = {(shift.label, shift.nuisance, shift.stars): shift for shift in shifts}
    labels, names, stars = (list(dict.fromkeys(one)) for one in zip(*by, strict=True))

    def cell(label: str, name: str, kind: str) -> str:
        shift, digits = by[label, name, kind], DIGITS[label]
        return f"{shift.shift:+.{digits}f} ± {shift.error:.{digits}f}"

    return "\n\n".join(
        markdown_table(
            [f"{label}{f' [{LABEL[label].unit}]' if LABEL[label].unit else ''}", *stars],
            [[name, *(cell(label, name, kind) for kind in stars)] for name in names],
        )
        for label in sorted(labels, key=READ.index)
    )


def write_sensitivity(shifts: Sequence[Shift], command: str, network: Exported, path: Path | None) -> None:
    """Write all shifts as JSON, with the command and the network's id."""
    content = {"command": command, "model": network.description.name, "model_id": network.id}
    write_json(path, SENSITIVITY, content | {"shifts": [asdict(shift) for shift in shifts]})
