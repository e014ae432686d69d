"""Corrections of line depths that were learned from one star: a small .npz file that model spectra are changed by.

A line's depth is ln(continuum / flux). A correction multiplies the depth of lines that model spectra have, and adds
depth where they have none.

Tested in tests/unit/test_line_corrections.py.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.formats.records import Reason, Refusal, RefusedError, refusing, require
from harps_dist.formats.sed import read_npz
from harps_dist.frozen import Frozen
from harps_dist.intake import named
from harps_dist.ownership import KEY, OutputKind, check, claimed
from harps_dist.spectra.quantities import expected, in_range
from harps_dist.spectra.spline import cubic_spline
from harps_dist.text import cleaned, printable

ENDING = ".npz"
KNOT_AA = 0.02  # between knots: a line of HARPS has three over its half width
UNIT = 1e-4  # of the whole numbers that a file holds
LEAST_FACTOR, MOST_FACTOR = -0.95, 2.0  # what a weak line would need beyond is added instead
MOST_ADDED = 3.0
SHALLOW = 0.02  # depth at which half of a correction multiplies it and half is added
_KIND = "line corrections"
_ABOUT, _ARRAYS = "about", ("factor", "added")


class About(Frozen):
    """Where corrections come from.

    star: as the files call it. teff [K], logg, mh, vmic [km/s]: labels that were held. files: data products that they
    were learned from. models: id of the model spectra that they correct. wave0_aa, step_aa: first knot and distance of
    knots [Å], in air and at rest.
    """

    format: Literal[1] = 1
    star: str
    teff: float
    logg: float
    mh: float
    vmic: float
    files: tuple[str, ...]
    models: str
    wave0_aa: float = Field(gt=0)
    step_aa: float = Field(gt=0, le=1)
    medium: Literal["air"] = "air"
    frame: Literal["rest"] = "rest"
    made_by: str


@dataclass(frozen=True, eq=False)
class LineCorrections:
    """Corrections of model spectra at knots.

    factor: (knot,) int16 in `UNIT`, relative change of the depths of lines, 2500 makes them 25 % deeper. added: (knot,)
    int16 in `UNIT`, depth that is added. about: where they come from.
    """

    about: About
    factor: np.ndarray
    added: np.ndarray

    @classmethod
    def of(cls, about: About, deeper: np.ndarray, depth: np.ndarray) -> LineCorrections:
        """Corrections that make a star's model lines of `depth` (knot,) deeper by `deeper` (knot,).

        Lines deeper than `SHALLOW` are multiplied, for the change is theirs and follows them to other stars; where
        there is hardly a line, depth is added.
        """
        factor = (deeper * depth / (depth**2 + SHALLOW**2)).clip(LEAST_FACTOR, MOST_FACTOR)
        added = (deeper - factor * depth).clip(-MOST_ADDED, MOST_ADDED)
        return cls(about, *(np.round(values / UNIT).astype(np.int16) for values in (factor, added)))

    @cached_property
    def id(self) -> str:
        """sha256 of all that they are, 16 digits."""
        content = self.about.model_dump_json().encode() + self.factor.tobytes() + self.added.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def wave_aa(self) -> np.ndarray:
        """(knot,) air wavelengths at rest [Å]."""
        return self.about.wave0_aa + self.about.step_aa * np.arange(self.factor.size)

    def at(self, wave_aa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factor and added depth, (n,) float64 each, at rest wavelengths (n,) [Å]; 0 beyond the knots."""
        knots = self.wave_aa
        inside = (wave_aa >= knots[0] - 1e-6) & (wave_aa <= knots[-1] + 1e-6)  # of rounding
        values = cubic_spline(knots, UNIT * np.stack([self.factor, self.added], axis=1), wave_aa[inside])
        found = np.zeros((2, len(wave_aa)))
        found[:, inside] = values.T
        return found[0], found[1]


def read_corrections(path: Path, option: str) -> LineCorrections:
    """Read a file that `write_corrections` wrote. option: by which it was given, for messages.

    Raises ConfigError where there is none, or it is damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{option}: there is no file {printable(path)}. `harps-dist lines` writes one.")
    found = refusing(printable(path.name), Reason.UNREADABLE, lambda: _read(path))
    if isinstance(found, Refusal):
        raise ConfigError(
            f"{option}: {printable(path)} holds no line corrections: {found.detail}. Give a file that `harps-dist "
            f"lines` wrote, or write it anew."
        )
    return found


def _read(path: Path) -> LineCorrections:
    arrays = read_npz(path, (_ABOUT, *_ARRAYS))
    try:
        content = json.loads(str(arrays[_ABOUT]))
        require(content.pop(KEY, None) == _KIND, Reason.MISSING_FIELD, f"it does not say that it holds {_KIND}")
        about = About.model_validate(content)
    except (AttributeError, TypeError, ValueError, ValidationError) as error:
        raise RefusedError(Reason.MISSING_FIELD, f"what it says of itself cannot be read: {named(error)}") from None
    factor, added = (arrays[name] for name in _ARRAYS)
    shapes = factor.ndim == 1 and factor.shape == added.shape and factor.size >= 4
    detail = f"factor has the shape {factor.shape} and added {added.shape}, expected as many knots, and at least 4"
    require(shapes, Reason.LENGTH_MISMATCH, detail)
    detail = f"factor is {factor.dtype} and added {added.dtype}, expected int16"
    require(factor.dtype == added.dtype == np.int16, Reason.MISSING_FIELD, detail)
    bounds = UNIT * factor.min() >= LEAST_FACTOR - UNIT and UNIT * factor.max() <= MOST_FACTOR + UNIT
    detail = f"factors of {UNIT * factor.min():g}..{UNIT * factor.max():g}, expected {LEAST_FACTOR:g}..{MOST_FACTOR:g}"
    require(bounds, Reason.OUT_OF_RANGE, detail)
    for name in ("teff", "logg", "mh", "vmic"):
        value = getattr(about, name)
        require(in_range(name, value), Reason.OUT_OF_RANGE, f"{name} is {value:g}, expected {expected(name)}")
    corrections = LineCorrections(about, factor, added)
    ends = corrections.wave_aa[[0, -1]]
    detail = f"expected wavelengths of {expected('sed_wave')}, got {ends[0]:.6g}..{ends[1]:.6g}"
    require(all(in_range("sed_wave", end) for end in ends), Reason.WRONG_UNIT, detail)
    return corrections


def _is_ours(path: Path) -> bool:
    about: Any = json.loads(str(read_npz(path, (_ABOUT,))[_ABOUT]))
    return about[KEY] == _KIND


CORRECTIONS = OutputKind("file of line corrections", "-o", _is_ours)


def check_corrections(path: Path) -> None:
    """Raises ConfigError or OutputError where no corrections can be written; to be called before any work."""
    if path.suffix.lower() != ENDING:
        raise ConfigError(f"expected a name that ends in {ENDING}, got {cleaned(path.name, 100)!r}.")
    check(path, CORRECTIONS)


def write_corrections(path: Path, corrections: LineCorrections) -> None:
    """Write corrections, whole or not at all; raises as `check_corrections`."""
    check_corrections(path)
    about = json.dumps({KEY: _KIND} | corrections.about.model_dump(mode="json"), ensure_ascii=False)
    with claimed(path, CORRECTIONS), atomic_write(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, about=np.array(about), factor=corrections.factor, added=corrections.added)
