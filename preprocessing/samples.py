"""What a release is made of: samples of an archive, their index rows, and how each is encoded and how well.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from harps_dist.data.codec import FluxCodec, codec_of, npy_bytes, quantised, restored
from harps_dist.data.keyed import key_of
from harps_dist.data.manifest import CodecName
from harps_dist.formats.archive import Archive
from harps_dist.spectra.exact import exp, mean
from harps_dist.spectra.noise import photon_sigma
from harps_dist.spectra.observation import observe
from harps_dist.spectra.spline import bspline_coefficients
from harps_dist.spectra.standardise import standardise
from preprocessing.factorise import TRAINING_RUNS, ResponseBasis, Terms, fit_basis, spread_out, terms_of
from preprocessing.rows import Fractions, Row, Simulations, index_row

BASIS = "response-basis"
SED_TAIL = "sed.npy"

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
    simulations: Simulations

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

        return cls(archive, codec_of(real_codec), basis, response, Simulations(archive))

    @staticmethod
    def _fitted(archive: Archive) -> ResponseBasis:
        names = ("airmass", "pwv", "mag", "exptime", "snr")
        asked = np.stack([archive.column("response", name) for name in names], axis=1)
        chosen = spread_out(asked, TRAINING_RUNS).tolist() if len(asked) else []
        runs = [terms_of(archive.data("response", number)) for number in chosen]
        return fit_basis(runs or [Terms(np.zeros((3, archive.source_grid.length)), 1.0)])


def real_sample(coding: Coding, number: int, row: Row) -> Sample:
    """A spectrum of a star, in row `number` of the archive."""
    return Sample(row["key"], partial(_encode_real, coding, number, row))


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
    fractions: Fractions,
    known: AbstractSet[str] = frozenset(),
    known_seds: AbstractSet[str] = frozenset(),
) -> Iterator[Sample]:
    """Every SED through each ETC run of its own; without one, through one chosen by the hash of its id.

    known: keys of samples that a release before has, and known_seds, stars that it has them of: these need no run.
    """
    simulations = coding.simulations
    runs = sorted(simulations.runs)
    if not runs:
        return
    own: dict[str, list[str]] = {}
    for run in runs:
        own.setdefault(simulations.runs[run]["sed"], []).append(run)
    for sed, values in simulations.seds.items():
        star = f"sed-{sed}"
        by_hash = [] if star in known_seds else [runs[key_of("response of", sed) % len(runs)]]
        seen_through = [run for run in own.get(sed) or by_hash if f"{star}@{run}" not in known]
        if seen_through:
            rows = [simulations.simulated_row(sed, run, fractions) for run in seen_through]
            numbers = [simulations.runs[run]["number"] for run in seen_through]
            yield Sample(star, partial(_encode_sed, coding, "sed", values["number"], rows, numbers))


def generative_samples(coding: Coding) -> Iterator[Sample]:
    """SEDs that differ in one label within a core; a core stands in the place of a star."""
    for key, values in coding.simulations.generative.items():
        row, run = coding.simulations.generative_row(key), coding.simulations.runs[values["etc_run"]]
        yield Sample(row["key"], partial(_encode_sed, coding, "generative", values["number"], [row], [run["number"]]))


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
    return observe(terms[0] * sed, np.ones(1), terms[1], terms[2])


def basis_samples(coding: Coding) -> Iterator[Sample]:
    """The vectors that responses are combinations of; none where there are no responses."""
    if coding.archive.count("response"):
        yield Sample(BASIS, lambda: ("basis.npy", npy_bytes(coding.basis.vectors), [index_row(key=BASIS)]))


def response_samples(coding: Coding) -> Iterator[Sample]:
    """Coefficients of ETC runs, and what these miss where that is too much."""
    for key, values in coding.simulations.runs.items():
        row = coding.simulations.response_row(key)
        yield Sample(row["key"], partial(_encode_response, coding, values["number"], row))


def _encode_response(coding: Coding, number: int, row: Row) -> Encoded:
    stored = coding.response(number)
    content = None if stored.residual is None else npy_bytes(stored.residual)
    coefficients = [float(value) for value in stored.coefficients]
    return "residual.npy", content, [row | {"coefficients": coefficients, "median": stored.level}]
