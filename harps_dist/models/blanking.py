"""Labels by blanking: spectra are read several times, each time with other pieces of them set to the continuum.

Tested in tests/integration/test_blanking.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from harps_dist.errors import ConfigError
from harps_dist.models.refine import Refinement
from harps_dist.spectra.noise import keyed_uniforms
from harps_dist.spectra.nuisance import blank, pieces

if TYPE_CHECKING:
    from harps_dist.models.supervised import SpectrumModel


class Blanked(NamedTuple):
    """Labels over blankings, (batch, K) in their units: median, and variance."""

    labels: Tensor
    variance: Tensor


def check_samples(name: str, share: float, samples: int, refine: Refinement = "nothing") -> None:
    """Raises ConfigError where a model cannot predict by so many blankings; 0, without any, it always can.

    name: of the model. share: of the pieces of a spectrum that its training blanked at most. refine: which labels are
    refined too.
    """
    if samples and not share:
        raise ConfigError(
            f"{name} never saw blanked pieces in training, so that blanking would mislead it. Leave "
            f"--samples out, or train with --data.augment.nuisance rich (or .blanked 0.3) and export again."
        )
    if samples and refine != "nothing":
        raise ConfigError("--samples and --refine give labels two values. Leave one of them out.")
    if samples and samples < 2:
        raise ConfigError(f"a spread takes at least 2 blankings, got --samples {samples}. Give 16, or 0 for none.")


@torch.inference_mode()
def read_blanked(model: SpectrumModel, flux: Tensor, share: float, samples: int) -> Blanked:
    """Read labels of flux (batch, pixel) by so many blankings.

    share: of the pieces of a spectrum that training blanked at most; each blanking takes about half of it. The
    blankings are the same for every spectrum.
    """
    keys = torch.arange(1, samples + 1, device=flux.device)
    hidden = keyed_uniforms(keys, pieces(flux.shape[1])) < share / 2
    labels = torch.stack([model.physical(model.read(blank(flux, one[None])).labels) for one in hidden])
    return Blanked(labels.quantile(0.5, dim=0), labels.var(dim=0))
