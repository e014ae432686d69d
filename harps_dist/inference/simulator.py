"""Labels in, spectra out: the decoder of a trained model, with its labels in physical units.

simulator = open_simulator("runs/ae-mix")                 # of harps_dist.inference.simulators
simulated = simulator.simulate({"teff": 5800, "logg": 4.4, "rv": [-20, 20]}, snr=100)
simulated.as_spectrum()                                   # as specutils has it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harps_dist.data.keyed import key_of
from harps_dist.errors import ConfigError
from harps_dist.formats.units import plain
from harps_dist.inference.simulated import Request, Simulated, noise_sigma, relative_velocity
from harps_dist.models.physical_model import PhysicalSemiSupervised
from harps_dist.models.supervised import SpectrumModel
from harps_dist.spectra.doppler import bspline_coefficients, resample_shifted
from harps_dist.spectra.grid import Grid, fill_invalid
from harps_dist.spectra.labels import LABEL
from harps_dist.spectra.noise import keyed_normals
from harps_dist.spectra.quantities import QUANTITIES, expected, in_range_each

PRIOR, NOISE = 0x7072696F72, 0x6E6F697365  # purposes of what is drawn for a spectrum
BATCH = 16

RvBy = Literal["node", "shift"]
Part = Literal["spectrum", "star", "sky", "continuum"]


class Simulator:
    """A trained model that draws spectra.

    model: with a decoder, in evaluation mode. grid: of its spectra. name, id: of the model, id the sha256 of its
    weights. ranges: least and largest value of every label that training saw or drew. offset, scale: (input,) of the
    nodes: label = offset + scale · node. part: what is drawn, the spectrum or one of its factors: the star at rest, the
    sky where it is seen, or the continuum.
    Raises ConfigError for a model without a decoder, or for a part where the decoder knows none.
    """

    def __init__(
        self,
        model: SpectrumModel,
        grid: Grid,
        name: str,
        id: str,
        ranges: Mapping[str, tuple[float, float]],
        part: Part = "spectrum",
    ):
        if not model.draws:
            raise ConfigError(
                f"{name} is an encoder: it reads labels off spectra and draws none. Give an autoencoder or a decoder, "
                f"such as the recipes ae-mix and resnet-etc."
            )
        if part != "spectrum" and not isinstance(model, PhysicalSemiSupervised):
            raise ConfigError(
                f"{name} draws whole spectra and does not know the {part}. Give a model with physics, such "
                f"as the recipe ae-phys, or leave --part out."
            )
        self.model, self.grid, self.id, self.part = model, grid, id, part
        self.name = name if part == "spectrum" else f"{name} ({part} alone)"
        self.labels = model.labels
        self.unknown = model.inputs - len(model.labels)
        self.has_prior = model.variational
        mean, std = model.label_mean.tolist(), model.label_std.tolist()
        self.offset = np.array(mean + [0.0] * self.unknown)
        self.scale = np.array(std + [1.0] * self.unknown)
        self.mean = dict(zip(self.labels, mean, strict=True))
        self.ranges = {
            label: ranges[label] if np.isfinite(ranges.get(label, (np.nan,))).all() else _usual_range(label, *scale)
            for label, scale in zip(self.labels, zip(mean, std, strict=True), strict=True)
        }

    @property
    def nodes(self) -> tuple[str, ...]:
        """What can be given: labels, and unknown factors u1, u2, …"""
        return (*self.labels, *(f"u{number + 1}" for number in range(self.unknown)))

    def request(
        self,
        labels: Mapping[str, Any] | None = None,
        unknown: str | Sequence[float] | np.ndarray = "zero",
        snr: Any = None,
        seed: Any = 0,
        names: Any = "",
        extrapolate: bool = False,
    ) -> Request:
        """What is to be simulated, checked; values may be one for all spectra or one each.

        labels: by name, in the units of `spectra.labels`; those not given are the training mean. unknown: "zero",
        "prior" (standard normal draws, for variational models) or values, (u,) or (n, u). seed: of what is drawn; one
        number counts up from row to row. extrapolate: take labels beyond the range that training saw, and note them.
        Raises ConfigError for unknown labels, values that are not finite, or shapes that do not fit.
        """
        labels, notes = dict(labels or {}), []
        if strange := [name for name in labels if name not in self.labels]:
            known = f"its labels are {', '.join(self.labels)}" if self.labels else "it has no labels"
            raise ConfigError(f"{self.name} has no node for {', '.join(strange)}: {known}. Leave it out.")
        given = {
            name: np.atleast_1d(plain(value, LABEL[name].unit, name).astype(np.float64))
            for name, value in labels.items()
        }
        ratio = np.atleast_1d(plain(np.inf if snr is None else snr, "", "snr").astype(np.float64))
        seeds, called = _whole(seed), np.atleast_1d(np.asarray(names, object))
        factors: str | np.ndarray = (
            unknown if isinstance(unknown, str) else np.atleast_2d(np.asarray(unknown, np.float64))
        )
        lengths = {name: len(value) for name, value in given.items()} | {"snr": len(ratio), "seed": len(seeds)}
        lengths |= {"names": len(called)} | ({} if isinstance(factors, str) else {"unknown": len(factors)})
        count = max(lengths.values())
        if wrong := {name: length for name, length in lengths.items() if length not in (1, count)}:
            raise ConfigError(f"expected one value for all {count} spectra or one each, got {wrong}.")
        table = np.empty((count, len(self.labels)))
        for column, name in enumerate(self.labels):
            table[:, column] = given.get(name, self.mean[name])
        if missing := [f"{name} {_said(name, self.mean[name])}" for name in self.labels if name not in given]:
            notes.append(f"not given, so that the training mean is taken: {', '.join(missing)}.")
        _require_finite(table, self.labels)
        for column, name in enumerate(self.labels):
            _require_possible(name, name, table[:, column])
        outside = self._outside(table)
        if outside and not extrapolate:
            raise ConfigError(f"{' '.join(outside)} Give values inside, or extrapolate (--extrapolate).")
        notes += outside
        self._check_limits(table)
        notes += self._beyond_model_spectra(table)
        possible = (ratio > 0) & (in_range_each("snr", ratio) | np.isposinf(ratio))  # infinite: no noise
        if not possible.all():
            row = int(np.argmin(possible))
            raise ConfigError(
                f"row {row + 1}: a signal-to-noise ratio of {ratio[row]:g} cannot be. Give one above 0 and up to "
                f"{QUANTITIES['snr'].high:g}, or none."
            )
        seeds = seeds + np.arange(count) if len(seeds) == 1 else seeds
        return Request(
            labels=table,
            unknown=self._unknown_factors(factors, seeds),
            snr=np.broadcast_to(ratio, count),
            seed=seeds,
            names=np.broadcast_to(called, count),
            notes=tuple(notes),
        )

    def simulate(
        self, labels: Mapping[str, Any] | None = None, rv_by: RvBy = "node", batch_size: int = BATCH, **options: Any
    ) -> Simulated:
        """Simulate spectra; labels and options as for `request`, rv_by as for `draw`."""
        return self.draw(self.request(labels, **options), rv_by, batch_size)

    def draw(self, request: Request, rv_by: RvBy = "node", batch_size: int = BATCH) -> Simulated:
        """The spectra of a request.

        rv_by: "node" sets the model's node for the radial velocity. "shift" leaves it at the training mean and shifts
        what is decoded: exact for stellar lines, but tellurics and the response of the instrument move along, and the
        pixels that nothing moves into are NaN. Of a briefly trained demo-ae-mix the shift came nearer to the noise-free
        simulator: mean error 0.0422 of the median flux against 0.0431, and of the change that 10 km/s should make it
        made 6 % against 3 %, both little, for it draws blurred lines.
        Raises ConfigError for a model without that label.
        """
        parts = [self._draw(request.rows(slice(k, k + batch_size)), rv_by) for k in range(0, len(request), batch_size)]
        flux, sigma = (np.concatenate(of_parts) for of_parts in zip(*parts, strict=True))
        return Simulated(self.grid.wave_aa, flux, sigma, request, self.labels, self.name, self.id, self.grid.instrument)

    def encode(self, flux: np.ndarray) -> np.ndarray:
        """(n, pixel) standardised flux to (n, nodes) latent means. Raises ConfigError for a decoder alone."""
        if not self.model.nodes:
            raise ConfigError(f"{self.name} is a decoder alone and reads no spectra. Give an autoencoder.")
        with torch.inference_mode():
            latent = self.model.encode(torch.from_numpy(np.ascontiguousarray(flux, np.float32)).to(self._device))
        return latent.mean.cpu().numpy().astype(np.float64)

    def decode(self, nodes: np.ndarray) -> np.ndarray:
        """(n, input) normalised nodes to (n, pixel) float32 flux, NaN where the spectrograph has no pixel."""
        with torch.inference_mode():
            given = torch.from_numpy(np.asarray(nodes, np.float32)).to(self._device)
            if isinstance(self.model, PhysicalSemiSupervised) and self.part != "spectrum":
                flux = self.model.parts(given)[self.part].cpu().numpy()
            else:
                flux = self.model.decode(given).cpu().numpy()
        flux[:, ~self.grid.valid] = np.nan
        return flux

    def normalised(self, labels: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """(n, input) float64 nodes of labels in their units and unknown factors."""
        return (np.concatenate([labels, unknown], axis=1) - self.offset) / self.scale

    def physical(self, nodes: np.ndarray) -> np.ndarray:
        """(…, input) labels in their units and unknown factors; undoes `normalised`."""
        return nodes * self.scale + self.offset

    def shifted(self, flux: np.ndarray, velocity_kms: np.ndarray) -> np.ndarray:
        """(n, pixel) float32 flux of `decode` moved by velocities (n,), receding positive; NaN where nothing comes
        from."""
        velocity = torch.from_numpy(np.asarray(velocity_kms, np.float64))
        filled = torch.from_numpy(fill_invalid(flux, self.grid))
        moved = resample_shifted(bspline_coefficients(filled), velocity, self.grid, self.grid)
        whole = torch.from_numpy(self.grid.valid.astype(np.float32)).expand(len(flux), -1)
        whole = resample_shifted(whole, velocity, self.grid, self.grid, "linear")
        return np.where((whole > 0.999).numpy() & self.grid.valid, moved.numpy(), np.nan).astype(np.float32)

    def _draw(self, request: Request, rv_by: RvBy) -> tuple[np.ndarray, np.ndarray]:
        labels, velocity_kms = request.labels, None
        if rv_by == "shift":
            if "rv" not in self.labels:
                raise ConfigError(f"{self.name} has no radial velocity to shift by: its labels are {self.labels}.")
            column, start = self.labels.index("rv"), self.mean["rv"]
            velocity_kms = relative_velocity(labels[:, column], start)
            labels = labels.copy()
            labels[:, column] = start
        flux = self.decode(self.normalised(labels, request.unknown))
        if velocity_kms is not None:
            flux = self.shifted(flux, velocity_kms)
        sigma = noise_sigma(flux, request.snr)
        if np.isfinite(request.snr).any():
            drawn = keyed_normals(_keys(request.seed), self.grid.length, NOISE).numpy()
            flux = np.where(np.isfinite(sigma), flux + sigma * drawn, flux)
        return flux, sigma

    def _outside(self, table: np.ndarray) -> list[str]:
        """A sentence on every label that has values beyond its range."""
        found = []
        for column, name in enumerate(self.labels):
            low, high = self.ranges[name]
            slack = 1e-6 * (high - low)  # a range that was written down is met by its own ends
            rows = np.flatnonzero((table[:, column] < low - slack) | (table[:, column] > high + slack))
            if len(rows):
                value, others = _said(name, table[rows[0], column]), len(rows) - 1
                where = f"row {rows[0] + 1}" + (f" and {others} more" if others else "")
                found.append(f"{name} = {value} ({where}) lies outside {_said(name, low, high)}, what training saw.")
        return found

    def _check_limits(self, table: np.ndarray) -> None:
        """Raises ConfigError for values beyond which nothing else is drawn, whatever is extrapolated."""
        for name, (low, high) in self.model.limits.items():
            values = table[:, self.labels.index(name)]
            rows = np.flatnonzero((values < low) | (values > high))
            if len(rows):
                raise ConfigError(
                    f"row {rows[0] + 1}: {name} = {_said(name, values[rows[0]])} lies outside "
                    f"{_said(name, low, high)}, beyond which {self.name} draws nothing else. Give values inside."
                )

    def _beyond_model_spectra(self, table: np.ndarray) -> list[str]:
        """A sentence on every label with values beyond those of the model spectra that are drawn from."""
        found = []
        for name, (low, high) in self.model.model_spectra.items():
            if name not in self.labels:
                continue
            values, slack = table[:, self.labels.index(name)], 1e-6 * (high - low)
            rows = np.flatnonzero((values < low - slack) | (values > high + slack))
            if len(rows):
                found.append(
                    f"{name} = {_said(name, values[rows[0]])} (row {rows[0] + 1}) lies outside "
                    f"{_said(name, low, high)}, which the model spectra hold that are drawn from: beyond, the star is "
                    f"that of the nearest, and what training learned besides."
                )
        return found

    def _unknown_factors(self, unknown: str | np.ndarray, seeds: np.ndarray) -> np.ndarray:
        count = len(seeds)
        if isinstance(unknown, np.ndarray):
            if unknown.shape[1] != self.unknown:
                raise ConfigError(
                    f"{self.name} has {self.unknown} unknown factors a spectrum, got values for {unknown.shape[1]}."
                )
            _require_finite(unknown, self.nodes[len(self.labels) :])
            for column, name in enumerate(self.nodes[len(self.labels) :]):
                _require_possible(name, "unknown", unknown[:, column])
            return np.broadcast_to(unknown, (count, self.unknown))
        if unknown == "zero":
            return np.zeros((count, self.unknown))
        if unknown != "prior":
            raise ConfigError(f"unknown factors are 'zero', drawn from the 'prior', or numbers; got {unknown!r}.")
        if not self.has_prior:
            raise ConfigError(
                f"{self.name} has no prior to draw unknown factors from: it is not variational. Take zero or numbers."
            )
        return keyed_normals(_keys(seeds), self.unknown, PRIOR).numpy().astype(np.float64)

    @property
    def _device(self) -> torch.device:
        return self.model.label_mean.device


def _keys(seeds: np.ndarray) -> Tensor:
    return torch.tensor([key_of("simulate", int(seed)) >> 1 for seed in seeds])


def _usual_range(label: str, mean: float, std: float) -> tuple[float, float]:
    """What training saw, where a run does not say: the paper's range, else that of uniform draws."""
    low, high = LABEL[label].training
    return (low, high) if np.isfinite([low, high]).all() else (mean - 3**0.5 * std, mean + 3**0.5 * std)


