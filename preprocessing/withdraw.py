"""Spectra that no release shall take any more: tombstones in an archive from which nothing is ever removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import Archive
from harps_dist.intake import read_text
from harps_dist.text import cleaned, printable
from preprocessing.identity import newest_versions, version_order

MAX_LISTED_BYTES = 2**26  # a million ids


def withdraw_spectra(archive: Path, keys: Sequence[str], reason: str) -> int:
    """Withdraw the newest versions of data products and all older ones; a newer one, ingested later, stands again.

    Returns how many were not withdrawn before. Raises ArchiveError where one is not in the archive; none is withdrawn
    then.
    """
    if not keys:
        raise ArchiveError("no data product is named. Give their ids, as `python -m preprocessing withdraw A.zarr ID`.")
    with Archive.writing(archive, Archive(archive).grid) as writer:
        products, pipelines = writer.column("real", "key"), writer.column("real", "pipeline")
        newest = {products[row]: pipelines[row] for row in newest_versions(products, pipelines)}
        unknown = [key for key in keys if key not in newest]
        if unknown:
            few = cleaned(", ".join(unknown[:5])) + (" …" if len(unknown) > 5 else "")
            raise ArchiveError(
                f"{printable(archive)} holds no data product {few}, so "
                f"nothing was withdrawn. Check the ids: they are those of column `key` in its group `real`."
            )
        before = _withdrawn(writer)
        fresh = [key for key in dict.fromkeys(keys) if before.get(key, (None,))[0] != newest[key]]
        writer.append(
            "withdrawn", [({"key": key, "pipeline": newest[key], "reason": cleaned(reason)}, None) for key in fresh]
        )
    return len(fresh)


def read_listed(path: Path) -> list[str]:
    """Ids of data products from a file with one a line; raises ArchiveError where it cannot be read."""
    try:
        lines = read_text(path, "list of data products", ArchiveError, MAX_LISTED_BYTES).splitlines()
    except FileNotFoundError:
        raise ArchiveError(f"there is no list {printable(path)}. Write a file with one id a line.") from None
    return [line.strip() for line in lines if line.strip()]


def standing(archive: Archive) -> tuple[np.ndarray, dict[str, str]]:
    """Rows (n,) int64 of `real` whose spectra stand: the newest version of each product, unless it is withdrawn.

    And the withdrawn products with their reasons.
    """
    keys, pipelines = archive.column("real", "key"), archive.column("real", "pipeline")
    withdrawn = _withdrawn(archive)
    rows, reasons = [], {}
    for row in newest_versions(keys, pipelines):
        until, reason = withdrawn.get(keys[row], ("", None))
        if reason is None or version_order(pipelines[row]) > version_order(until):
            rows.append(row)
        else:
            reasons[keys[row]] = reason
    return np.array(rows, np.int64), reasons


def _withdrawn(archive: Archive) -> dict[str, tuple[str, str]]:
    """Version up to which, and why, by product; what was said last counts."""
    return {row["key"]: (row["pipeline"], row["reason"]) for row in archive.rows("withdrawn")}
