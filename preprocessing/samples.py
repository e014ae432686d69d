"""What a release is made of: samples of an archive, their index rows, and how each is encoded and how well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from harps_dist.data.codec import FluxCodec, codec_of, npy_bytes, quantised, restored
from harps_dist.data.keyed import key_of
from harps_dist.data.manifest import CodecName
from harps_dist.data.split import split_of
from harps_dist.spectra.exact import exp, mean
from harps_dist.spectra.labels import LABEL, NAMES
from harps_dist.spectra.noise import photon_sigma
from harps_dist.spectra.spline import bspline_coefficients
from harps_dist.spectra.standardise import standardise
from preprocessing.archive import Archive
from preprocessing.factorise import TRAINING_RUNS, ResponseBasis, Terms, fit_basis, spread_out, terms_of

BASIS = "response-basis"
REAL = "real-"
SED_TAIL = "sed.npy"
OBSERVED = ("mjd", "ra", "dec", "pipeline", "catalogue_id")

Row = dict[str, Any]  # of the index
Encoded = tuple[str, bytes | None, list[Row]]  # tail and content of a member, rows of the index that it serves


class Sample(NamedTuple):
    """What goes into a shard under one key."""

    key: str
    encode: Callable[[], Encoded]


class Stored(NamedTuple):
    """A response as it is stored: e to its terms, to those that the release gives back, its level, and the content."""

    true: np.ndarray
    kept: np.ndarray
    level: float
    coefficients: np.ndarray
    residual: np.ndarray | None


class Coding(NamedTuple):
    """How the samples of an archive are stored."""

    archive: Archive
    codec: FluxCodec
    basis: ResponseBasis
    response: Callable[[int], Stored]

    @classmethod
    def of(cls, archive: Archive, real_codec: CodecName, basis: ResponseBasis | None = None) -> Coding:
        """With the basis of a release before, else one from runs that lie far apart in what was asked of them."""
        basis = basis or cls._fitted(archive)

        @lru_cache(16)
        def response(number: int) -> Stored:
            terms = terms_of(archive.data("response", number))
            coefficients = basis.coefficients(terms)
            kept, residual = basis.combined(coefficients), None
            if basis.missed(terms, kept):
                residual = (terms.values - kept).astype(np.float16)
                kept = kept + residual
            return Stored(exp(terms.values), exp(kept), terms.level, coefficients, residual)

        return cls(archive, codec_of(real_codec), basis, response)

    @staticmethod
    def _fitted(archive: Archive) -> ResponseBasis:
        names = ("airmass", "pwv", "mag", "exptime", "snr")
        asked = np.stack([archive.column("response", name) for name in names], axis=1)
        chosen = spread_out(asked, TRAINING_RUNS).tolist() if len(asked) else []
        runs = [terms_of(archive.data("response", number)) for number in chosen]
        return fit_basis(runs or [Terms(np.zeros((3, archive.source_grid.length)), 1.0)])


class Wanted(NamedTuple):
    """What of the archive's real spectra goes into a release.

    fractions: of stars in train, validation and test. keep_out_of_range: those with a label outside the paper's ranges
    too. rows (n,): of the archive; those that stand and are not in the release before.
    """

    fractions: tuple[float, float, float]
    keep_out_of_range: bool
    rows: np.ndarray


def real_samples(coding: Coding, wanted: Wanted, left_out: Counter[str]) -> Iterator[Sample]:
    """Spectra of stars; those that are flagged, or have a label out of range, are counted in left_out."""
    names = ("key", "target", "object", "flag", "snr", "berv", "airmass", "rv", "teff", "mh", "logg")
    columns = {name: coding.archive.column("real", name)[wanted.rows] for name in (*names, *OBSERVED)}
    for number, row_values in zip(wanted.rows, zip(*columns.values(), strict=True), strict=True):
        values = dict(zip(columns, row_values, strict=True))
        if values["flag"]:
            left_out[values["flag"]] += 1
            continue
        outside = [name for name in ("teff", "mh", "logg") if _outside(name, values[name])]
        if outside and not wanted.keep_out_of_range:
            left_out[f"{outside[0]} outside {LABEL[outside[0]].training[0]:g}..{LABEL[outside[0]].training[1]:g}"] += 1
            continue
        labels = {name: values.get(name, np.nan) for name in NAMES}
        if _outside("airmass", labels["airmass"]):
            labels["airmass"] = np.nan
        row = _row(
            key=f"{REAL}{values['key']}",
            star=values["target"],
            split=split_of(values["target"], wanted.fractions),
            object=values["object"],
            snr=values["snr"],
            **{name: values[name] for name in OBSERVED},
            **labels,
        )
        yield Sample(row["key"], partial(_encode_real, coding, int(number), row))


def _encode_real(coding: Coding, number: int, row: Row) -> Encoded:
    grid = coding.archive.grid
    flux, median = standardise(coding.archive.data("real", number), grid)
    flux = flux[grid.valid]
    content = coding.codec.encode(flux)
    off = restored(coding.codec, content, len(flux)).astype(np.float64) - flux
    error = math.sqrt(mean((off / photon_sigma(flux)) ** 2))
    return coding.codec.tail, content, [row | {"median": median, "error": error}]


def simulated_samples(
    coding: Coding,
    fractions: tuple[float, float, float],
    known: AbstractSet[str] = frozenset(),
    known_seds: AbstractSet[str] = frozenset(),
) -> Iterator[Sample]:
    """Every SED through each ETC run of its own; without one, through one chosen by the hash of its id.

    known: keys of samples that a release before has, and known_seds, stars that it has them of: these need no run.
    """
    names = ("key", "sed", "airmass", "pwv", "snr")
    runs = [run | {"number": number} for number, run in enumerate(_columns(coding.archive, "response", *names))]
    runs.sort(key=lambda run: run["key"])
    if not runs:
        return
    own: dict[str, list[Row]] = {}
    for run in runs:
        own.setdefault(run["sed"], []).append(run)
    for number, values in enumerate(_columns(coding.archive, "sed", "key", "teff", "mh", "logg")):
        star = f"sed-{values['key']}"
        by_hash = [] if star in known_seds else [runs[key_of("response of", values["key"]) % len(runs)]]
        seen_through = [run for run in own.get(values["key"]) or by_hash if f"{star}@{run['key']}" not in known]
        if not seen_through:
            continue
        rows = [
            _row(
                key=f"{star}@{run['key']}",
                star=star,
                split=split_of(star, fractions),
                object=values["key"],
                **_seen_through(run),
                **_intrinsic(values),
            )
            for run in seen_through
        ]
        yield Sample(star, partial(_encode_sed, coding, "sed", number, rows, [run["number"] for run in seen_through]))


def generative_samples(coding: Coding) -> Iterator[Sample]:
    """SEDs that differ in one label within a core; a core stands in the place of a star."""
    names = ("key", "core", "varied", "split", "etc_run", "teff", "mh", "logg")
    runs = _columns(coding.archive, "response", "key", "airmass", "pwv", "snr")
    numbers = {run["key"]: number for number, run in enumerate(runs)}
    for number, values in enumerate(_columns(coding.archive, "generative", *names)):
        run = numbers[values["etc_run"]]
        row = _row(
            key=f"generative-{values['key']}",
            star=f"core-{values['core']}",
            split=values["split"],
            object=values["key"],
            varied=values["varied"],
            **_seen_through(runs[run]),
            **_intrinsic(values),
        )
        yield Sample(row["key"], partial(_encode_sed, coding, "generative", number, [row], [run]))


def _encode_sed(coding: Coding, group: str, number: int, rows: list[Row], runs: list[int]) -> Encoded:
    """The SED as B-spline coefficients, in int16; the error at rest, as each of its responses shows it."""
    archive = coding.archive
    sed = archive.data(group, number).astype(np.float64)
    codes, (scale, zero) = quantised(bspline_coefficients(sed))
    coefficients = np.pad(codes * float(scale) + float(zero), 1, mode="reflect")
    kept = (coefficients[:-2] + 4 * coefficients[1:-1] + coefficients[2:]) / 6
    inner, found = archive.grid.within(archive.source_grid), []
    for row, run in zip(rows, runs, strict=True):
        stored = coding.response(run)
        true, off = _signal(stored.true, sed), _signal(stored.kept, kept)
        error = np.abs((off[0] - true[0]) / true[1])[inner][archive.grid.valid]
        wrong = np.abs(off[1] / true[1] - 1)[inner][archive.grid.valid]
        found.append(
            row
            | {"scale": float(scale), "zero": float(zero), "median": 1.0}
            | {"error": math.sqrt(max(mean(error**2), mean(wrong**2)))}
        )
    return SED_TAIL, npy_bytes(codes), found


def _signal(terms: np.ndarray, sed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the counts (Eqs. A.1, A.2); terms: e to them."""
    signal = terms[0] * sed
    return signal, np.sqrt(terms[1] * signal + terms[2])