def _said(name: str, *values: float) -> str:
    numbers = "..".join(f"{value:.6g}" for value in values)
    return f"{numbers} {LABEL[name].unit}".rstrip()


def _whole(seed: Any) -> np.ndarray:
    """(n,) int64 seeds; raises ConfigError where they are none."""
    seeds = np.atleast_1d(np.asarray(seed))
    if seeds.dtype.kind not in "iu" or not in_range_each("seed", seeds.astype(np.float64)).all():
        raise ConfigError(f"seeds are whole numbers of {expected('seed')}, got {str(seed)[:40]}. Give others.")
    return seeds.astype(np.int64)


def _require_possible(name: str, quantity: str, values: np.ndarray) -> None:
    """Even beyond what training saw, a label is one that there can be."""
    possible = in_range_each(quantity, values)
    if not possible.all():
        row = int(np.argmin(possible))
        raise ConfigError(f"row {row + 1}: {name} = {values[row]:.6g} cannot be, expected {expected(quantity)}.")


def _require_finite(table: np.ndarray, names: Sequence[str]) -> None:
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise ConfigError(
            f"row {row + 1}: {names[column]} is {table[row, column]}. Give a number, or leave it out for all rows to "
            f"get {'the training mean' if names[column] in LABEL else 'zeros'}."
        )
