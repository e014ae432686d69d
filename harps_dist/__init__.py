"""harps_dist: train autoencoders and encoders on whole spectrograph archives (Cvrček et al. 2024, distributed)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harps_dist.data.samples import open_release
    from harps_dist.formats.archive import Archive
    from harps_dist.inference.model import Exported, load

__version__ = "0.2.0"
__all__ = ["Archive", "Exported", "__version__", "load", "open_release"]
_WHERE = {
    "Archive": "harps_dist.formats.archive",
    "Exported": "harps_dist.inference.model",
    "load": "harps_dist.inference.model",
    "open_release": "harps_dist.data.samples",
}


def __getattr__(name: str) -> object:
    """What is imported where it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
