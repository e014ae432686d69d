"""Read output of ESO's exposure time calculator (ETC 2.0) for HARPS, both JSON generations.

Older (2023): data.orders[].detectors[].data with named quantities, the SED among them; request under `input`.
Newer (2026): data.plots.spectra[], without SED and dispersion; the request under `request`. Either may be
gzipped. Nothing raises for a bad file: the answer is then a `Refusal`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harps_dist.formats.etc_json import parse, parse_quickly, read_document
from harps_dist.formats.records import Reason, Refusal, RefusedError, refusing, require
from harps_dist.formats.sed import SedRecord, interpolate_sed, read_sed, require_flux
from harps_dist.spectra.instrument import HARPS
from harps_dist.spectra.quantities import QUANTITIES, expected, in_range, number
from harps_dist.text import cleaned, printable

MAX_ORDERS = 400
MAX_PIXELS = 100_000  # of an order
MAX_NAME_BYTES = 250
_IN_THE_GAP = set(range(HARPS.orders[-1], HARPS.orders[0])) - set(HARPS.orders)
MAX_NAMES = 100  # texts of a request that may name its SED

_MISSING = object()
_NUMBERS = {int, float, type(None)}
_ORDER = re.compile(r"\d{1,3}", re.ASCII)


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


def read_etc(path: Path, seds: Path | None = None) -> EtcRecord | Refusal:
    """Read one ETC output file, .json or .json.gz.

    seds: folder with the SED files that the requests name. The newer one needs it; an older run without it
    keeps the SED of its output, with NaN labels. Refused are what is not JSON, other instruments, and runs
    that lack an order between their first and last (but 115, which falls between the CCDs), a field, a finite
    value, a positive dispersion or an SED.
    """
    path = Path(path)
    return refusing(printable(path.name), Reason.NOT_JSON, lambda: _read(path, seds))


def _read(path: Path, seds: Path | None) -> EtcRecord:
    raw = read_document(path)
    if (document := parse_quickly(raw)) is not None:
        with suppress(RefusedError):  # whose reason is said of the document that the other parser makes
            return _record(document, path, seds)
    return _record(parse(raw), path, seds)


def _record(document: dict, path: Path, seds: Path | None) -> EtcRecord:
    """The run of a document, in which lists of numbers may be arrays. Raises RefusedError."""
    request = _request(document)
    _require_harps(document, request)
    generation, orders = _orders(document)
    orders.sort(key=lambda order: -order.order)
    _require_sequence(orders)
    orders, sed = _with_sed(orders, _named_sed(request, seds), path)
    return EtcRecord(_stem(path), generation, *_settings(request), tuple(orders), sed)


def _stem(path: Path) -> str:
    return printable(path.name.removesuffix(".gz").removesuffix(".json"))


def _get(node: Any, dotted: str, default: Any = _MISSING) -> Any:
    """The value at a dotted path of keys; without a default, its absence is a refusal that names the path."""
    for key in dotted.split("."):
        if not isinstance(node, dict) or key not in node:
            if default is not _MISSING:
                return default
            raise RefusedError(Reason.MISSING_FIELD, f"no {dotted}")
        node = node[key]
    return node


def _quantity(node: Any, name: str, *chains: tuple[str, ...]) -> float:
    """The first number among alternative key chains (the chains hold dots in their keys), within what it can be."""
    for chain in chains:
        value = node
        for key in chain:
            value = value.get(key) if isinstance(value, dict) else None
        if not math.isnan(found := number(value)):
            detail = f"{' > '.join(chain)} is {found:g}, expected {expected(name)}"
            require(in_range(name, found), Reason.OUT_OF_RANGE, detail)
            return found
    raise RefusedError(Reason.MISSING_FIELD, "no number at " + " or ".join(" > ".join(c) for c in chains))


def _request(document: dict) -> dict:
    for key in ("input", "request"):
        if isinstance(document.get(key), dict):
            return document[key]
    raise RefusedError(Reason.MISSING_FIELD, "no echo of the request: neither input nor request")


def _require_harps(document: dict, request: dict) -> None:
    named = [
        _get(document, "instrumentName", ""),
        _get(document, "application.app", ""),
        _get(request, "instrumentName", ""),
        _get(request, "application.instrument", ""),
        _get(request, "instrument.driver", ""),
        _get(request, "instrument.name", ""),
    ]
    named = [cleaned(str(name), 100) for name in named if name]
    others = [name for name in named if "harps" not in name.lower()]
    if others:
        raise RefusedError(Reason.WRONG_INSTRUMENT, f"expected HARPS, found {others[0]!r}")


def _settings(request: dict) -> tuple[float, float, float, float]:
    """airmass, pwv_mm, mag and exptime_s; the generations' key names differ."""
    airmass = _quantity(request, "airmass", ("sky", "airmass"))
    pwv_mm = _quantity(request, "pwv", ("sky", "pwv"), ("sky", "waterVapour"))
    mag = _quantity(request, "mag", ("target", "brightness", "params", "mag"), ("target", "brightness", "mag"))
    dit_s = _quantity(request, "dit", ("timesnr", "DET1.WIN1.UIT1"), ("timesnr", "DET1.DIT"))
    exposures = _quantity(request, "ndit", ("timesnr", "SEQ.NEXPO"), ("timesnr", "DET1.NDIT"))
    exptime_s = dit_s * exposures
    detail = f"{exposures:g} exposures of {dit_s:g} s are {exptime_s:g} s, expected {expected('exptime')}"
    require(in_range("exptime", exptime_s), Reason.OUT_OF_RANGE, detail)
    return airmass, pwv_mm, mag, exptime_s


