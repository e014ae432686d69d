"""Model spectra of stars at rest, as a fit asks for them: log flux of labels, in torch, on any device.

Tested in tests/unit/test_fit.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from harps_dist.errors import ConfigError
from harps_dist.formats.line_corrections import LineCorrections, read_corrections
from harps_dist.formats.sed import MODEL_ERRORS, VMIC_RANGE_KMS, LowRank, SedGrid
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.instrument import HARPS
from harps_dist.spectra.nuisance import change_lines
from harps_dist.spectra.spline import cubic_spline

LABELS = ("teff", "logg", "mh", "vmic")
CORRECTED_ERRORS = {"teff": 80.0, "logg": 0.2, "mh": 0.05}  # MODEL_ERRORS with line depths learned from another star


class StellarModel(Protocol):
    """What a fit needs of a stellar model.

    id: tells models of one class apart. labels: names from `spectra.labels`. grid: lattice pixels that it fills, wider
    than the spectra by their velocities. ranges: least and largest value of every label. errors: by how much labels of
    genuine stars are off that such models are fitted to, in all spectra of a star alike.
    """

    id: str
    labels: tuple[str, ...]
    grid: Grid
    ranges: dict[str, tuple[float, float]]
    errors: dict[str, float]

    def log_flux(self, labels: Tensor) -> Tensor:
        """Log flux per wavelength, (batch, grid.length), any constant added, of labels (batch, len(labels))."""


class PackagedModel:
    """The packaged grid of `formats.sed.SedGrid`: teff, logg, mh and vmic over 5985-6323 Å."""

    labels: tuple[str, ...] = LABELS
    errors = MODEL_ERRORS

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """dtype: of the log flux."""
        grid = SedGrid.packaged()
        self.id = grid.id
        start = round((grid.wave_aa[0] - HARPS.origin_aa) / HARPS.step_aa)
        self.grid = Grid("packaged", start, grid.wave_aa.size)
        self.ranges = dict(zip(LABELS, (*grid.ranges.values(), VMIC_RANGE_KMS), strict=True))
        self._vmic_kms = grid.vmic_kms
        self._models = [_Axis(axis, _cubic_pieces(axis), device, dtype) for axis in grid.models.axes]
        self._calmer = [_Axis(axis, _straight_pieces(axis), device, dtype) for axis in grid.calmer.axes]

        def on_device(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device)

        def nodes(table: LowRank) -> Tensor:
            return on_device(table.coefficients.reshape(-1, table.coefficients.shape[-1]))

        self._model_nodes, self._calmer_nodes = nodes(grid.models), nodes(grid.calmer)
        self._components = on_device(np.concatenate([grid.models.components, grid.calmer.components]))
        self._mean = on_device(grid.mean.astype(np.float64) - float(grid.mean.mean()))

    def log_flux(self, labels: Tensor) -> Tensor:
        """Log flux per wavelength, a constant subtracted, (batch, pixel), of labels (batch, 4) within `ranges`."""
        labels = labels.to(self._mean)
        models = _node_weights(self._models, labels) @ self._model_nodes
        calmer = _node_weights(self._calmer, labels) @ self._calmer_nodes * (self._vmic_kms - labels[:, 3:])
        return torch.addmm(self._mean, torch.cat([models, calmer], dim=1), self._components)


class CorrectedModel:
    """Model spectra of which the depths of lines are corrected: `StellarModel`.

    model: of stars. factor, added: (pixel,) on its grid, what `formats.line_corrections` says. id: of the corrections;
    '' stands for none that a file holds. lines: the file's corrections, where there are such.
    """

    lines: LineCorrections | None = None
    errors = CORRECTED_ERRORS

    def __init__(self, model: StellarModel, factor: np.ndarray, added: np.ndarray, id: str = ""):
        self.model, self.id = model, f"{model.id} {id}"
        self.labels, self.grid, self.ranges = model.labels, model.grid, model.ranges
        self._factor, self._added = torch.as_tensor(1 + factor), torch.as_tensor(added)

    @classmethod
    def of(cls, model: StellarModel, lines: LineCorrections, option: str = "--lines") -> CorrectedModel:
        """A model with the corrections of a file; raises ConfigError where they are of other model spectra."""
        if lines.about.models != model.id:
            raise ConfigError(
                f"{option}: the corrections of {lines.about.star} were learned for model spectra {lines.about.models}, "
                f"expected those that are fitted, {model.id}. Learn them anew with `harps-dist lines`."
            )
        corrected = cls(model, *lines.at(model.grid.wave_aa), lines.id)
        corrected.lines = lines
        return corrected

    def log_flux(self, labels: Tensor) -> Tensor:
        """Log flux per wavelength, (batch, pixel), any constant added, of labels (batch, label)."""
        flux = torch.exp(self.model.log_flux(labels))
        return torch.log(change_lines(flux, self._factor.to(flux), self._added.to(flux)))


def with_lines(model: StellarModel | None, lines: Path | None, device: torch.device | str = "cpu") -> StellarModel:
    """A model, the packaged one by default, with the corrections of a file where one is given; raises ConfigError where
    it cannot be read or belongs to other model spectra."""
    model = model if model is not None else PackagedModel(device)
    return model if lines is None else CorrectedModel.of(model, read_corrections(lines, "--lines"))


class _Axis:
    """Piecewise polynomials that weigh the nodes of an axis; held beyond its ends."""

    def __init__(self, nodes: np.ndarray, pieces: np.ndarray, device: torch.device | str, dtype: torch.dtype):
        """nodes: (n,). pieces: (n - 1, power, n) of the share of the way through an interval."""
        self._nodes = torch.as_tensor(nodes, dtype=dtype, device=device)
        self._pieces = torch.as_tensor(pieces, dtype=dtype, device=device)

    def weights(self, values: Tensor) -> Tensor:
        """(batch, n) weights of the nodes at values (batch,)."""
        values = values.clamp(self._nodes[0], self._nodes[-1])
        left = (torch.searchsorted(self._nodes, values.contiguous(), right=True) - 1).clamp(0, len(self._nodes) - 2)
        share = (values - self._nodes[left]) / (self._nodes[left + 1] - self._nodes[left])
        powers = torch.stack([share**power for power in range(self._pieces.shape[1])], dim=1)
        return torch.einsum("bp,bpn->bn", powers, self._pieces[left])


def _node_weights(axes: list[_Axis], labels: Tensor) -> Tensor:
    """(batch, nodes of all axes) weights at labels (batch, axis or more)."""
    first, second, third = (axis.weights(labels[:, number]) for number, axis in enumerate(axes))
    return torch.einsum("bi,bj,bk->bijk", first, second, third).flatten(1)


def _cubic_pieces(nodes: np.ndarray) -> np.ndarray:
    """Polynomials (n - 1, 4, n) of the splines that `SedGrid` interpolates by, each 1 at a node and 0 at the others."""
    share = np.arange(4) / 3
    at = nodes[:-1, None] + np.diff(nodes)[:, None] * share
    values = cubic_spline(nodes, np.eye(nodes.size), at.ravel()).reshape(*at.shape, nodes.size)
    return np.linalg.solve(np.vander(share, increasing=True), values)


def _straight_pieces(nodes: np.ndarray) -> np.ndarray:
    """Polynomials (n - 1, 2, n) of straight lines between nodes."""
    first, second = np.eye(nodes.size)[:-1], np.eye(nodes.size)[1:]
    return np.stack([first, second - first], axis=1)
