"""What is drawn anew for a simulated spectrum each time it is seen: the settings.

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harps_dist.frozen import Frozen


class Nuisance(Frozen):
    """What simulated spectra show that their labels do not tell. All zero, as in the paper: nothing.

    broadening_kms: Gaussian broadening drawn uniformly from 0 to this. line_error: relative standard deviation
    of the line depths, correlated over line_scale_aa. continuum: standard deviation of a smooth multiplicative
    ripple with continuum_knots knots.
    """

    broadening_kms: float = 0.0
    line_error: float = 0.0
    line_scale_aa: float = 0.5
    continuum: float = 0.0
    continuum_knots: int = 8

    @property
    def any(self) -> bool:
        """Whether anything is drawn at all: whether what is off by default is on."""
        return any(getattr(self, name) for name, field in type(self).model_fields.items() if field.default == 0)


class Augment(Frozen):
    """What is drawn anew for a simulated spectrum each time it is seen.

    rv_kms: radial velocity, uniform within +- this (paper: 100). berv_kms: 0 as the paper, which leaves BERV
    unlabelled; else the response is shifted to a BERV uniform within +- this, so that tellurics move as they
    do on the sky. noise: photon and read-out noise of Eq. A.2. shift: "linear" as the paper, or "cubic".
    """

    rv_kms: float = Field(100.0, ge=0, le=160)  # interventions move by 40 more, and SEDs reach 200 beyond the grid
    berv_kms: float = Field(0.0, ge=0, le=160)
    noise: bool = True
    shift: Literal["linear", "cubic"] = "cubic"
    nuisance: Nuisance = Nuisance()
