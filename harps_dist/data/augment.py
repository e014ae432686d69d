"""What is drawn anew for a simulated spectrum each time it is seen: the settings.

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from harps_dist.frozen import Frozen

_ALWAYS_SAVED = ("broadening_kms", "line_error", "line_scale_aa", "continuum", "continuum_knots")


class Nuisance(Frozen):
    """What simulated spectra show that their labels do not tell. All zero, as in the paper: nothing."""

    broadening_kms: float = 0.0
    """Largest Gaussian broadening [km/s]; it is drawn uniformly from 0 to this."""
    line_error: float = 0.0
    """Relative standard deviation of the line depths."""
    line_scale_aa: float = 0.5
    """Length over which errors of the line depths are correlated [Å]."""
    continuum: float = 0.0
    """Standard deviation of a smooth ripple that multiplies the continuum."""
    continuum_knots: int = 8
    """Knots of the ripple of the continuum."""
    line_depth: float = Field(0.0, ge=0, le=1)
    """Largest relative error of the line depths, a third of its variance on each of 5, 15 and 50 km/s.
    A spectrum's is drawn uniformly from 0 to this.
    """
    missing_lines: float = Field(0.0, ge=0, le=1)
    """Largest share of pieces of 15 km/s that show no lines; a spectrum's is drawn uniformly from 0 to this."""
    unlisted_lines: float = Field(0.0, ge=0, le=100)
    """Largest number of lines per 1000 km/s that no list has; a spectrum's is drawn uniformly from 0 to this.
    Weak ones are likelier, up to a depth of 63 %.
    """
    rotation_kms: float = Field(0.0, ge=0, le=100)
    """Largest v sin i [km/s] of a rotation profile with a limb darkening of 0.6.
    It is drawn as this times the square of a uniform number, so that small ones are likelier.
    """
    macroturbulence_kms: float = Field(0.0, ge=0, le=30)
    """Largest radial-tangential macroturbulence [km/s], Gray's zeta; small ones are likelier, as of rotation."""
    scattered_light: float = Field(0.0, ge=0, le=0.5)
    """Largest light without lines [medians of the flux] that the extraction left in.
    It is drawn uniformly from minus a third of this, where too much was subtracted, to this.
    """
    cosmic_hits: float = Field(0.0, ge=0, le=10)
    """Largest number of cosmic hits per 1000 pixels; a spectrum's is drawn uniformly from 0 to this.
    They are three pixels wide and up to two medians of the flux high, low ones likelier.
    """
    blanked: float = Field(0.0, ge=0, le=0.9)
    """Largest share of pieces of 64 pixels that are set to the continuum; a spectrum's is drawn uniformly from 0 to
    this. A model that saw some can predict by blanking (`harps-dist predict --samples`).
    """

    lines: str = ""
    """File of `harps-dist lines`: corrections of line depths that were learned from a star.
    They act at rest, in the window that the file covers, and belong to the model spectra that they were learned for.
    A run keeps a copy of it.
    """
    lines_scatter: float = Field(0.3, ge=0, le=3)
    """Standard deviation of what share of these corrections lines get, about 1, each 15 km/s drawn by itself."""

    @property
    def on(self) -> list[str]:
        """Names of what is drawn at all: what is off by default and is on."""
        fields = type(self).model_fields.items()
        return [name for name, field in fields if getattr(self, name) and (field.default == 0 or name == "lines")]

    def only(self, *names: str) -> Nuisance:
        """These settings with all others off."""
        fields = type(self).model_fields
        off: dict[str, Any] = {name: fields[name].default for name in self.on if name not in names}
        return self.model_copy(update=off)

    @model_serializer(mode="wrap")
    def _saved(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Newer fields only where they are on: recipes without them are saved, and known, as they were before.

        The file of `lines` is saved by its name, wherever it lies: a run's copy is named after its content.
        """
        saved = {name: value for name, value in whole(self).items() if value or name in _ALWAYS_SAVED}
        if not self.lines:
            return {name: value for name, value in saved.items() if name != "lines_scatter"}
        return saved | {"lines": Path(self.lines).name, "lines_scatter": self.lines_scatter}


NUISANCES = {
    "none": Nuisance(),
    "plain": Nuisance(broadening_kms=5, line_error=0.1, continuum=0.01),
    "rich": Nuisance(
        broadening_kms=3,
        continuum=0.03,
        continuum_knots=16,
        line_depth=0.4,
        missing_lines=0.06,
        unlisted_lines=6,
        rotation_kms=20,
        macroturbulence_kms=8,
        scattered_light=0.06,
        cosmic_hits=0.3,
        blanked=0.3,
    ),
}
"""Nuisances by name: none, as in the paper; plain, of the demo's recipes; rich, for models of genuine spectra."""


class Augment(Frozen):
    """What is drawn anew for a simulated spectrum each time it is seen."""

    # interventions move by 40 more, and SEDs reach 200 beyond the grid
    rv_kms: float = Field(100.0, ge=0, le=160)
    """Largest radial velocity [km/s]; it is drawn uniformly from minus to plus this (paper: 100)."""
    berv_kms: float = Field(0.0, ge=0, le=160)
    """Largest barycentric velocity that the response is shifted to [km/s].
    It is drawn uniformly from minus to plus this, so that tellurics move as they do on the sky.
    With 0, as in the paper, BERV is not a label of simulated spectra.
    """
    noise: bool = True
    """Add photon and read-out noise (Eq. A.2)."""
    shift: Literal["linear", "cubic"] = "cubic"
    """Interpolation of shifted spectra: linear, as in the paper, or cubic."""
    nuisance: Nuisance = Nuisance()
    """What simulated spectra show that their labels do not tell.
    `--data.augment.nuisance NAME` takes a set of them: none, plain or rich. Fields that are given besides override it.
    """

    @field_validator("nuisance", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return named_nuisance(value) if isinstance(value, str) else value


def named_nuisance(name: str) -> Nuisance:
    """Nuisances by name; raises ValueError with the known names."""
    if name not in NUISANCES:
        raise ValueError(f"there are no nuisances {name!r}; known are {', '.join(NUISANCES)}, or give fields.")
    return NUISANCES[name]
