"""Which star a spectrum is of, and which version of it stands: what an archive remembers while it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from harps_dist.formats.versions import version_order
from preprocessing.catalog import SUN
from preprocessing.sky import is_place, unit_vectors

RADIUS_ARCSEC = 5.0
_CHORD = 2 * np.sin(np.radians(RADIUS_ARCSEC / 3600) / 2)
_NEIGHBOURS = tuple(product((-1, 0, 1), repeat=3))

Columns = Mapping[str, Any]  # one row of the archive's group `real`


class KnownStars:
    """The stars of an archive's spectra, each under the id that it came in with.

    A star is known again by its id in a catalogue, else by a name of its headers that no other star has, else by its
    place within 5 arcsec, unless a catalogue tells the two apart: by two TIC numbers, or at one place by two names. So
    a catalogue that learns of a star, or an observer or a catalogue that calls it otherwise, gives it no second id, by
    which it would have a second split. rows: what the archive holds.
    """

    def __init__(self, rows: Sequence[Columns]):
        self._by_id: dict[str, str] = {}
        self._by_name: dict[str, dict[str, str]] = {}  # to ids of stars, and those in a catalogue
        self._by_cell: dict[tuple[int, ...], list[tuple[np.ndarray, str, str]]] = {}
        for row in rows:
            self._remember(row)

    def settle(self, row: Columns) -> dict[str, Any]:
        """The row with the id that its star has in the archive; the star is remembered."""
        settled = {**row, "target": self._known(row) or row["target"]}
        self._remember(settled)
        return settled

    def _known(self, row: Columns) -> str | None:
        catalogued = row["catalogue_id"]
        if row["target"] == SUN:  # what reflects it was a star of its own once
            own = next((self._by_id[name] for name in _names(row) if name in self._by_id), None)
            if own is not None:
                return own
        if found := self._by_id.get(catalogued or row["target"]):
            return found
        for name in _names(row):
            named = [
                t for t, other in self._by_name.get(name, {}).items() if _kinds(catalogued, other) != ("tic", "tic")
            ]
            if len(named) == 1:
                return named[0]
        place = _place(row)
        if place is None:
            return None
        near = [
            (float(np.linalg.norm(place - other)), target)
            for cell in _cells(place, _NEIGHBOURS)
            for other, target, other_catalogued in self._by_cell.get(cell, ())
            if not _told_apart(catalogued, other_catalogued)
        ]
        distance, target = min(near, default=(np.inf, None))
        return target if distance <= _CHORD else None

    def _remember(self, row: Columns) -> None:
        target, catalogued = row["target"], row["catalogue_id"]
        self._by_id.setdefault(target, target)
        if catalogued:
            self._by_id.setdefault(catalogued, target)
        for name in _names(row):
            self._by_name.setdefault(name, {}).setdefault(target, catalogued)
        if (place := _place(row)) is not None:
            (cell,) = _cells(place, ((0, 0, 0),))
            there = self._by_cell.setdefault(cell, [])
            if not any(target == other and catalogued == known for _, other, known in there):
                there.append((place, target, catalogued))


class KnownVersions:
    """Which data products an archive holds, and by which version of the pipeline they were made.

    A product may come again, reprocessed: the newer version supersedes the older one, which stays in the archive.
    """

    def __init__(self, rows: Sequence[Columns]):
        self._newest: dict[str, tuple[str, str]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Columns) -> None:
        self._newest[row["key"]] = row["pipeline"], row["source"]

    def objection(self, key: str, pipeline: str) -> str | None:
        """Why a product is not wanted; None where it is new, or newer than what is there."""
        if key not in self._newest:
            return None
        there, source = self._newest[key]
        if version_order(pipeline) > version_order(there):
            return None
        made = "the same" if pipeline == there else "an older"
        return f"data product {key} is in the archive already, from {source}; this is {made} version ({pipeline})"

    def is_there(self, key: str, pipeline: str, source: str) -> bool:
        """Whether just this version came from just this file."""
        return self._newest.get(key) == (pipeline, source)


def _kinds(one: str, other: str) -> tuple[str, str]:
    """Whether the ids that catalogues give are numbers of the TIC, places, other names, or ''."""
    one, other = ("tic" if x.startswith("TIC ") else "place" if is_place(x) else x and "name" for x in (one, other))
    return one, other


def _told_apart(one: str, other: str) -> bool:
    """Whether two different ids, both of one kind, say that there are two stars at a place."""
    first, second = _kinds(one, other)
    return bool(first) and first == second


def _names(row: Columns) -> list[str]:
    return [name for name in row["names"].split(";") if name]


def _place(row: Columns) -> np.ndarray | None:
    """(3,) unit vector to where the spectrum was taken; None where that is not known."""
    known = np.isfinite([row["ra"], row["dec"]]).all()
    return unit_vectors(row["ra"], row["dec"]) if known else None


def _cells(place: np.ndarray, neighbours: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Cells as wide as the radius, in which what is within the radius is the same or a neighbour."""
    cell = np.floor(place / _CHORD).astype(int)
    return [tuple(int(part) for part in cell + step) for step in np.array(neighbours)]
