"""Read samples from shards by byte ranges, every byte checked.

Tested in tests/unit/test_batches.py.
"""

from __future__ import annotations

import warnings
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from harps_dist.data.checksum import crc32c
from harps_dist.data.codec import Coded, FluxCodec, codec_of, npy_array, npy_header
from harps_dist.data.manifest import INDEX, Index, Manifest, read_index, read_manifest
from harps_dist.data.stores import Cache, Span, open_store
from harps_dist.errors import ReleaseError
from harps_dist.spectra.doppler import spline_samples
from harps_dist.spectra.grid import Grid, fill_invalid
from harps_dist.spectra.observation import of_terms

_CACHED_RESIDUALS = 64


class Decoding(NamedTuple):
    """What turns codes into spectra, one for all samples of a release.

    basis: (vector, source pixel) float32, those of log R, of log R2 / R and of log V0, `terms` of each.
    """

    grid: Grid
    source_grid: Grid
    codec: FluxCodec
    basis: np.ndarray
    terms: tuple[int, int, int]


class _Responses(NamedTuple):
    """rows: (response,) of the index; seen_through: (row of the index,) number of its response, -1 for none;
    coefficients: (response, vector) float32."""

    rows: np.ndarray
    seen_through: np.ndarray
    coefficients: np.ndarray


