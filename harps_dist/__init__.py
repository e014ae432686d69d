"""harps_dist: train autoencoders and encoders on whole spectrograph archives (Cvrček et al. 2024, distributed)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harps_dist.inference.model import Exported, load

__version__ = "0.2.0"
__all__ = ["Exported", "__version__", "load"]


def __getattr__(name: str) -> object:
    """`load` and `Exported`, imported where they are first asked for."""
    if name not in ("Exported", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harps_dist.inference import model

    return getattr(model, name)
