"""Tables that users give, in whatever form they keep them.

Tested in tests/unit/test_hostile_tables.py.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.errors import HarpsDistError, Interrupted
from harps_dist.formats.hdus import open_hdus
from harps_dist.formats.records import RefusedError
from harps_dist.formats.text_tables import MAX_COLUMNS, read_ascii, read_text_table
from harps_dist.formats.units import unit_named
from harps_dist.intake import IntakeError, named, read_file
from harps_dist.text import printable

MAX_BYTES = 512 * 2**20  # unpacked, and as columns in memory
_ROWS_AT_ONCE = 4096
_UNIT_KEYS = (b"unit", b"units", b"UNIT", b"Unit")  # of a column's metadata in Parquet


def read_table(
    path: Path, what: str, error: type[HarpsDistError], others: Mapping[str, Callable[[str], Any]] | None = None
) -> Any:
    """An astropy Table of CSV, TSV, ECSV, FITS, VOTable (each also .gz) or Parquet, by the name's ending, with units.

    what: it is called so in messages. error: raised where it cannot be read, or is larger than `MAX_BYTES`. others:
    what makes a Table of the text of files with other endings.
    """
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    as_text: dict[str, Callable[[str], Any]] = {
        ".csv": read_text_table,
        ".tsv": read_text_table,
        ".ecsv": partial(read_ascii, kind="ecsv"),
        **(others or {}),
    }
    as_bytes = {".fits": _fits, ".fit": _fits, ".vot": _votable, ".xml": _votable, ".parquet": _parquet}
    if kind not in {**as_text, **as_bytes}:
        known = ", ".join([*as_text, *as_bytes])
        raise error(f"{what} {printable(path)}: expected a name that ends in one of {known}, got {kind!r}.")
    try:
        content = read_file(path, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy warns of what it mends
            table = as_bytes[kind](content) if kind in as_bytes else as_text[kind](content.decode("utf-8-sig"))
    except (MemoryError, Interrupted, error):
        raise
    except Exception as wrong:  # astropy and pyarrow raise nearly anything for bad files
        why = str(wrong) if isinstance(wrong, IntakeError | RefusedError) else named(wrong)
        raise error(
            f"{what} {printable(path)} cannot be read as {kind}: {why}. Check the file and its suffix."
        ) from wrong
    if several := [name for name in table.colnames if table[name].ndim > 1]:
        raise error(f"{what} {printable(path)}: expected one value a row, got several in {printable(several[0])}.")
    return table


def texts(column: Any) -> list[str]:
    """The texts of a table's column, '' where one is missing; bytes, as FITS has them, are decoded."""
    hidden = np.broadcast_to(getattr(column, "mask", False), len(column))
    return [
        "" if hide or value is None or value != value else _text(value)
        for value, hide in zip(np.ma.getdata(column).tolist(), hidden, strict=True)
    ]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _fits(content: bytes) -> Any:
    from astropy.table import Table

    with open_hdus(content, most=MAX_BYTES) as hdus:
        return Table.read(hdus[1])


def _votable(content: bytes) -> Any:
    from astropy.table import Table

    return Table.read(io.BytesIO(content), format="votable")


def _parquet(content: bytes) -> Any:
    """Read by rows, since a column that repeats itself may be a million times larger than its file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from astropy.table import Table

    file, batches, size = pq.ParquetFile(pa.BufferReader(content)), [], 0
    if len(file.schema_arrow) > MAX_COLUMNS:
        raise IntakeError("too_large", f"expected at most {MAX_COLUMNS} columns, got {len(file.schema_arrow)}")
    for batch in file.iter_batches(_ROWS_AT_ONCE):
        size += batch.nbytes
        if size > MAX_BYTES:
            raise IntakeError("too_large", f"expected at most {MAX_BYTES} bytes unpacked, got more")
        batches.append(batch)
    table = pa.Table.from_batches(batches, file.schema_arrow)
    found = Table({name: _column(table[name]) for name in table.column_names})
    for name in found.colnames:
        said = table.schema.field(name).metadata or {}
        if unit := next((said[key].decode("utf-8", "replace") for key in _UNIT_KEYS if key in said), ""):
            found[name].unit = unit_named(unit)
    return _as_astropy_wrote_it(found, (table.schema.metadata or {}).get(b"table_meta_yaml", b"").decode())


def _column(values: Any) -> Any:
    """A column of Parquet, what is null in it masked."""
    from astropy.table import MaskedColumn

    numbers = values.to_numpy()
    if numbers.dtype.kind not in "fiub" or not values.null_count:
        return numbers
    return MaskedColumn(numbers, mask=values.is_null().to_numpy())


def _as_astropy_wrote_it(table: Any, header: str) -> Any:
    """The Table with the units and masks that astropy keeps in the metadata of Parquet and in columns beside."""
    from astropy.table import meta, serialize

    if not header:
        return table
    said = meta.get_header_from_yaml(header.split("\n"))
    table.meta = dict(said.get("meta", {}))
    for column in said["datatype"]:
        if column["name"] in table.colnames and column.get("unit"):
            table[column["name"]].unit = unit_named(str(column["unit"]))
    return serialize._construct_mixins_from_columns(table)  # the one way to what `Table.write` takes apart