class Release:
    """A release opened for reading. Cheap to pickle: what is needed is opened where it is first read.

    location: a folder, or an http(s)://, s3://, gs:// or az:// URL, whose blocks are kept in `cache`.
    """

    def __init__(self, location: str | Path, cache: Cache = Cache()):  # noqa: B008
        self.location, self.cache = location, cache
        self.store = open_store(location, cache)
        self.manifest: Manifest = read_manifest(self.store, location)
        self.index: Index = read_index(self.store, self.manifest)
        self.grid = self.manifest.grid.grid()
        self.source_grid = self.grid.widened(self.manifest.source_margin)
        self.codec: FluxCodec = codec_of(self.manifest.codec.real, self.manifest.codec.step)
        self._blocks = self._spans()
        self.residual = lru_cache(_CACHED_RESIDUALS)(self._residual)

    def __reduce__(self) -> tuple[type[Release], tuple[str | Path, Cache]]:
        return type(self), (self.location, self.cache)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @cached_property
    def decoding(self) -> Decoding:
        rows = self.index.rows("basis")
        basis = npy_array(self.content(int(rows[0]))) if len(rows) else np.empty((0, self.source_grid.length))
        terms = self.manifest.codec.response_terms
        return Decoding(self.grid, self.source_grid, self.codec, basis.astype(np.float32), terms)

    def coded(self, row: int) -> Coded:
        """The codes of a real spectrum, or of an SED: int16 (source pixel,), scale and zero.

        Raises ReleaseError naming shard and sample where the bytes are missing or not those that were packed.
        """
        content, index = self.content(row), self.index
        if index["kind"][row] == "real":
            return self.codec.decode(content)
        return Coded(npy_array(content), np.array([index["scale"][row], index["zero"][row]], np.float32))

    @cached_property
    def drawn_by(self) -> np.ndarray:
        """(row,) texts that draws are keyed by: keys of samples, but stars where a generative core shares its draws."""
        index = self.index
        return np.where(index["kind"] == "generative", index["star"], index["key"])

    @cached_property
    def _responses(self) -> _Responses:
        index, rows = self.index, self.index.rows("response")
        numbers = {key: number for number, key in enumerate(index["key"][rows])}
        seen_through = np.array([numbers.get(key, -1) for key in index["response"]], np.int64)
        lost = np.flatnonzero(np.isin(index["kind"], ("simulated", "generative")) & (seen_through < 0))
        if len(lost):
            raise ReleaseError(
                f"{INDEX} says that sample {index['key'][lost[0]]!r} is seen through {index['response'][lost[0]]!r}, "
                f"which is no response of the release. Pack the release again."
            )
        coefficients = np.stack(index["coefficients"][rows]) if len(rows) else np.empty((0, 0), np.float32)
        return _Responses(rows, seen_through, coefficients)

    def coded_into(self, row: int, into: Coded) -> None:
        """Read what `coded` returns into contiguous arrays of its shapes; an SED goes there without a copy.

        Raises ReleaseError as `coded` does, and where an SED is of another shape.
        """
        index = self.index
        if index["kind"][row] == "real":
            into.codes[...], into.scale[...] = self.codec.decode(self.content(row))
            return
        header = np.empty(max(0, int(index["bytes"][row]) - into.codes.nbytes), np.uint8)
        self._read(row, [header, into.codes])
        if npy_header(header.tobytes()) != (into.codes.shape, into.codes.dtype):
            raise ReleaseError(
                f"sample {index['key'][row]} in shard {self.location}/{index['shard'][row]} has another length than "
                f"the samples before it. Pack the release again."
            )
        into.scale[...] = index["scale"][row], index["zero"][row]

    def coefficients(self, rows: np.ndarray) -> np.ndarray:
        """(sample, vector) float32 coefficients of the responses that simulated samples (sample,) are seen through."""
        return self._responses.coefficients[self._responses.seen_through[rows]]

    def residuals(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the basis misses of the responses of simulated samples (sample,), where it misses anything.

        Returns which samples (some,) these are, and (some, 3, source pixel) float16.
        """
        response = self._responses.rows[self._responses.seen_through[rows]]
        some = np.flatnonzero(self.index["bytes"][response])
        found = [self.residual(row) for row in response[some].tolist()]
        return some, np.stack(found) if found else np.empty((0, 3, 0), np.float16)

    def array(self, row: int) -> np.ndarray:
        """What a sample stands for, float32: (pixel,) standardised flux, (source pixel,) SED, or (3, source pixel)
        log R, log R2 / R and log V0 of a response, R in medians of itself. For inspection; batches take shorter ways.
        """
        kind = self.index["kind"][row]
        if kind == "response":
            coefficients = self.index["coefficients"][row]
            vectors = self.decoding.basis
            parts = of_terms(np.arange(len(coefficients)), self.decoding.terms)
            terms = np.stack([coefficients[part] @ vectors[part] for part in parts])
            return terms + self.residual(row) if self.index["bytes"][row] else terms
        if kind == "basis":
            return self.decoding.basis
        codes, scale = (torch.tensor(part)[None] for part in self.coded(row))
        if kind != "real":
            return spline_samples(codes.double() * scale[:, :1] + scale[:, 1:])[0].float().numpy()
        valid = self.codec.restore(codes, scale, int(self.grid.valid.sum()))[0].numpy()
        flux = np.zeros(self.grid.length, np.float32)
        flux[self.grid.valid] = valid
        return fill_invalid(flux, self.grid)

    def _residual(self, row: int) -> np.ndarray:
        return npy_array(self.content(row))

    def content(self, row: int) -> np.ndarray:
        """(byte,) uint8 of a row's member. Raises ReleaseError where they are missing or not those that were packed."""
        content = np.empty(int(self.index["bytes"][row]), np.uint8)
        self._read(row, [content])
        return content

    def _read(self, row: int, into: list[np.ndarray]) -> None:
        """Fill arrays, as large as a row's member together, with it.

        A damaged copy in the cache is dropped, told of, and fetched again once.
        """
        index = self.index
        shard, start, block = index["shard"][row], int(index["offset"][row]), self._blocks[index["block"][row]]
        memory = [part.data for part in into]
        damage = self._damage(row, into, self.store.read(shard, start, memory, block))
        if damage and self.store.forget(shard, block):
            warnings.warn(f"{damage} in the cache; it is fetched again.", stacklevel=2)
            damage = self._damage(row, into, self.store.read(shard, start, memory, block))
        if damage:
            raise ReleaseError(f"{damage}. Copy the shard anew, or pack the release again.")

    def _damage(self, row: int, parts: list[np.ndarray], got: int) -> str | None:
        """What is wrong with a row's member, of which so many bytes were got, None where nothing is."""
        index, expected = self.index, int(self.index["bytes"][row])
        if got < expected:
            parts = [np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])[:got]]
        found = crc32c(*parts)
        if got == expected and found == index["crc32c"][row]:
            return None
        cut = ": the shard is truncated" if got < expected else ""
        return (
            f"sample {index['key'][row]} in shard {self.location}/{index['shard'][row]} is damaged{cut}: expected "
            f"{expected} bytes with crc32c {index['crc32c'][row]:08x}, got {got} with {found:08x}"
        )

    def _spans(self) -> list[Span]:
        """What every block of the index spans in its shard."""
        block, stored = self.index["block"], self.index["bytes"] > 0
        first = np.full(block.max(initial=-1) + 1, np.iinfo(np.int64).max)
        end = np.zeros_like(first)
        np.minimum.at(first, block[stored], self.index["offset"][stored])
        np.maximum.at(end, block[stored], (self.index["offset"] + self.index["bytes"])[stored])
        return [Span(int(start), int(stop - start)) for start, stop in zip(first, end, strict=True)]

    def close(self) -> None:
        self.store.close()
