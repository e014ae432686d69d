"""What is measured besides errors of labels: names, units, the best value, meaning, what the paper printed.

Reports, comparisons, gates, tables and figures take the names from here. Tested in tests/unit/test_measures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from harps_dist.evaluation.metrics import clustered_error, mean_with_error
from harps_dist.evaluation.printed import TABLE_7, TABLE_8, Pair
from harps_dist.spectra.labels import INTRINSIC
from harps_dist.text import NAN

SpectraKind = Literal["real", "simulated", "generative"]  # what a model can be tried on
FLUX = "flux / median"
LEVELS = (0.68, 0.90, 0.95)  # of coverages


class Measure(NamedTuple):
    """A score that every spectrum has one value of.

    best: the value of a faithful model, None where the least is best. of_label: whether there is one for each label.
    printed: the paper's value and its error, by recipe and label, "" where it is of no label; see `printed_for`.
    """

    name: str
    unit: str
    best: float | None
    meaning: str
    of_label: bool = False
    printed: Mapping[tuple[str, str], Pair] = {}

    @property
    def error_name(self) -> str:
        """What a comparison calls the distance from the best value."""
        if self.best is None:
            return self.name
        return f"|{self.name} - {self.best:g}|" if self.best else f"|{self.name}|"

    def error(self, values: np.ndarray) -> np.ndarray:
        """The distance of values (n,) from the best one."""
        return values if self.best is None else np.abs(values - self.best)

    def printed_for(self, recipe: str, label: str = "") -> Pair:
        """What the paper prints of a recipe's model, and the error printed with it; NaN where it prints none."""
        return self.printed.get((recipe, label), (NAN, NAN))


def label_measure(measure: str, label: str) -> str:
    """Name of a measure as it is of one label, such as "GIS teff"."""
    return f"{measure} {label}"


def is_coverage(name: str) -> bool:
    """Whether a measure is a coverage, of a label or not: best near its level, neither least nor largest."""
    return "coverage" in name


def _of_labels() -> dict[tuple[str, str], Pair]:
    return {
        (recipe, name): (value, NAN)
        for recipe, (_, *values) in TABLE_8.items()
        for name, value in zip(INTRINSIC, values, strict=True)
    }


MAE = Measure(
    "MAE'",
    FLUX,
    None,
    "mean absolute error of the reconstruction over valid pixels (Eq. 14)",
)
MAE_TRUE = Measure(
    "MAE'-true", FLUX, None, "mean absolute error of the reconstruction against the noise-free simulator"
)
COMPARABLE = Measure(
    "MAE' (paper-comparable)",
    FLUX,
    None,
    "MAE' as the public code takes it, masked zeros averaged in",
    printed={(recipe, ""): pair for recipe, pair in TABLE_7.items()},
)
SED_ERROR = Measure(
    "SED error",
    FLUX,
    None,
    "rms error of what true labels draw of a star at rest, against its model spectrum",
)
RVIS = Measure(
    "RVIS",
    FLUX,
    None,
    "what a decoder draws after an intervention on the radial velocity, against its reconstruction shifted (Eq. 16)",
    printed={(recipe, ""): (values[0], NAN) for recipe, values in TABLE_8.items()},
)
RVIS_TRUE = Measure("RVIS-true", FLUX, None, "what it draws after that intervention, against the simulator")
RV_SENSITIVITY = Measure("RV sensitivity", "", 1.0, "mean change drawn after it, over the change due")
RV_RESPONSE = Measure("do(rv) response", "", 1.0, "share of the change due to do(rv) that is drawn")
RV_LEAKAGE = Measure("do(rv) leakage", "", 0.0, "share of the change due to do(berv) that do(rv) draws")
BERV_RESPONSE = Measure("do(berv) response", "", 1.0, "share of the change due to do(berv) that is drawn")
BERV_LEAKAGE = Measure("do(berv) leakage", "", 0.0, "share of the change due to do(rv) that do(berv) draws")
GIS = Measure(
    "GIS",
    FLUX,
    None,
    "what a decoder draws after an intervention on a label, against the spectrum that has the value (Eq. 17)",
    of_label=True,
    printed=_of_labels(),
)
GIS_TRUE = Measure("GIS-true", FLUX, None, "what it draws after that, against the simulator", of_label=True)
SENSITIVITY = Measure("sensitivity", "", 1.0, "mean change drawn after it, over the change due", of_label=True)
RESPONSE = Measure("response", "", 1.0, "share of the change due to it that is drawn", of_label=True)

RESPONSES = {"rv": (RV_RESPONSE, RV_LEAKAGE), "berv": (BERV_RESPONSE, BERV_LEAKAGE)}
MEASURES = (
    *(MAE, MAE_TRUE, SED_ERROR, RVIS, RVIS_TRUE, RV_SENSITIVITY, RV_RESPONSE, RV_LEAKAGE, BERV_RESPONSE, BERV_LEAKAGE),
    *(GIS, GIS_TRUE, SENSITIVITY, RESPONSE),
)
MEASURE = {measure.name: measure for measure in MEASURES}  # what predictions hold a column of


def coverage_name(level: float, conformal: bool = False) -> str:
    """Name of the coverage of a level, such as 0.68; conformal: after correction. See `label_measure`."""
    return f"{'conformal ' if conformal else ''}coverage {level:.0%}"


COVERAGES = tuple(
    Measure(
        coverage_name(level, conformal),
        "",
        level,
        f"share of a label's truths within its central {level:.0%} interval{', corrected' if conformal else ''}",
        of_label=True,
    )
    for conformal in (False, True)
    for level in LEVELS
)
_NAMED = MEASURE | {measure.name: measure for measure in (COMPARABLE, *COVERAGES)}


def measure_of(name: str) -> tuple[Measure | None, str]:
    """The measure that a score's name says, and the label that it is of, "" where it is of none; None where unknown."""
    if name in _NAMED:
        return _NAMED[name], ""
    base, _, label = name.rpartition(" ")
    measure = _NAMED.get(base)
    return (measure, label) if measure and measure.of_label else (None, "")


@dataclass(frozen=True)
class Measured:
    """The mean of a measure with its error, by spectrum and by star.

    count, stars: how many spectra, of how many stars.
    """

    name: str
    value: float
    standard_error: float
    standard_error_stars: float
    count: int
    stars: int
    note: str = ""

    @classmethod
    def of(cls, name: str, values: np.ndarray, stars: np.ndarray, note: str = "") -> Measured:
        """The mean of one value a spectrum, (n,). stars: whose spectra they are, (n,)."""
        by_star = clustered_error(values, stars)
        return cls(name, *mean_with_error(values), by_star, len(values), len(np.unique(stars)), note)
