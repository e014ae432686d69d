"""The table of predictions: one row a spectrum, in astropy's QTable and in FITS, ECSV, CSV or Parquet.

Tested in tests/integration/test_predict_files.py.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.inference.anomaly import Orders
from harps_dist.inference.description import Description
from harps_dist.ownership import KEY, OutputKind, check, ecsv_meta, first_line, parquet_meta
from harps_dist.spectra.standardise import MINIMUM_COVERAGE, is_broken

if TYPE_CHECKING:
    from astropy.table import QTable

    from harps_dist.inference.predicted import Predicted

ENDINGS = (".fits", ".ecsv", ".csv", ".parquet")
FLAGS = {
    "coverage": f"less than {MINIMUM_COVERAGE:.0%} of the valid pixels carry data; gaps were bridged",
    "broken": "over 0.1 % of the pixels lie beyond 100 times the median flux; nothing is predicted",
    "low_snr": "S/N below that of 99 % of the training spectra",
    "outside_training_range": "a label lies outside what the model was trained on",
    "anomalous": "anomaly score above 1: unlike the spectra that calibrated the uncertainties, which promise nothing",
    "processed": "an image that IRAF or its kin rewrote since the pipeline made it; perhaps normalised",
}
DISAGREES = "fit_disagrees"  # a flag of tables that were compared with fits
Columns = dict[str, np.ndarray]


_LABEL = r"(?P<label>\w+),(?P=label)_sigma(,(?P=label)_lo\d+,(?P=label)_hi\d+)*"
_REST = (
    *("snr_measured", "flags", *(f"flag_{name}" for name in FLAGS), "fill", "anomaly", "distance"),
    *("chi2_worst", "chi2_excess", "chi2_order", "model_id"),
)


def _is_table(path: Path) -> bool:
    """By its metadata, or the names of all its columns."""
    ending = path.suffix.lower()
    if ending == ".csv":
        names = [name for name in (*OBSERVED, rf"({_LABEL},)*{_REST[0]}", *_REST[1:]) if name not in _ADDED]
        found = [name for name in first_line(path).split(",") if name not in _ADDED]
        return re.fullmatch(",".join(names) + r"(,latent_\d+)*", ",".join(found)) is not None
    if ending == ".fits":
        from astropy.io import fits

        meta = {name.lower() for name in fits.getheader(path, 1)}
    else:
        meta = set(ecsv_meta(path) if ending == ".ecsv" else parquet_meta(path))
    return {"model_id", "export", "release", KEY} <= meta


def _is_notes(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.keys() == {"metadata", "columns"} and {"model_id", "export", KEY} <= content["metadata"].keys()


PREDICTIONS = OutputKind("table of predictions", "-o", _is_table)
NOTES = OutputKind("description of a table of predictions", "-o", _is_notes)


class Field(NamedTuple):
    """What a column holds."""

    unit: str
    description: str


OBSERVED = {  # what is known of a spectrum before anything is predicted
    "dp_id": Field("", "data product id"),
    "object": Field("", "OBJECT, as typed by the observer"),
    "ra": Field("deg", "right ascension, J2000"),
    "dec": Field("deg", "declination, J2000"),
    "mjd": Field("d", "start of the exposure"),
    "exptime": Field("s", "exposure time"),
    "snr": Field("", "S/N of the header, median over the orders"),
    "berv_header": Field("km/s", "barycentric velocity of the Earth, header"),
    "airmass_header": Field("", "mean airmass, header"),
    "prog_id": Field("", "ESO programme"),
    "origin": Field("", "ORIGIN of the header"),
    "simulated": Field("", "what in the header says that no telescope took it; empty where nothing does"),
    "file": Field("", "where the spectrum was read from"),
    "sha256": Field("", "of that file; empty for a row of an archive or a release"),
    "product": Field("", "form of the spectrum: ADP, s1d, S1D_FINAL_A …; empty for a row of a release"),
    "pipeline": Field("", "version of the pipeline that made it"),
    "other_forms": Field("", "data product ids of the exposure's other forms, which have no row; semicolons between"),
}
_ADDED = (  # which tables of version 0.1 lack, or those without fits
    *("product", "pipeline", "other_forms", "flag_processed"),
    *(f"flag_{DISAGREES}", "fit_deviation", "fit_label"),
)


def fields_of(description: Description) -> dict[str, Field]:
    """Every column that a table of this model may have, in order; those of a comparison with fits only where asked."""
    fields = dict(OBSERVED)
    for label in description.labels:
        fields[label.name] = Field(label.unit, "predicted")
        fields[f"{label.name}_sigma"] = Field(label.unit, "standard deviation as the model has it, not calibrated")
        for level in levels_of(description):
            for end, word in (("lo", "lower"), ("hi", "upper")):
                text = f"{word} end of the calibrated {level:.0%} interval; NaN where too few stars calibrate it"
                fields[f"{label.name}_{end}{level * 100:.0f}"] = Field(label.unit, text)
    fields |= {
        "snr_measured": Field("", "S/N per pixel at the median flux, from the spectrum's own noise"),
        "flags": Field("", f"of {', '.join([*FLAGS, DISAGREES])}; comma-separated"),
        **{f"flag_{name}": Field("", text) for name, text in FLAGS.items()},
        f"flag_{DISAGREES}": Field("", "a label differs from the fit's by more than 3 combined standard deviations"),
        "fill": Field("", "share of the grid's valid pixels that carry data"),
        "anomaly": Field("", "score; above 1 for 1 % of spectra like those of the validation split"),
        "distance": Field("", "from the training spectra among the encoder's features, about 1 for one of them"),
        "chi2_worst": Field("", "reduced chi2 of the reconstruction in the echelle order with the largest excess"),
        "chi2_excess": Field("", "that chi2 over what noise and the model's usual misfit give"),
        "chi2_order": Field("", "number of that order, 0 where nothing is reconstructed"),
        "fit_deviation": Field("", "largest difference from the fit in combined standard deviations, NaN without one"),
        "fit_label": Field("", "label with that difference"),
        "model_id": Field("", "sha256 of the model's weights"),
        "latent": Field("", "bottleneck nodes, or leading components of the encoder's features"),
    }
    return fields


def columns_of(
    description: Description,
    predicted: Predicted,
    coverage: np.ndarray,
    flux: np.ndarray,
    latents: bool = True,
    broken: np.ndarray | bool = False,
    processed: np.ndarray | bool = False,
) -> Columns:
    """The columns that follow from predictions of n spectra. coverage: (n,) share of valid pixels with data. flux: (n,
    pixel) standardised. broken: (n,) which are known to be, besides those that show it. processed: (n,)
    which were rewritten."""
    broken = np.array([is_broken(one, description.grid.grid()) for one in flux], bool) | broken
    predicted = predicted.without(broken)
    facts, columns = description.labels, {}
    for number, label in enumerate(facts):
        value = predicted.labels[:, number]
        columns[label.name], columns[f"{label.name}_sigma"] = value, predicted.sigma[:, number]
        for level in levels_of(description):
            half = predicted.half_width[:, number, description.levels.index(level)]
            half = np.where(np.isfinite(half), half, np.nan)
            columns[f"{label.name}_lo{level * 100:.0f}"] = value - half
            columns[f"{label.name}_hi{level * 100:.0f}"] = value + half
    low, high = (np.array([getattr(label, end) for label in facts]) for end in ("low", "high"))
    flags: Columns = {
        "coverage": coverage < MINIMUM_COVERAGE,
        "broken": broken,
        "low_snr": predicted.snr < description.snr_low,
        "outside_training_range": np.any((predicted.labels < low) | (predicted.labels > high), axis=1),
        "anomalous": predicted.anomaly > 1,
        "processed": np.full(len(flux), False) | processed,
    }
    names = np.array(list(flags))
    columns["snr_measured"] = predicted.snr
    columns["flags"] = np.array([",".join(names[list(row)]) for row in zip(*flags.values(), strict=True)], object)
    columns |= {f"flag_{name}": values for name, values in flags.items()}
    columns |= {"fill": coverage, "anomaly": predicted.anomaly, "distance": predicted.distance}
    columns |= _worst_order(description, predicted)
    columns["model_id"] = np.full(len(predicted.labels), description.id, object)
    if latents:
        columns["latent"] = predicted.nodes
    return columns


def _worst_order(description: Description, predicted: Predicted) -> Columns:
    count, nothing = len(predicted.labels), np.full(len(predicted.labels), np.nan)
    if not predicted.excess.shape[1]:
        return {"chi2_worst": nothing, "chi2_excess": nothing, "chi2_order": np.zeros(count, np.int32)}
    worst, rows = np.argmax(predicted.excess, axis=1), np.arange(count)
    return {
        "chi2_worst": predicted.chi2[rows, worst],
        "chi2_excess": predicted.excess[rows, worst],
        "chi2_order": np.array(Orders.of(description.grid.grid()).numbers, np.int32)[worst],
    }


def levels_of(description: Description) -> list[float]:
    """Levels of the intervals in the table: the narrowest and the widest."""
    levels = description.levels
    return [levels[0], levels[-1]] if levels else []


def metadata_of(description: Description, digest: str) -> dict[str, str]:
    """What holds for a whole table: model, data, versions. digest: of the export, `Exported.digest`."""
    from importlib.metadata import version

    return {
        "model": description.name,
        "step": str(description.step),
        "model_id": description.id,
        "export": digest,
        "release": description.release_digest,
        "grid": description.grid.name,
        **{package: version(package) for package in ("harps_dist", "torch", "numpy", "astropy")},
    }


def to_table(columns: Columns, fields: Mapping[str, Field], metadata: Mapping[str, str]) -> QTable:
    """An astropy QTable with units, descriptions and metadata; a dict of the arrays where there is no astropy."""
    try:
        from astropy import units
        from astropy.table import QTable
    except ImportError:
        return columns  # type: ignore[return-value]
    table = QTable(meta=dict(metadata))
    for name, field in fields.items():
        if name in columns:
            values = columns[name].astype(str) if columns[name].dtype == object else columns[name]
            table[name] = values * units.Unit(field.unit) if field.unit else values
            table[name].info.description = field.description
    return table


def check_ending(path: Path) -> None:
    """Raises ConfigError where the table's name does not say a format."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"the ending of {path.name} says no format; end it in one of {', '.join(ENDINGS)}.")


