"""What is drawn anew for a simulated spectrum each time it is seen: the settings.

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harps_dist.frozen import Frozen


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

    @property
    def any(self) -> bool:
        """Whether anything is drawn at all: whether what is off by default is on."""
        return any(getattr(self, name) for name, field in type(self).model_fields.items() if field.default == 0)


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
