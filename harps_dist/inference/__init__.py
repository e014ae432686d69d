"""Trained models in use: `load` an export, predict labels of spectra, simulate spectra, `export_run` for others to use.

Names are imported where they are first asked for: `load` needs torch and numpy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harps_dist.inference.export import export_run, exported_run
    from harps_dist.inference.model import Exported, load
    from harps_dist.inference.predict import predict_files
    from harps_dist.inference.predicted import Predicted
    from harps_dist.inference.simulator import Simulator
    from harps_dist.inference.simulators import open_simulator
    from harps_dist.inference.traverse import traverse

__all__ = [
    "Exported",
    "Predicted",
    "Simulator",
    "export_run",
    "exported_run",
    "load",
    "open_simulator",
    "predict_files",
    "traverse",
]
_WHERE = {
    "export": ("export_run", "exported_run"),
    "model": ("Exported", "Predicted", "load"),
    "simulators": ("open_simulator",),
    "predict": ("predict_files",),
    "simulator": ("Simulator",),
    "traverse": ("traverse",),
}


def __getattr__(name: str) -> object:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
