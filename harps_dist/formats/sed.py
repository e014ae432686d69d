"""Stellar spectral energy distributions (SEDs): the packaged model grid, and SED files.

An SED is a surface flux at rest, in air, one star's labels to one file: a FITS table of one row (WAVE, FLUX,
header TEFF LOGG MH VMIC), or a node of a synthesised library (.npz).

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harps_dist.errors import Interrupted
from harps_dist.files import atomic_write
from harps_dist.formats.hdus import BEGINS, open_hdus
from harps_dist.formats.headers import Header
from harps_dist.formats.records import Reason, Refusal, RefusedError, refusing, require
from harps_dist.intake import named, read_file
from harps_dist.spectra.exact import exp
from harps_dist.spectra.quantities import expected, in_range, number
from harps_dist.spectra.spline import cubic_spline, linear, repeated_spline
from harps_dist.text import cleaned, printable

FLUX_UNIT = "erg/s/cm**2/Angstrom"
MAX_BYTES = 128 * 2**20
MAX_MEMBERS = 1000  # of a .npz
FLUX_RATIO = (1e-10, 1e5)  # of an SED to its median; in lines and in the ultraviolet there is little
LABELS = ("teff", "logg", "mh", "vmic")
NODE_LABELS = ("teff_k", "logg", "mh", "vmic_kms")
ASSET = Path(__file__).parent / "assets" / "sed_grid_5985_6323.npz"
VMIC_ASSET = Path(__file__).parent / "assets" / "sed_vmic_5985_6323.npz"
# By how much labels of genuine K dwarfs were off to which such model spectra were fitted (`benchmark genuine`).
MODEL_ERRORS = {"teff": 150.0, "logg": 0.1, "mh": 0.16}
VMIC_RANGE_KMS = (0.5, 2.5)  # over which log flux changes linearly with microturbulence


@dataclass(frozen=True, eq=False)
class SedRecord:
    """One SED and its labels; a label that is not known is NaN."""

    sed_id: str  # file stem
    teff_k: float
    logg: float  # dex, cm/s²
    mh: float  # dex
    vmic_kms: float
    wave_aa: np.ndarray  # (n,) float64, air, at rest, strictly increasing
    flux: np.ndarray  # (n,) float32, positive; surface flux in FLUX_UNIT unless the file says otherwise
    source: str  # file name


def interpolate_sed(wave_aa: np.ndarray, flux: np.ndarray, at_aa: np.ndarray) -> np.ndarray:
    """Cubic-spline values of an SED at any wavelengths, float64; held at its end values beyond its ends."""
    return repeated_spline(wave_aa, flux, np.clip(at_aa, wave_aa[0], wave_aa[-1]))


class LowRank(NamedTuple):
    """Quantities of every pixel at the nodes of a grid: coefficients · components, as they are packaged."""

    axes: tuple[np.ndarray, np.ndarray, np.ndarray]  # teff_k, logg, mh
    coefficients: np.ndarray  # (teff, logg, mh, component) float32
    components: np.ndarray  # (component, pixels) float64

    @classmethod
    def of(cls, asset: Mapping[str, np.ndarray]) -> LowRank:
        components = asset["components_i16"] * asset["component_scale"].astype(np.float64)[:, None]
        return cls((asset["teff_k"], asset["logg"], asset["mh"]), asset["coefficients"], components)

    def add(self, coefficients: np.ndarray, total: np.ndarray) -> None:
        """Add the components with coefficients (component,) to total (pixels,), one after another."""
        for coefficient, component in zip(coefficients, self.components, strict=True):
            total += coefficient * component


@dataclass(frozen=True, eq=False)
class SedGrid:
    """340 ATLAS9 models, synthesised at R = 115,000 and compressed to principal components of log flux.

    log flux = mean + coefficients · components, the coefficients interpolated between the models by splines. The
    compression costs 2.4e-4 rms. That is for a microturbulence of `vmic_kms`; what one km/s less of it changes was
    synthesised at 63 nodes up to 7000 K and is interpolated by straight lines, held above. Its compression costs
    2.2e-4 rms.
    """

    wave_aa: np.ndarray  # (pixels,) float64, air
    vmic_kms: float  # of the models
    models: LowRank
    mean: np.ndarray  # (pixels,) float32, of log flux
    calmer: LowRank  # change of log flux per km/s of microturbulence below vmic_kms

    @classmethod
    @cache
    def packaged(cls) -> SedGrid:
        """The packaged 5985-6323 Å; the same object every time."""
        with np.load(ASSET) as asset, np.load(VMIC_ASSET) as calmer:
            models = LowRank.of(asset)
            wave_aa = float(asset["wave0_aa"]) + float(asset["step_aa"]) * np.arange(models.components.shape[1])
            return cls(wave_aa, float(asset["vmic_kms"]), models, asset["log_flux_mean"], LowRank.of(calmer))

    @cached_property
    def id(self) -> str:
        """Says which model spectra these are: 12 digits of a sha256 of the packaged files."""
        return hashlib.sha256(ASSET.read_bytes() + VMIC_ASSET.read_bytes()).hexdigest()[:12]

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest teff_k, logg and mh of the grid; microturbulence may lie in `VMIC_RANGE_KMS`."""
        return {
            name: (float(axis[0]), float(axis[-1]))
            for name, axis in zip(("teff_k", "logg", "mh"), self.models.axes, strict=True)
        }

    def sample(self, teff_k: ArrayLike, logg: ArrayLike, mh: ArrayLike, vmic_kms: ArrayLike = 2.0) -> np.ndarray:
        """Surface flux, (n, pixels) float32 in FLUX_UNIT, for labels (n,) each or scalars; the same on every machine.

        Raises ValueError for labels outside `ranges` and `VMIC_RANGE_KMS`.
        """
        labels = np.stack(np.broadcast_arrays(*map(np.atleast_1d, (teff_k, logg, mh, vmic_kms))), axis=-1)
        ranges = self.ranges | {"vmic_kms": VMIC_RANGE_KMS}
        for (name, (low, high)), value in zip(ranges.items(), labels.T, strict=True):
            if not ((value >= low) & (value <= high)).all():
                raise ValueError(f"{name} {value.min():g}..{value.max():g} leaves the SED grid's {low:g}..{high:g}.")
        flux = np.empty((len(labels), self.wave_aa.size), np.float32)
        less_kms = self.vmic_kms - labels[:, 3]
        coefficients = _interpolated(self.models, labels[:, :3], cubic_spline)
        calmer = less_kms[:, None] * _interpolated(self.calmer, labels[:, :3], _held)
        for one, less, of_models, of_calmer in zip(flux, less_kms, coefficients, calmer, strict=True):
            log_flux = self.mean.astype(np.float64)
            self.models.add(of_models, log_flux)
            if less:
                self.calmer.add(of_calmer, log_flux)
            one[:] = exp(log_flux)
        return flux


