"""Tables of labels to simulate: one row a spectrum, checked before anything is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.errors import ConfigError
from harps_dist.inference.simulated import Request
from harps_dist.inference.simulator import Simulator
from harps_dist.spectra.labels import LABEL
from harps_dist.spectra.quantities import expected, in_range_each
from harps_dist.text import cleaned, printable

LONGEST_NAME = 100  # characters of an object's name
OBJECT, SNR, SEED = "object", "snr", "seed"


def read_request(
    path: Path,
    simulator: Simulator,
    fixed: dict[str, float] | None = None,
    unknown: str | list[float] = "zero",
    snr: float | None = None,
    seed: int = 0,
    extrapolate: bool = False,
) -> Request:
    """The request that a table makes: CSV, ECSV, FITS, VOTable or Parquet, by the name's ending.

    Columns: labels of the model (in another unit where the table says so), unknown factors u1, u2, …, snr, seed and
    object, whatever of them there is, in capitals or not. The others are as for `Simulator.request`: what holds for all
    rows where the table has no column of it; fixed: labels by name.
    Raises ConfigError where the table cannot be read, has no rows, a column that means nothing, or one that stands in
    the command too, and for a value that is missing or no number, with its row.
    """
    from harps_dist.formats.tables import read_table

    table, where = read_table(path, "table of labels", ConfigError), f"table of labels {printable(path)}"
    if not len(table):
        raise ConfigError(f"{where} has no rows. Give one row a spectrum.")
    columns = {name.strip().lower(): name for name in table.colnames}
    known = (*simulator.nodes, SNR, SEED, OBJECT)
    if strange := [name for lower, name in columns.items() if lower not in known]:
        raise ConfigError(
            f"{where}: columns {cleaned(', '.join(strange))} mean nothing to {simulator.name}, "
            f"which knows {', '.join(known)}. Rename them or leave them out."
        )
    numbers = {name: _numbers(table[columns[name]], name, where) for name in columns if name != OBJECT}
    twice = [name for name in fixed or {} if name in numbers]
    factors = [name for name in numbers if name in simulator.nodes and name not in LABEL]
    twice += ["u"] * bool(factors and unknown != "zero") + [SNR] * bool(SNR in numbers and snr is not None)
    if twice:
        raise ConfigError(f"{', '.join(twice)} is given for all rows, and {where} has it too. Leave one of them out.")
    values = [numbers.get(name, np.zeros(len(table))) for name in simulator.nodes if name not in LABEL]
    every = fixed or {}
    labels = {name: numbers.get(name, every.get(name)) for name in simulator.labels if name in {*numbers, *every}}
    seeds = numbers.get(SEED)
    if seeds is not None and not ((seeds == np.rint(seeds)) & in_range_each("seed", seeds)).all():
        raise ConfigError(f"{where}: seeds are whole numbers of {expected('seed')}. Round them.")
    return simulator.request(
        labels | {name: value for name, value in every.items() if name not in simulator.labels},
        unknown=np.stack(values, axis=1) if factors else unknown,
        snr=numbers.get(SNR, snr),
        seed=seed + np.arange(len(table)) if seeds is None else seeds.astype(np.int64),
        names=_names(table[columns[OBJECT]]) if OBJECT in columns else np.full(len(table), "", object),
        extrapolate=extrapolate,
    )


def _numbers(column: Any, name: str, where: str) -> np.ndarray:
    """(rows,) float64 in the label's unit; raises ConfigError with the row of what is missing or no number."""
    from harps_dist.formats.units import UnitError, in_unit, number_of, plain

    hidden = np.broadcast_to(getattr(column, "mask", False), len(column))
    values = np.full(len(column), np.nan)
    if column.dtype.kind in "fiu":
        values = plain(column).astype(np.float64)
    else:
        for row, text in enumerate(np.ma.getdata(column).tolist()):
            try:
                values[row] = np.nan if hidden[row] else number_of(_number_text(text))
            except (TypeError, ValueError):
                raise ConfigError(_wrong(where, row, name, cleaned(repr(text), 100))) from None
    usable = ~np.isnan(values) if name == SNR else np.isfinite(values)  # an infinite S/N: no noise
    if not usable.all():
        row = int(np.argmin(usable))
        raise ConfigError(_wrong(where, row, name, "nothing" if hidden[row] else str(values[row])))
    try:
        return in_unit(values, getattr(column, "unit", None), LABEL[name].unit if name in LABEL else "", name)
    except UnitError as error:
        raise ConfigError(f"{where}: {error}") from None


def _number_text(value: Any) -> str:
    """The text of a number; raises ValueError for truth values, which would be 0 and 1."""
    if isinstance(value, bool | np.bool_):
        raise ValueError("a truth value is no number")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _wrong(where: str, row: int, name: str, found: str) -> str:
    return f"{where}, row {row + 1}: {name} is {found}, expected a number. Fill it in, or leave the column out."


def _names(column: Any) -> np.ndarray:
    """(rows,) names of objects."""
    from harps_dist.formats.tables import texts

    return np.array([cleaned(text, LONGEST_NAME) for text in texts(column)], dtype=object)
