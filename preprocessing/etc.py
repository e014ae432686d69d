"""Read output of ESO's exposure time calculator (ETC 2.0) for HARPS, both JSON generations.

Older (2023): data.orders[].detectors[].data with named quantities, the SED among them; request under `input`.
Newer (2026): data.plots.spectra[], without SED and dispersion; the request under `request`. Either may be
gzipped. Nothing raises for a bad file: the answer is then a `Refusal`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preprocessing.instrument import GAP_ORDER, GRATING_AA
from preprocessing.records import Reason, Refusal
from preprocessing.sed import SedRecord, interpolate_sed, read_sed

_MISSING = object()


@dataclass(frozen=True, eq=False)
class OrderRecord:
    """One order of a run; (n,) float64 arrays, one value an extracted pixel, wavelength increasing.

    T = target / sed, h = blaze · dispersion / (largest of the run), B = sky (paper, App. A).
    """

    order: int
    detector: str
    wave_aa: np.ndarray  # air, topocentric
    sed: np.ndarray  # in the unit of the run's `sed.flux`
    target: np.ndarray  # electrons a pixel
    sky: np.ndarray  # electrons a pixel
    blaze: np.ndarray
    dispersion_m_per_px: np.ndarray
    nspat: float
    nspec: float
    ndit: float
    dit_s: float
    dark: float  # electrons a second and pixel
    ron2: float  # electrons² a pixel

    @property
    def readout_variance(self) -> float:
        """n of App. A, electrons² an extracted pixel (NDIT counted once, as in the public code)."""
        return self.nspat * self.nspec * self.ndit * (self.dit_s * self.dark + self.ron2)


@dataclass(frozen=True, eq=False)
class EtcRecord:
    """One ETC run: what was asked, the orders by falling number (blue to red), the SED with its labels."""

    etc_id: str  # file name without .json or .json.gz
    generation: Literal["2023", "2026"]
    airmass: float
    pwv_mm: float
    mag: float
    exptime_s: float
    orders: tuple[OrderRecord, ...]
    sed: SedRecord


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_etc(path: Path, seds: Path | None = None) -> EtcRecord | Refusal:
    """Read one ETC output file, .json or .json.gz.

    seds: folder with the SED files that the requests name. The newer one needs it; an older run without it
    keeps the SED of its output, with NaN labels. Refused are what is not JSON, other instruments, and runs
    that lack an order between their first and last (but 115, which falls between the CCDs), a field, a finite
    value, a positive dispersion or an SED.
    """
    path = Path(path)
    try:
        document = _load(path)
        request = _request(document)
        _require_harps(document, request)
        generation, orders = _orders(document)
        orders.sort(key=lambda order: -order.order)
        _require_sequence(orders)
        sed = _named_sed(request, seds)
        orders, sed = _with_sed(orders, sed, path)
        stem = path.name.removesuffix(".gz").removesuffix(".json")
        return EtcRecord(stem, generation, *_settings(request), tuple(orders), sed)
    except _Refused as refused:
        return Refusal(path.name, refused.reason, refused.detail)


def _load(path: Path) -> dict:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise _Refused(Reason.UNREADABLE, f"{type(error).__name__}: {error}") from None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise _Refused(Reason.NOT_JSON, str(error)) from None
    if not isinstance(document, dict):
        raise _Refused(Reason.NOT_JSON, f"expected a JSON object at the top, found a {type(document).__name__}")
    return document


def _get(node: Any, dotted: str, default: Any = _MISSING) -> Any:
    """The value at a dotted path of keys; without a default, its absence is a refusal that names the path."""
    for key in dotted.split("."):
        if not isinstance(node, dict) or key not in node:
            if default is not _MISSING:
                return default
            raise _Refused(Reason.MISSING_FIELD, f"no {dotted}")
        node = node[key]
    return node


def _number(node: Any, *keys: tuple[str, ...]) -> float:
    """The first finite number among alternative key chains (the chains hold dots in their keys)."""
    for chain in keys:
        value = node
        for key in chain:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            return float(value)
    raise _Refused(Reason.MISSING_FIELD, "no finite number at " + " or ".join(" > ".join(c) for c in keys))


def _request(document: dict) -> dict:
    for key in ("input", "request"):
        if isinstance(document.get(key), dict):
            return document[key]
    raise _Refused(Reason.MISSING_FIELD, "no echo of the request: neither input nor request")


def _require_harps(document: dict, request: dict) -> None:
    named = [
        _get(document, "instrumentName", ""),
        _get(document, "application.app", ""),
        _get(request, "instrumentName", ""),
        _get(request, "application.instrument", ""),
        _get(request, "instrument.driver", ""),
        _get(request, "instrument.name", ""),
    ]
    named = [str(name) for name in named if name]
    others = [name for name in named if "harps" not in name.lower()]
    if others:
        raise _Refused(Reason.WRONG_INSTRUMENT, f"expected HARPS, found {others[0]!r}")


def _settings(request: dict) -> tuple[float, float, float, float]:
    """airmass, pwv_mm, mag and exptime_s; the generations' key names differ."""
    airmass = _number(request, ("sky", "airmass"))
    pwv_mm = _number(request, ("sky", "pwv"), ("sky", "waterVapour"))
    mag = _number(request, ("target", "brightness", "params", "mag"), ("target", "brightness", "mag"))
    dit_s = _number(request, ("timesnr", "DET1.WIN1.UIT1"), ("timesnr", "DET1.DIT"))
    nexp = _number(request, ("timesnr", "SEQ.NEXPO"), ("timesnr", "DET1.NDIT"))
    return airmass, pwv_mm, mag, dit_s * nexp