def notes_path(table: Path) -> Path:
    """What a CSV has no room for."""
    return table.with_name(f"{table.name}.json")


def write_table(path: Path, columns: Columns, description: Description, metadata: Mapping[str, str]) -> None:
    """Write the table in the format of its ending, whole or not at all. metadata: `Exported.metadata`.

    CSV has no room for units: they and the metadata go into a file beside it that ends in .csv.json, and vectors become
    a column an element. FITS has no letters beyond ASCII: they are written as backslash escapes. Raises OutputError
    where something else is there.
    """
    check(path, PREDICTIONS)
    write_columns(path, columns, fields_of(description), metadata)


def write_columns(path: Path, columns: Columns, fields: Mapping[str, Field], metadata: Mapping[str, str]) -> None:
    """Write columns in the order of their fields, as `write_table` does, where it may be written."""
    ending = path.suffix.lower()
    fields = {name: field for name, field in fields.items() if name in columns}
    if ending == ".csv":
        columns, fields = _flat(columns, fields)
        notes = {"metadata": metadata, "columns": {name: field._asdict() for name, field in fields.items()}}
        with atomic_write(notes_path(path)) as aside:
            aside.write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif ending == ".fits":
        columns = {name: _ascii(values) if values.dtype == object else values for name, values in columns.items()}
    with atomic_write(path) as aside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units and names that FITS has no standard for; astropy reads them back
        if ending == ".parquet":
            _write_parquet(aside, columns, fields, metadata)
        else:
            form = "fits" if ending == ".fits" else f"ascii{ending}"
            to_table(columns, fields, metadata).write(aside, format=form)


def _ascii(values: np.ndarray) -> np.ndarray:
    return np.array([value.encode("ascii", "backslashreplace").decode() for value in values], object)


def _flat(columns: Columns, fields: Mapping[str, Field]) -> tuple[Columns, dict[str, Field]]:
    """Vectors as a column an element."""
    flat: Columns = {}
    flat_fields: dict[str, Field] = {}
    for name, field in fields.items():
        values = columns[name]
        parts = {name: values} if values.ndim == 1 else {f"{name}_{n:02d}": part for n, part in enumerate(values.T)}
        flat |= parts
        flat_fields |= dict.fromkeys(parts, field)
    return flat, flat_fields


def _write_parquet(path: Path, columns: Columns, fields: Mapping[str, Field], metadata: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, schema = [], []
    for name, field in fields.items():
        values = columns[name]
        array = pa.array(list(values)) if values.ndim > 1 else pa.array(values)
        arrays.append(array)
        schema.append(pa.field(name, array.type, metadata={"unit": field.unit, "description": field.description}))
    pq.write_table(pa.table(arrays, schema=pa.schema(schema, metadata=dict(metadata))), path)
