"""Spectra that no release shall take any more: tombstones in an archive from which nothing is ever removed.

Tested in tests/integration/test_growth.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import Archive
from harps_dist.formats.standing import _withdrawn
from harps_dist.formats.versions import newest_versions
from harps_dist.intake import read_text
from harps_dist.text import cleaned, printable

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