def _orders(document: dict) -> tuple[Literal["2023", "2026"], list[OrderRecord]]:
    if isinstance(_get(document, "data.plots.spectra", None), list):
        orders = [_newer_order(entry) for entry in document["data"]["plots"]["spectra"]]
        generation: Literal["2023", "2026"] = "2026"
    elif isinstance(_get(document, "data.orders", None), list):
        orders = [_older_order(*pair) for pair in _detectors(document["data"]["orders"])]
        generation = "2023"
    else:
        raise _Refused(Reason.MISSING_FIELD, "neither data.orders nor data.plots.spectra is a list")
    if not orders:
        raise _Refused(Reason.MISSING_ORDER, "the list of orders is empty")
    return generation, orders


def _detectors(entries: list) -> Iterator[tuple[Any, dict]]:
    for entry in entries:
        detectors = _get(entry, "detectors")
        if not isinstance(detectors, list):
            raise _Refused(Reason.MISSING_FIELD, "detectors is not a list")
        for detector in detectors:
            yield _get(entry, "order"), detector


def _older_order(order: Any, detector: dict) -> OrderRecord:
    data = _get(detector, "data")
    return _checked_order(
        order,
        _get(detector, "name"),
        wave_m=_get(data, "wavelength.wavelength.data"),
        arrays={
            "sed": _get(data, "sed.target.data", None),
            "target": _get(data, "signals.obstarget.data"),
            "sky": _get(data, "signals.obssky.data"),
            "blaze": _get(data, "throughput.blaze.data"),
            "dispersion_m_per_px": _get(data, "dispersion.dispersion.data"),
        },
        noise_info=_get(data, "snr.noise_components.noise_info"),
    )


def _newer_order(entry: dict) -> OrderRecord:
    return _checked_order(
        _get(entry, "order"),
        _get(entry, "detector_name"),
        wave_m=_get(entry, "wavelength"),
        arrays={
            "sed": None,
            "target": _get(entry, "noise_components.target"),
            "sky": _get(entry, "noise_components.sky"),
            "blaze": _get(entry, "plots.throughput.blaze"),
            "dispersion_m_per_px": _get(entry, "plots.dispersion", None),
        },
        noise_info=_get(entry, "noise_components.noise_info"),
    )


def _checked_order(order: Any, detector: Any, wave_m: Any, arrays: dict, noise_info: Any) -> OrderRecord:
    try:
        number = int(order)
    except (TypeError, ValueError):
        raise _Refused(Reason.MISSING_FIELD, f"order {order!r} is not a number") from None
    where = f"of order {number}"
    wave_aa = _array(wave_m, f"wavelength {where}") * 1e10
    if wave_aa.size < 2:
        raise _Refused(Reason.LENGTH_MISMATCH, f"wavelength {where} has {wave_aa.size} values, expected 2 or more")
    off = number * float(np.median(wave_aa)) / GRATING_AA - 1
    if abs(off) > 0.02:
        middle_aa, expected_aa = np.median(wave_aa), GRATING_AA / number
        detail = f"order {number} lies at {middle_aa:.0f} Å, on HARPS's echelle it would at {expected_aa:.0f} Å"
        raise _Refused(Reason.WRONG_INSTRUMENT, detail)
    values: dict[str, Any] = {
        name: np.full(wave_aa.size, np.nan) if given is None else _array(given, f"{name} {where}")
        for name, given in arrays.items()
    }
    if arrays["dispersion_m_per_px"] is None:
        values["dispersion_m_per_px"] = np.gradient(wave_aa) * 1e-10
    for name, value in values.items():
        if value.size != wave_aa.size:
            detail = f"{name} {where} has {value.size} values, the wavelength {wave_aa.size}"
            raise _Refused(Reason.LENGTH_MISMATCH, detail)
    if not (values["dispersion_m_per_px"] > 0).all():
        worst = values["dispersion_m_per_px"].min()
        raise _Refused(Reason.ZERO_DISPERSION, f"dispersion {where} falls to {worst:g} m/px, expected above 0")
    if not (np.diff(wave_aa) > 0).all():
        raise _Refused(Reason.NOT_INCREASING, f"wavelength {where} does not increase strictly")
    return OrderRecord(
        order=number,
        detector=str(detector),
        wave_aa=wave_aa,
        **values,
        nspat=_number(noise_info, ("nspat",)),
        nspec=_number(noise_info, ("nspec",)),
        ndit=_number(noise_info, ("ndit",)),
        dit_s=_number(noise_info, ("dit",)),
        dark=_number(noise_info, ("dark",)),
        ron2=_number(noise_info, ("ron2",)),
    )