def _orders(document: dict) -> tuple[Literal["2023", "2026"], list[OrderRecord]]:
    newer, older = _get(document, "data.plots.spectra", None), _get(document, "data.orders", None)
    if isinstance(newer, list | np.ndarray):
        _require_few(newer)
        return "2026", [_newer_order(entry) for entry in newer]
    require(isinstance(older, list), Reason.MISSING_FIELD, "neither data.orders nor data.plots.spectra is a list")
    entries = list(_detectors(older))
    _require_few(entries)
    return "2023", [_older_order(*entry) for entry in entries]


def _require_few(entries: Any) -> None:
    require(len(entries), Reason.MISSING_ORDER, "the list of orders is empty")
    detail = f"expected at most {MAX_ORDERS} orders, got {len(entries)}"
    require(len(entries) <= MAX_ORDERS, Reason.TOO_LARGE, detail)


def _detectors(entries: list) -> Iterator[tuple[Any, dict]]:
    for entry in entries:
        detectors = _get(entry, "detectors")
        require(isinstance(detectors, list), Reason.MISSING_FIELD, "detectors is not a list")
        require(detectors, Reason.MISSING_ORDER, f"order {cleaned(str(_get(entry, 'order')), 40)} has no detector")
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
    number = _order_number(order)
    where = f"of order {number}"
    wave_aa = 1e10 * np.clip(_array(wave_m, f"wavelength {where}"), -1.0, 1.0)  # metres; what is clipped is refused
    if wave_aa.size < 2:
        raise RefusedError(Reason.LENGTH_MISMATCH, f"wavelength {where} has {wave_aa.size} values, expected 2 or more")
    off = number * float(np.median(wave_aa)) / HARPS.order_centre_aa - 1
    if abs(off) > 0.02:
        middle_aa, expected_aa = np.median(wave_aa), HARPS.order_centre_aa / number
        detail = f"order {number} lies at {middle_aa:.0f} Å, on HARPS's echelle it would at {expected_aa:.0f} Å"
        raise RefusedError(Reason.WRONG_INSTRUMENT, detail)
    values: dict[str, Any] = {
        name: np.full(wave_aa.size, np.nan) if given is None else _array(given, f"{name} {where}")
        for name, given in arrays.items()
    }
    if arrays["dispersion_m_per_px"] is None:
        values["dispersion_m_per_px"] = np.gradient(wave_aa) * 1e-10
    for name, value in values.items():
        if value.size != wave_aa.size:
            detail = f"{name} {where} has {value.size} values, the wavelength {wave_aa.size}"
            raise RefusedError(Reason.LENGTH_MISMATCH, detail)
    require(isinstance(detector, str | int), Reason.MISSING_FIELD, f"the detector {where} has no name")
    if not (values["dispersion_m_per_px"] > 0).all():
        worst = values["dispersion_m_per_px"].min()
        raise RefusedError(Reason.ZERO_DISPERSION, f"dispersion {where} falls to {worst:g} m/px, expected above 0")
    if not (np.diff(wave_aa) > 0).all():
        raise RefusedError(Reason.NOT_INCREASING, f"wavelength {where} does not increase strictly")
    for name in values.keys() & QUANTITIES.keys():
        least, most = float(values[name].min()), float(values[name].max())
        detail = f"{name} {where} runs from {least:g} to {most:g}, expected {expected(name)}"
        require(in_range(name, least) and in_range(name, most), Reason.OUT_OF_RANGE, detail)
    noise = [_quantity(noise_info, name, (name,)) for name in ("nspat", "nspec", "ndit", "dit", "dark", "ron2")]
    found = [values[name] for name in ("sed", "target", "sky", "blaze", "dispersion_m_per_px")]
    return OrderRecord(number, cleaned(str(detector), 100), wave_aa, *found, *noise)