def basis_samples(coding: Coding) -> Iterator[Sample]:
    """The vectors that responses are combinations of; none where there are no responses."""
    if coding.archive.count("response"):
        yield Sample(BASIS, lambda: ("basis.npy", npy_bytes(coding.basis.vectors), [_row(key=BASIS)]))


def response_samples(coding: Coding) -> Iterator[Sample]:
    """Coefficients of ETC runs, and what these miss where that is too much."""
    for number, values in enumerate(_columns(coding.archive, "response", "key", "sed", "airmass", "pwv", "snr")):
        row = _row(key=f"response-{values['key']}", object=values["sed"], **(_seen_through(values) | {"response": ""}))
        yield Sample(row["key"], partial(_encode_response, coding, number, row))


def _encode_response(coding: Coding, number: int, row: Row) -> Encoded:
    stored = coding.response(number)
    content = None if stored.residual is None else npy_bytes(stored.residual)
    coefficients = [float(value) for value in stored.coefficients]
    return "residual.npy", content, [row | {"coefficients": coefficients, "median": stored.level}]


def _row(**columns: Any) -> Row:
    """A row of the index, without where its bytes lie; what is not given is '' or missing."""
    texts = dict.fromkeys(("key", "star", "split", "object", "response", "varied", "pipeline", "catalogue_id"), "")
    numbers = dict.fromkeys(("scale", "zero", "snr", "median", "error", "mjd", "ra", "dec", *NAMES), np.nan)
    return texts | numbers | {"coefficients": []} | columns


def _seen_through(run: Row) -> Row:
    return {"response": f"response-{run['key']}", **{name: run[name] for name in ("snr", "airmass", "pwv")}}


def _intrinsic(values: Row) -> Row:
    return {name: values[name] for name in ("teff", "mh", "logg")}


def _columns(archive: Archive, group: str, *names: str) -> list[dict[str, Any]]:
    columns = [archive.column(group, name) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _outside(name: str, value: float) -> bool:
    low, high = LABEL[name].training
    return bool(np.isfinite(value) and not low <= value <= high)
