"""HARPS loaders for specutils without an import: they are registered when specutils is imported.

specutils itself looks for loaders in ~/.specutils alone and scans no entry points. What it imports does:
astropy.modeling loads every object that a package lists in the entry points of that name, and takes over those that
are fitters. The entry point of this package names a fitter that astropy already has, so that nothing is added there,
and this module is imported on the way. All it does is to wait for specutils.

Tested in tests/unit/test_specutils.py.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

REGISTERS = "specutils.io.registers"  # once it is there, so are Spectrum and the registry
LOADERS = "harps_dist.formats.specutils_loaders"


class _ThenOurs(Loader):
    """Runs a module as its own loader does, then registers ours."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(LOADERS)


class _Finder(MetaPathFinder):
    """Finds one module, once."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != REGISTERS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenOurs(spec.loader)
        return spec


def wait_for_specutils() -> None:
    """Register the loaders as soon as specutils is imported: now, or when it is."""
    if REGISTERS in sys.modules:
        import_module(LOADERS)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def __getattr__(name: str) -> Any:
    """What the entry point is expected to give: astropy's own fitter of this name."""
    if name == "LinearLSQFitter":
        from astropy.modeling import fitting

        return fitting.LinearLSQFitter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


wait_for_specutils()