def _order_number(order: Any) -> int:
    """The number of an order, a whole number or, in the older generation, a text of digits."""
    text = cleaned(repr(order) if isinstance(order, str) else str(order)[:100], 40)
    value = float(order) if isinstance(order, str) and _ORDER.fullmatch(order) else number(order)
    require(not math.isnan(value), Reason.MISSING_FIELD, f"order {text} is not a number")
    whole = in_range("order", value) and value == int(value)
    require(whole, Reason.OUT_OF_RANGE, f"order {text} is no whole number of {expected('order')}")
    return int(value)


def _array(values: Any, what: str) -> np.ndarray:
    """(n,) float64; null, NaN, infinities, truth values and texts are no numbers."""
    require(isinstance(values, list | np.ndarray), Reason.MISSING_FIELD, f"{what} is not a list of numbers")
    require(
        len(values) <= MAX_PIXELS, Reason.TOO_LARGE, f"{what} has {len(values)} values, expected {MAX_PIXELS} at most"
    )
    array = values if isinstance(values, np.ndarray) else _array_of_list(values, what)
    if bad := int((~np.isfinite(array)).sum()):
        raise RefusedError(Reason.MISSING_FIELD, f"{what}: {bad} of {array.size} values are not finite")
    return array


def _array_of_list(values: list, what: str) -> np.ndarray:
    require(set(map(type, values)) <= _NUMBERS, Reason.MISSING_FIELD, f"{what} is not a list of numbers")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # of whole numbers of hundreds of digits
        return np.array([number(value) for value in values])


def _require_sequence(orders: list[OrderRecord]) -> None:
    numbers = [order.order for order in orders]
    first, last = numbers[0], numbers[-1]
    absent = [m for m in range(first, last, -1) if m not in {*numbers, *_IN_THE_GAP}]
    if absent:
        found = ", ".join(map(str, absent))
        raise RefusedError(Reason.MISSING_ORDER, f"orders {first}..{last} without {found}")
    if len(set(numbers)) != len(numbers):
        raise RefusedError(Reason.DUPLICATE, f"{len(numbers)} spectra for {len(set(numbers))} orders")


def _named_sed(request: dict, seds: Path | None) -> SedRecord | None:
    """The SED file that the request names, from the folder `seds`; None where there is none."""
    if seds is None:
        return None
    for name in _texts(_get(request, "target.sed", {})):
        bare = Path(name).name  # an upload name never leads out of the folder
        if not bare.isprintable() or len(os.fsencode(bare)) > MAX_NAME_BYTES:
            continue
        for candidate in (bare, f"{bare}.fits", f"{bare}.npz"):
            if Path(candidate).suffix in (".fits", ".npz") and os.path.isfile(seds / candidate):
                sed = read_sed(seds / candidate)
                if isinstance(sed, Refusal):
                    raise RefusedError(Reason.NO_SED, f"its SED {sed}")
                return sed
    return None


def _texts(node: Any) -> list[str]:
    """The texts in a part of a document, in their order, however deep; raises RefusedError where they are many."""
    found, ahead = [], [node]
    while ahead:
        value = ahead.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict | list):
            ahead += reversed(list(value.values()) if isinstance(value, dict) else value)
        require(len(ahead) + len(found) <= MAX_NAMES, Reason.TOO_LARGE, f"more than {MAX_NAMES} texts name the SED")
    return found


def _with_sed(orders: list[OrderRecord], sed: SedRecord | None, path: Path) -> tuple[list[OrderRecord], SedRecord]:
    """Give every order its SED in the unit of the continuous one.

    An order's own SED, what the calculator really multiplied by, is kept up to one scale factor per run;
    where the output has none, the file's SED is interpolated.
    """
    own = all(np.isfinite(order.sed).all() for order in orders)
    if own and not all((order.sed > 0).all() for order in orders):
        raise RefusedError(Reason.NO_SED, "the SED of the output is not positive everywhere")
    if own:
        require_flux(np.concatenate([order.sed for order in orders]))
    if sed is None:
        if not own:
            raise RefusedError(Reason.NO_SED, "no SED in the output, and none of the name it gives in the SED folder")
        return orders, _merged_sed(orders, path)
    ends = np.cumsum([order.wave_aa.size for order in orders])[:-1]
    at_aa = np.concatenate([order.wave_aa for order in orders])  # all at once: the spline of an SED takes a while
    sampled = np.split(interpolate_sed(sed.wave_aa, sed.flux, at_aa), ends)
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
    nan = math.nan
    return SedRecord(_stem(path), nan, nan, nan, nan, wave_aa, flux.astype(np.float32), printable(path.name))
