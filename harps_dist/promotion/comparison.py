"""What a comparison of two models holds, and how it lies on disk: every figure that a gate may ask for.

Tested in tests/unit/test_entries.py.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

from harps_dist.benchmarks.speed_ratio import SpeedRatio
from harps_dist.errors import ConfigError
from harps_dist.evaluation import measures
from harps_dist.evaluation.measures import SpectraKind, label_measure
from harps_dist.files import atomic_write
from harps_dist.frozen import Frozen, Number
from harps_dist.ownership import home
from harps_dist.runs.identity import ReleaseIdentity, TrainedModel
from harps_dist.sealed import unsealed
from harps_dist.spectra.labels import INTRINSIC, NAMES
from harps_dist.text import NAN, sealed_json

FORMAT, FORMATS = 2, (1, 2)  # the first carries no digest of its content
COMPARISON = "comparison.json"


def _has_comparison(folder: Path) -> bool:
    return {"format", "new", "old", "entries", "conditions"} <= json.loads((folder / COMPARISON).read_text()).keys()


COMPARED = home("comparison", "-o", _has_comparison)
EDGES = {  # what spectra are binned by, a bin holding its lower edge: K, dex, dex, per pixel
    "teff": (4000.0, 5000.0, 6000.0, 7000.0),
    "logg": (4.0, 4.5),
    "mh": (-0.5, 0.0),
    "snr": (50.0, 100.0, 200.0),
}
UNKNOWN = "unknown"

Population = Literal["all", "frozen", "new"]
By = Literal["overall", "teff", "logg", "mh", "snr", "era"]
KINDS: tuple[SpectraKind, ...] = get_args(SpectraKind)
POPULATIONS: tuple[Population, ...] = get_args(Population)
BYS: tuple[By, ...] = get_args(By)
POPULATION_WORDS = {
    "all": "all spectra of the split",
    "frozen": "stars that the parent release held already",
    "new": "stars first seen in this release",
}


def bin_names(by: str) -> tuple[str, ...]:
    """Names of the bins by a quantity, from low to high."""
    if by == "era":
        return ("before", "after")
    edges = EDGES.get(by, ())
    inner = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return (f"below {edges[0]:g}", *inner, f"from {edges[-1]:g}") if edges else ()


# Distances from what a faithful decoder has; of the first there is one for each label.
OF_LABELS = tuple(measure.error_name for measure in measures.MEASURES if measure.of_label)
OF_SPECTRA = tuple(measure.error_name for measure in measures.MEASURES if not measure.of_label)
COVERAGES = tuple(measure.name for measure in measures.COVERAGES)
MEASURES = (
    *NAMES,
    *OF_SPECTRA,
    *(label_measure(score, name) for score in OF_LABELS for name in INTRINSIC),
    *(label_measure(coverage, name) for coverage in COVERAGES for name in NAMES),
)


class Entry(Frozen):
    """One measure of both models on the same spectra.

    measure: a label, whose mean absolute error it is, in `unit`; or another of MEASURES, without unit. Smaller is
    better, but for coverages, which should be near their level. bin: of what `by` names; "" overall. old, new: every
    star counts once, its spectra averaged; NaN where a prediction failed. by_spectrum_old, by_spectrum_new: every
    spectrum counts once, as in reports. reference: `old` on the spectra that both models predicted, which relative
    limits refer to; on these too, difference: new - old, the mean over stars; low, high: its 95 % interval, NaN for too
    few stars; p_value: of a paired test over stars, not adjusted for the number of entries. failed_old, failed_new:
    spectra that have a truth and no finite prediction.
    """

    kind: SpectraKind
    population: Population
    by: By = "overall"
    bin: str = ""
    measure: str
    unit: str = ""
    old: Number = NAN
    new: Number = NAN
    reference: Number = NAN
    difference: Number = NAN
    low: Number = NAN
    high: Number = NAN
    p_value: Number = NAN
    by_spectrum_old: Number = NAN
    by_spectrum_new: Number = NAN
    spectra: int
    stars: int
    failed_old: int = 0
    failed_new: int = 0
    note: str = ""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        where = f", {self.by} {self.bin}" if self.by != "overall" else ""
        return f"{self.kind}, {self.population}{where}, {self.measure}"


class Surprise(Frozen):
    """The old model's mean absolute error of a label, every star counting once: on stars that it was tested on before,
    and on what has arrived since it was trained; p_value: that the latter is not larger."""

    label: str
    unit: str = ""
    frozen: Number
    arrived: Number
    p_value: Number
    stars_frozen: int
    stars_arrived: int


class Comparison(Frozen):
    """A new model against an old one on the same spectra of one release; old is None for the first of its kind.

    conditions: what was drawn for simulated spectra, the same for both: augmentation and seed. git: commit of the code
    that compared.
    """

    format: int = FORMAT
    new: TrainedModel
    old: TrainedModel | None
    release: ReleaseIdentity
    split: str
    conditions: dict[str, object]
    entries: tuple[Entry, ...]
    surprises: tuple[Surprise, ...] = ()
    speed: SpeedRatio | None
    notes: tuple[str, ...] = ()
    git: str | None = None

    def find(self, kind: SpectraKind, population: Population, by: By = "overall") -> list[Entry]:
        """Entries of one kind and population, overall or by bins."""
        return [entry for entry in self.entries if (entry.kind, entry.population, entry.by) == (kind, population, by)]

    def write(self, folder: Path) -> None:
        """Write comparison.json, whole or not at all."""
        with atomic_write(folder / COMPARISON) as aside:
            aside.write_text(sealed_json(self.model_dump()), encoding="utf-8")


def read_comparison(folder: Path) -> Comparison:
    """What `Comparison.write` wrote; raises ConfigError where it is missing, damaged or of another format."""
    path = folder / COMPARISON
    again = "Compare the models again with launch/compare.py."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} is no comparison: it has no {COMPARISON}. {again}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}. {again}") from None
    form = content.get("format") if isinstance(content, dict) else None
    if form not in FORMATS:
        raise ConfigError(f"{path} has format {form}, this code knows {FORMAT}. {again}")
    try:
        return Comparison.model_validate(unsealed(content, required=form > 1))
    except ValueError as error:  # pydantic's is one
        raise ConfigError(f"{path} is damaged: {error}. {again}") from None