def _interpolated(
    table: LowRank, labels: np.ndarray, between: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """(n, component) coefficients at labels (n, 3): interpolated along one axis after the other, node by node."""
    values = np.broadcast_to(table.coefficients, (len(labels), *table.coefficients.shape))
    for axis, value in zip(table.axes, labels.T, strict=True):
        weights = between(axis, np.eye(axis.size), value)  # (n, node)
        shape = (len(labels), *[1] * (values.ndim - 2))
        values = sum(weights[:, node].reshape(shape) * values[:, node] for node in range(axis.size))
    return values


def _held(axis: np.ndarray, nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Straight lines between nodes (node, column), held beyond the axis: (n, column)."""
    return np.stack([linear(axis, column, at) for column in nodes.T], axis=-1)


def write_sed(
    path: Path, wave_aa: np.ndarray, flux: np.ndarray, teff_k: float, logg: float, mh: float, vmic_kms: float
) -> None:
    """Write one SED as a FITS table of one row, the wavelengths [Å] marked as air."""
    from astropy.io import fits

    n = len(wave_aa)
    row = np.empty(1, dtype=[("WAVE", ">f8", (n,)), ("FLUX", ">f4", (n,))])
    row["WAVE"], row["FLUX"] = wave_aa, flux
    table = fits.BinTableHDU(row.view(fits.FITS_rec), name="SED")  # a big-endian view is written as it is
    header = table.header
    header["TUNIT1"], header["TUCD1"] = "Angstrom", "em.wl;obs.atmos"
    header["TUNIT2"], header["TUCD2"] = FLUX_UNIT, "phot.flux.density;em.wl"
    header["TEFF"] = (teff_k, "[K] effective temperature")
    header["LOGG"] = (logg, "[dex] surface gravity, cm/s2")
    header["MH"] = (mh, "[dex] metallicity")
    header["VMIC"] = (vmic_kms, "[km/s] microturbulence")
    with atomic_write(path) as aside:
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(aside, output_verify="ignore")


def read_sed(path: Path) -> SedRecord | Refusal:
    """Read one SED, .fits (as `write_sed`) or .npz (a library node); refuses damaged ones, vacuum, and what cannot be.

    Labels that no star has and fluxes that differ by more than `FLUX_RATIO` are refused: they are what is learned.
    """
    path = Path(path)
    source = printable(path.name)
    if not os.path.isfile(path):
        folder = printable(path.parent.name)
        return Refusal(source, Reason.NO_SED, f"there is no SED file {cleaned(source, 100)} in {folder}/")
    return refusing(source, Reason.UNREADABLE, lambda: _read_node(path) if path.suffix == ".npz" else _read_fits(path))


def _read_fits(path: Path) -> SedRecord:
    with open_hdus(read_file(path, MAX_BYTES, BEGINS)) as hdus:
        return _read_table(hdus, path)


def _read_table(hdus: Any, path: Path) -> SedRecord:
    table = hdus[1]
    header, names = Header(table.header), {name.upper() for name in table.columns.names}
    missing = [name for name in ("WAVE", "FLUX") if name not in names]
    require(not missing, Reason.MISSING_COLUMN, f"no column {', '.join(missing)}")
    medium = header.text("TUCD1")
    detail = f"wavelengths are marked {medium!r}, expected air, 'em.wl;obs.atmos'"
    require("obs.atmos" in medium, Reason.VACUUM, detail)
    labels = {name: header.number(name.upper()) for name in LABELS}
    if "VMIC" in table.header and math.isnan(labels["vmic"]):
        labels["vmic"] = math.inf  # it need not be there, but what is there must be a number
    wave_aa, flux = (np.ravel(np.asarray(table.data[name])) for name in ("WAVE", "FLUX"))
    return _checked(path, labels, wave_aa, flux)


def _read_node(path: Path) -> SedRecord:
    """A node of a synthesised library: log flux = log_flux_offset + log_flux_scale · log_flux_u16."""
    node = read_npz(path, ("log_flux_u16", "log_flux_offset", "log_flux_scale", "wave0_aa", "step_aa", *NODE_LABELS))
    numbers = {name: number(values.item()) if values.size == 1 else math.nan for name, values in node.items()}
    labels = {name: numbers[key] for name, key in zip(LABELS, NODE_LABELS, strict=True)}
    if math.isnan(labels["vmic"]):
        labels["vmic"] = math.inf
    codes = node["log_flux_u16"]
    require(codes.ndim == 1 and codes.dtype.kind in "iuf", Reason.MISSING_FIELD, "log_flux_u16 is no list of numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        log_flux = numbers["log_flux_offset"] + numbers["log_flux_scale"] * codes
        wave_aa = numbers["wave0_aa"] + numbers["step_aa"] * np.arange(codes.size)
        return _checked(path, labels, wave_aa, np.exp(log_flux))


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a .npz file, none of them unpacked before its size is known; raises RefusedError or IntakeError."""
    raw = read_file(path, MAX_BYTES, b"PK")
    require(raw.count(b"PK\x01\x02") <= MAX_MEMBERS, Reason.TOO_LARGE, f"expected at most {MAX_MEMBERS} arrays")
    try:
        with zipfile.ZipFile(BytesIO(raw)) as packed:
            sizes = {member.filename: member.file_size for member in packed.infolist()}
            missing = [name for name in names if f"{name}.npy" not in sizes]
            require(not missing, Reason.MISSING_FIELD, f"no array {', '.join(missing)}")
            total = sum(sizes[f"{name}.npy"] for name in names)
            detail = f"expected at most {MAX_BYTES} bytes unpacked, got {total}"
            require(total <= MAX_BYTES, Reason.TOO_LARGE, detail)
            return {name: _npy(packed.read(f"{name}.npy"), name) for name in names}
    except (RefusedError, MemoryError, Interrupted):
        raise
    except Exception as error:  # zipfile, zlib, struct: all mean a damaged file
        raise RefusedError(Reason.UNREADABLE, f"expected a readable .npz file, got {named(error)}") from None


def _npy(content: bytes, name: str) -> np.ndarray:
    stream = BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, kind = read_header(stream)
    promised, held = math.prod(shape) * kind.itemsize, len(content) - stream.tell()
    detail = f"{name} promises {promised} bytes, it has {held}"
    require(not kind.hasobject and promised == held, Reason.TRUNCATED, detail)
    return np.load(BytesIO(content), allow_pickle=False)


def _checked(path: Path, labels: dict[str, float], wave_aa: np.ndarray, flux: np.ndarray) -> SedRecord:
    missing = [name.upper() for name in LABELS[:3] if math.isnan(labels[name])]
    require(not missing, Reason.MISSING_FIELD, f"no number for {', '.join(missing)}")
    for name, value in labels.items():
        detail = f"{name} is {value:g}, expected {expected(name)}"
        require(in_range(name, value) or math.isnan(value), Reason.OUT_OF_RANGE, detail)
    numbers = wave_aa.dtype.kind in "fiu" and flux.dtype.kind in "fiu"
    require(numbers, Reason.MISSING_COLUMN, f"wavelengths are {wave_aa.dtype} and fluxes {flux.dtype}, no numbers")
    wave_aa = wave_aa.astype(np.float64)
    detail = f"{wave_aa.size} wavelengths and {flux.size} fluxes, expected as many, and at least 4"
    require(wave_aa.size == flux.size >= 4, Reason.LENGTH_MISMATCH, detail)
    increasing = np.isfinite(wave_aa).all() and (np.diff(wave_aa) > 0).all()
    require(increasing, Reason.NOT_INCREASING, "wavelengths do not increase strictly")
    detail = f"expected wavelengths of {expected('sed_wave')}, got {wave_aa[0]:.6g}..{wave_aa[-1]:.6g}"
    require(in_range("sed_wave", wave_aa[0]) and in_range("sed_wave", wave_aa[-1]), Reason.WRONG_UNIT, detail)
    require_flux(flux)
    teff_k, logg, mh, vmic_kms = (labels[name] for name in LABELS)
    source, flux = printable(path.name), flux.astype(np.float32)
    return SedRecord(printable(path.stem), teff_k, logg, mh, vmic_kms, wave_aa, flux, source)


def require_flux(flux: np.ndarray) -> None:
    """Refuse a model flux that is not finite and positive, that float32 cannot hold, or that varies beyond reason."""
    good = np.isfinite(flux).all() and (flux > 0).all()
    require(good, Reason.NO_FINITE_FLUX, "an SED must be finite and positive everywhere")
    low, median, high = float(flux.min()), float(np.median(flux)), float(flux.max())
    detail = f"expected a median flux of {expected('median_flux')}, got {median:.4g}"
    require(in_range("median_flux", median), Reason.OUT_OF_RANGE, detail)
    least, most = FLUX_RATIO
    detail = f"expected flux of {least:g}..{most:g} times its median, got {low / median:.4g}..{high / median:.4g}"
    require(least <= low / median and high / median <= most, Reason.OUT_OF_RANGE, detail)
