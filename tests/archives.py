"""Archives made anew with something changed, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.formats.archive import Archive
from harps_dist.formats.columns import DATA, SCHEMAS
from harps_dist.spectra.grid import Grid

STRETCHED = "stretched"  # in the place of a column: of half the row's array, so that its median may stay
Changes = Mapping[tuple[str, int], Mapping[str, Any]]  # of a row of a group: new values, or functions of the old ones


def remade(old: Path, new: Path, changes: Changes = {}, grid: Grid | None = None) -> Path:  # noqa: B006
    """An archive with the rows of another, some changed; one whose key becomes '' is left out."""
    source = Archive(old)
    with Archive.writing(new, grid or source.grid) as writer:
        for group in SCHEMAS:
            rows = []
            for number, row in enumerate(source.rows(group)):
                data = source.data(group, number).copy() if group in DATA else None
                found = apply(changes.get((group, number), {}), row, data)
                if found["key"]:
                    rows.append((found, data))
            writer.append(group, rows)
    return new


def altered(path: Path, changes: Changes) -> Archive:
    """An archive opened for reading that gives something else than its files."""
    archive = Archive(path)
    column, data = archive.column, archive.data

    def other_column(group: str, name: str) -> np.ndarray:
        values = column(group, name).copy()
        for (of, number), change in changes.items():
            if of == group and name in change:
                values[number] = apply(change, {name: values[number]}, None)[name]
        return values

    def other_data(group: str, number: int) -> np.ndarray:
        values = data(group, number).copy()
        apply(changes.get((group, number), {}), {}, values)
        return values

    archive.column, archive.data = other_column, other_data  # type: ignore[method-assign]
    return archive


def apply(change: Mapping[str, Any], row: dict[str, Any], data: np.ndarray | None) -> dict[str, Any]:
    if data is not None and STRETCHED in change:
        data[..., : data.shape[-1] // 2] *= change[STRETCHED]
    made: Callable[[str, Any], Any] = lambda name, new: new(row[name]) if callable(new) else new  # noqa: E731
    return row | {name: made(name, new) for name, new in change.items() if name in row}