def _array(values: Any, what: str) -> np.ndarray:
    """(n,) float64; JSON null and NaN count as missing."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise _Refused(Reason.MISSING_FIELD, f"{what} is not a list of numbers") from None
    if array.ndim != 1:
        raise _Refused(Reason.MISSING_FIELD, f"{what} is not a list of numbers")
    if bad := int((~np.isfinite(array)).sum()):
        raise _Refused(Reason.MISSING_FIELD, f"{what}: {bad} of {array.size} values are not finite")
    return array


def _require_sequence(orders: list[OrderRecord]) -> None:
    numbers = [order.order for order in orders]
    first, last = numbers[0], numbers[-1]
    absent = [m for m in range(first, last, -1) if m not in set(numbers) and m != GAP_ORDER]
    if absent:
        found = ", ".join(map(str, absent))
        raise _Refused(Reason.MISSING_ORDER, f"orders {first}..{last} without {found}")
    if len(set(numbers)) != len(numbers):
        raise _Refused(Reason.DUPLICATE, f"{len(numbers)} spectra for {len(set(numbers))} orders")


def _named_sed(request: dict, seds: Path | None) -> SedRecord | None:
    """The SED file that the request names, from the folder `seds`; None where there is none."""
    if seds is None:
        return None
    for name in _texts(_get(request, "target.sed", {})):
        bare = Path(name).name  # an upload name never leads out of the folder
        for candidate in (bare, f"{bare}.fits", f"{bare}.npz"):
            if Path(candidate).suffix in (".fits", ".npz") and (Path(seds) / candidate).is_file():
                sed = read_sed(Path(seds) / candidate)
                if isinstance(sed, Refusal):
                    raise _Refused(Reason.NO_SED, f"its SED {sed}")
                return sed
    return None


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)


def _with_sed(orders: list[OrderRecord], sed: SedRecord | None, path: Path) -> tuple[list[OrderRecord], SedRecord]:
    """Give every order its SED in the unit of the continuous one.

    An order's own SED, what the calculator really multiplied by, is kept up to one scale factor per run;
    where the output has none, the file's SED is interpolated.
    """
    own = all(np.isfinite(order.sed).all() for order in orders)
    if own and not all((order.sed > 0).all() for order in orders):
        raise _Refused(Reason.NO_SED, "the SED of the output is not positive everywhere")
    if sed is None:
        if not own:
            raise _Refused(Reason.NO_SED, "no SED in the output, and none of the name it gives in the SED folder")
        return orders, _merged_sed(orders, path)
    sampled = [interpolate_sed(sed.wave_aa, sed.flux, order.wave_aa) for order in orders]
    if own:
        ratio = np.concatenate([s / order.sed for s, order in zip(sampled, orders, strict=True)])
        scale = float(np.median(ratio))
        sampled = [order.sed * scale for order in orders]
    return [replace(order, sed=s) for order, s in zip(orders, sampled, strict=True)], sed


def _merged_sed(orders: list[OrderRecord], path: Path) -> SedRecord:
    """The SED of the output's own orders as one, each taken up to where the next one begins; labels NaN."""
    wave_aa, flux = orders[0].wave_aa, orders[0].sed
    for order in orders[1:]:
        beyond = order.wave_aa > wave_aa[-1]
        wave_aa = np.concatenate([wave_aa, order.wave_aa[beyond]])
        flux = np.concatenate([flux, order.sed[beyond]])
    stem = path.name.removesuffix(".gz").removesuffix(".json")
    nan = float("nan")
    return SedRecord(stem, nan, nan, nan, nan, wave_aa, flux.astype(np.float32), path.name)
