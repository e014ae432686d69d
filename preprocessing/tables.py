"""Tables that users give, in whatever form they keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harps_dist.errors import HarpsDistError

FORMATS: dict[str, dict[str, Any]] = {
    ".csv": {"format": "ascii.csv", "guess": False, "encoding": "utf-8-sig"},
    ".ecsv": {"format": "ascii.ecsv"},
    ".fits": {"format": "fits", "hdu": 1},
    ".fit": {"format": "fits", "hdu": 1},
    ".vot": {"format": "votable"},
    ".xml": {"format": "votable"},
}


def read_table(path: Path, what: str, error: type[HarpsDistError], others: Mapping[str, Callable] | None = None) -> Any:
    """An astropy Table of CSV, ECSV, FITS, VOTable (each also .gz) or Parquet, by the name's ending.

    what: it is called so in messages. error: raised where it cannot be read. others: functions of a path that read
    files with other endings.
    """
    from astropy.table import Table

    others, kind = others or {}, Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if kind in others:
            return others[kind](path)
        if kind in FORMATS:
            return Table.read(path, **FORMATS[kind])
        if kind == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            return Table({name: table[name].to_numpy() for name in table.column_names})
    except (OSError, ValueError, TypeError, IndexError) as wrong:  # astropy's and pyarrow's for bad files
        raise error(f"{what} {path} cannot be read as {kind}: {wrong}. Check the file and its suffix.") from wrong
    known = ", ".join([*FORMATS, ".parquet", *others])
    raise error(f"{what} {path}: expected a name that ends in one of {known}, got {path.name!r}.")
