"""Catalogues as services and people write them, brought to our columns; every cell that is not used is counted.

Tested in tests/unit/test_catalog_files.py.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harps_dist.errors import HarpsDistError
from harps_dist.formats.tables import read_table, texts
from harps_dist.formats.text_tables import COMMENTS, has_names, read_ascii, read_text_table
from harps_dist.formats.units import UnitError, in_unit, number_of, plain, unit_named
from harps_dist.spectra.labels import CATALOGUED, LABEL
from harps_dist.spectra.quantities import in_range_each
from harps_dist.text import cleaned, printable

LONGEST_NAME = 1000  # characters, with all aliases

# Our columns and what catalogues call them, in lower case and order of preference; those of labels stand in the label
# table. `ra_j2000` goes before `ra`, which GR8 and Gaia give at their own epoch.
COLUMNS: dict[str, tuple[str, ...]] = {
    "object": ("object", "primary", "name", "star", "target", "main_id", "hostname", "star_name"),
    "aliases": ("aliases", "alias", "simbad", "ids"),
    "tic": ("tic", "tic_id", "ticid"),  # and a column `ID` where no column holds names, as in the TIC itself
    "hd": ("hd", "hd_name"),
    "hip": ("hip", "hip_name"),
    "gaia": ("source_id", "gaia_dr3", "gaia_dr3_id", "gaiadr3_source_id"),
    "ra_deg": ("ra_deg", "ra_j2000", "raj2000", "_raj2000", "ra", "ra_icrs", "_ra.icrs", "_ra", "radeg", "rah ram ras"),
    "dec_deg": (
        "dec_deg",
        "dec_j2000",
        "dej2000",
        "_dej2000",
        "dec",
        "de_icrs",
        "_de.icrs",
        "_de",
        "dedeg",
        "de- ded dem des",
    ),
    "pm_ra": ("pmra", "pm_ra", "pmra_cosdec", "sy_pmra"),  # times cos(dec), as all that are named give it
    "pm_dec": ("pmdec", "pmde", "pm_dec", "sy_pmdec"),
    "epoch": ("ref_epoch", "epoch"),
    **{name: LABEL[name].columns for name in CATALOGUED},
}
TEXTS = ("object", "aliases", "tic", "hd", "hip", "gaia")
UNITS = {name: LABEL[name].unit for name in CATALOGUED} | {
    "ra_deg": "deg",
    "dec_deg": "deg",
    "pm_ra": "mas/yr",
    "pm_dec": "mas/yr",
    "epoch": "yr",
}
# Columns of CDS that hold the parts of a position together.
PARTS = ("RAh RAm RAs", "DE- DEd DEm DEs")
AT_2000 = ("ra_j2000", "raj2000", "_raj2000")  # columns of right ascension that are at epoch 2000 whatever others say
GAIA_EPOCH = 2016.0  # of DR3
ATMOSPHERIC = ("teff", "logg", "mh")
_NINES = [float(f"{'9' * whole}{end}") for whole in (2, 3, 4, 5) for end in ("", ".9", ".99")]
_GOOD_FLAGS = re.compile(r"[01]{13}.*")  # flags_gspspec of Recio-Blanco et al. (2023): 13 of quality, 0 best
_GTO_COLUMNS = ("object", "snr", "teff", "logg", "vt", "[fe/h]")  # HARPS-GTO list of 1111 stars: no header line
_SEXAGESIMAL = re.compile(r"[+-]?\d+(?:[: ]+\d+[: ]+\d+(\.\d*)?|[hd°] ?\d+[m'′] ?\d+(\.\d*)?[s\"″]?)")
_WITH_UNIT = re.compile(r"(.*[^\s\[(])\s*[\[(]([^\])]+)[\])]")  # 'Teff [K]'
_ERRORS = ("e_{}", "e{}", "{}_error", "{}_err", "{}err", "{}err1", "{}_sigma", "sigma_{}")  # names of columns of errors
_MINUS = ("-", "\N{MINUS SIGN}")
_EMPTY = ("", "-", "--", "---", "~", "nan", "null", "none", "n/a", "...", "…")


class CatalogError(HarpsDistError):
    """A catalogue that cannot be read, or holds nothing to match or to label by."""


class CatalogFile(NamedTuple):
    """A catalogue in our columns.

    columns: by the keys of COLUMNS; texts '' and numbers NaN where missing. counts: cells that are not used, by why.
    used: our columns, and those of the file that they come from. unused: the file's others. errors: standard deviations
    of labels, by label and in its unit, of those that have a column of them; NaN where missing.
    """

    columns: dict[str, Any]
    counts: Counter[str]
    used: dict[str, str]
    unused: tuple[str, ...]
    errors: dict[str, np.ndarray]


def read_catalog(path: Path, mapping: Mapping[str, str]) -> CatalogFile:
    """Read CSV, TSV, ECSV, FITS, VOTable (each also .gz), Parquet, or .dat and .txt.

    mapping: our column name (a key of COLUMNS) to the file's, where COLUMNS does not choose right.
    Raises CatalogError where the file cannot be read, or has no label or nothing to match by.
    """
    others = {".dat": _read_text, ".txt": _read_text}
    table = read_table(path, "catalogue", CatalogError, others)
    counts = Counter({"lines of the catalogue commented out": table.meta.get(COMMENTS, 0)})
    _join_parts(table, counts)
    chosen = _chosen(table, mapping, path)
    columns: dict[str, Any] = {}
    for ours, name in chosen.items():
        columns[ours] = _texts(table[name]) if ours in TEXTS else _numbers(table[name], ours, counts)
    used = dict(chosen)
    if not {*ATMOSPHERIC} & mapping.keys():
        used |= _by_gspspec(table, columns, chosen, counts)
    _without_redshifts(table, columns, chosen, counts)
    if chosen.get("ra_deg", "").lower() in AT_2000:
        columns["epoch"] = np.full(len(table), 2000.0)
        used.pop("epoch", None)
    elif "epoch" not in columns and chosen.get("gaia", "").lower() == "source_id":
        columns["epoch"] = np.full(len(table), GAIA_EPOCH)
    order = _preferred(table)
    columns = {
        ours: [values[row] for row in order] if ours in TEXTS else values[order] for ours, values in columns.items()
    }
    errors = {ours: values[order] for ours, values in _errors(table, chosen).items()}
    taken = {*PARTS, *(part for name in used.values() for part in (name, *(name.split() if name in PARTS else ())))}
    return CatalogFile(columns, counts, used, tuple(name for name in table.colnames if name not in taken), errors)


def _read_text(text: str) -> Any:
    """A table with blanks or marks between columns; without a line of names it is taken for the HARPS-GTO list."""
    if has_names(text):
        return read_text_table(text)
    first = next(line for line in io.StringIO(text) if line.strip() and not line.startswith("#")).split()
    if len(first) != len(_GTO_COLUMNS):
        raise CatalogError(
            f"the catalogue has {len(first)} columns and no header line; without one only the HARPS-GTO "
            f"columns {' '.join(_GTO_COLUMNS)} are known. Add a header line."
        )
    return read_ascii(text, "no_header", names=_GTO_COLUMNS)


def _join_parts(table: Any, counts: Counter[str]) -> None:
    """Add columns [deg] of positions whose hours or degrees, minutes and seconds stand in columns of their own.

    The last part of a position may have decimals. A position that lacks a part is missing, as is one of 0 degrees whose
    sign cannot be told: a column of whole numbers has lost that of -00.
    """
    for joined in PARTS:
        *sign, whole, minutes, seconds = joined.split()
        if not {whole, minutes} <= {*table.colnames}:
            continue
        names = [name for name in (whole, minutes, seconds) if name in table.colnames]
        signs = {*sign} & {*table.colnames}
        units, *sixtieths = parts = [_of_texts(_texts(table[name]), name, None, counts)[0] for name in names]
        south = np.signbit(units)
        degrees = np.abs(units)
        for power, part in enumerate(sixtieths, 1):
            degrees = degrees + part / 60**power
        impossible = np.zeros(len(units), bool)  # of a part; what they add up to is judged as other positions are
        for part in sixtieths:
            impossible |= (part < 0) | (part >= 60)
        for part in parts[:-1]:
            impossible |= np.isfinite(part) & (part != np.floor(part))
        for name in signs:
            south |= np.array([text.startswith(_MINUS) for text in _texts(table[name])])
        unsigned = (units == 0) & (bool(sign) and not signs and table[whole].dtype.kind in "iu")
        _count(counts, " ".join(names), "impossible", impossible)
        _count(counts, " ".join(names), "0 without a sign", unsigned & ~impossible)
        degrees = np.where(impossible | unsigned, np.nan, np.where(south, -degrees, degrees))
        table[joined] = degrees if sign else 15 * degrees
        table[joined].unit = "deg"


def _chosen(table: Any, mapping: Mapping[str, str], path: Path) -> dict[str, str]:
    """Our columns to the file's. A unit in brackets behind a column's name is taken for its unit."""
    unknown = [*(mapping.keys() - COLUMNS.keys()), *(set(mapping.values()) - set(table.colnames))]
    if unknown:
        raise CatalogError(
            f"catalogue {printable(path)}: the mapping has {cleaned(', '.join(sorted(unknown)))}, but our columns are "
            f"{', '.join(COLUMNS)} and the file's are {cleaned(', '.join(table.colnames))}. Correct --columns."
        )
    actual = {name.lower(): name for name in reversed(table.colnames)}
    known = {name for names in COLUMNS.values() for name in names}
    for name in reversed(table.colnames):
        if name.lower() not in known and (found := _WITH_UNIT.fullmatch(name)):
            actual.setdefault(found[1].lower(), name)
    chosen = {
        ours: actual[first] for ours, names in COLUMNS.items() if (first := next((n for n in names if n in actual), ""))
    }
    if "ID" in table.colnames and not {"object", "tic"} & chosen.keys():
        chosen["tic"] = "ID"
    chosen |= mapping
    identity = {"object", "tic", "hd", "hip"} & chosen.keys() or {"ra_deg", "dec_deg"} <= chosen.keys()
    if not identity or not set(CATALOGUED) & chosen.keys():
        raise CatalogError(
            f"catalogue {printable(path)}: expected names, TIC numbers or coordinates and at least one of "
            f"{', '.join(CATALOGUED)}, got columns {cleaned(', '.join(table.colnames))}. Say which is which, as with "
            f"--columns teff=YOURS."
        )
    for name in chosen.values():
        if table[name].unit is None and name.lower() not in known and (found := _WITH_UNIT.fullmatch(name)):
            table[name].unit = unit_named(found[2])
    return chosen


def _by_gspspec(table: Any, columns: dict[str, Any], chosen: dict[str, str], counts: Counter[str]) -> dict[str, str]:
    """Take a star's labels from Gaia's GSP-Spec where its flags are good, else from GSP-Phot: all three from one.

    Returns the columns that were taken besides.
    """
    actual = {name.lower(): name for name in table.colnames}
    spec = {name: actual[f"{name}_gspspec"] for name in ATMOSPHERIC if f"{name}_gspspec" in actual}
    endings = {name: chosen.get(name, "_gspspec").lower().rpartition("_")[2] for name in ATMOSPHERIC}
    if not spec or set(endings.values()) - {"gspphot", "gspspec"}:
        return {}
    values = {name: _numbers(table[column], name, counts) for name, column in spec.items()}
    present = np.any([np.isfinite(column) for column in values.values()], axis=0)
    good = present
    if flags := actual.get("flags_gspspec", ""):
        good = present & [bool(_GOOD_FLAGS.fullmatch(text.zfill(41))) for text in _texts(table[flags])]
    for name in ATMOSPHERIC:
        missing = np.full(len(table), np.nan)
        phot = columns[name] if endings[name] == "gspphot" else missing
        found = values.get(name, missing)
        columns[name] = np.where(good, found, phot)
        _count(counts, f"{name}_gspspec", "flagged by flags_gspspec", np.isfinite(found) & ~good)
        _count(counts, f"{name}_gspphot", "of a star that has GSP-Spec's", np.isfinite(phot) & good)
    return {f"{name} (gspspec)": column for name, column in spec.items()} | ({"flags": flags} if flags else {})


def _errors(table: Any, chosen: Mapping[str, str]) -> dict[str, np.ndarray]:
    """(rows,) standard deviations of labels, by label, from columns that are named after the label's own."""
    actual = {_without_unit(name).lower(): name for name in table.colnames}
    actual |= {name.lower(): name for name in table.colnames}
    errors = {}
    for ours in filter(chosen.__contains__, CATALOGUED):
        of_label = chosen[ours].lower()
        of_label = of_label if of_label in COLUMNS[ours] else _without_unit(of_label)
        bare, (first, _, scale) = re.sub("_(kms|k)$", "", of_label), of_label.partition("_")
        names = [form.format(name) for name in (of_label, bare) for form in _ERRORS] + [f"{first}_error_{scale}"]
        if found := next((actual[name] for name in names if name in actual), ""):
            column, bracket = table[found], _WITH_UNIT.fullmatch(found)
            if column.unit is None:
                own = bracket if found.lower() not in names else None
                column.unit = unit_named(own[2]) if own else table[chosen[ours]].unit
            values = _numbers(column, ours, Counter())
            errors[ours] = np.where(values > 0, values, np.nan)
    return errors


def _without_unit(name: str) -> str:
    """'Teff' of 'Teff [K]'."""
    return found[1] if (found := _WITH_UNIT.fullmatch(name)) else name


def _without_redshifts(table: Any, columns: dict[str, Any], chosen: dict[str, str], counts: Counter[str]) -> None:
    """Leave out what SIMBAD's rvz_radvel holds of redshifts, as rvz_type says."""
    kinds = {name.lower(): name for name in table.colnames}.get("rvz_type")
    if kinds and chosen.get("rv", "").lower() == "rvz_radvel":
        redshift = np.array([kind.lower() == "z" for kind in _texts(table[kinds])], bool)
        _count(counts, "rv", "a redshift", redshift & np.isfinite(columns["rv"]))
        columns["rv"] = np.where(redshift, np.nan, columns["rv"])


def _preferred(table: Any) -> np.ndarray:
    """Rows in their order, those that the NASA Exoplanet Archive prefers among several of a star first."""
    if "default_flag" not in table.colnames:
        return np.arange(len(table))
    return np.argsort([text not in ("1", "1.0", "True") for text in _texts(table["default_flag"])], kind="stable")


def _texts(column: Any) -> list[str]:
    return [text[:LONGEST_NAME].strip() for text in texts(column)]


def _numbers(column: Any, ours: str, counts: Counter[str]) -> np.ndarray:
    """(rows,) float64 in our unit, NaN where missing; sexagesimal texts become degrees."""
    unit, name = getattr(column, "unit", None), ours.removesuffix("_deg")
    if column.dtype.kind in "fiu":
        values = plain(column).astype(np.float64)
        in_degrees = np.zeros(len(values), bool)
    else:
        values, in_degrees = _of_texts(_texts(column), ours, unit, counts)
    try:
        return np.where(in_degrees, values, in_unit(values, unit, UNITS[ours], ours))
    except UnitError:
        _count(counts, name, f"in {cleaned(str(unit), 40)}, expected {UNITS[ours] or 'no unit'}", np.isfinite(values))
        return np.full(len(values), np.nan)


def _of_texts(texts: list[str], ours: str, unit: Any, counts: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) numbers of texts, NaN where there is none, and which of them are in degrees already."""
    from astropy.coordinates import Angle

    values, in_degrees, no_number = np.full(len(texts), np.nan), np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    hours = ours == "ra_deg" and str(unit) != "deg"
    for row, text in enumerate(texts):
        try:
            if ours in ("ra_deg", "dec_deg") and _SEXAGESIMAL.fullmatch(text.replace(",", ".")):
                spelt = text.replace(",", ".").replace("\N{MINUS SIGN}", "-")
                values[row] = Angle(spelt, unit="hourangle" if hours else "deg").deg
                in_degrees[row] = True
            else:
                values[row] = number_of(text.removeprefix("J") if ours == "epoch" else text)
        except ValueError:  # catalogues have many words for missing
            no_number[row] = text.lower() not in _EMPTY
    _count(counts, ours.removesuffix("_deg"), "no number", no_number)
    return values, in_degrees


def _count(counts: Counter[str], name: str, why: str, which: np.ndarray) -> None:
    if number := int(np.sum(which)):
        counts[f"catalogue's {name} {why}"] += number


def parse_columns(text: str) -> dict[str, str]:
    """'teff=Teff_spec,rv=v_r' to our columns and the file's. Raises CatalogError where it is of another form."""
    pairs = [part.partition("=") for part in text.split(",")]
    short = {name.removesuffix("_deg"): name for name in COLUMNS}
    if wrong := [ours for ours, _, theirs in pairs if not (ours.strip() and theirs.strip())]:
        raise CatalogError(
            f"columns are given as teff=YOURS,logg=YOURS, but there is {cleaned(wrong[0]) or 'nothing'}."
        )
    return {short.get(ours.strip(), ours.strip()): theirs.strip() for ours, _, theirs in pairs}


def column_lines(used: Mapping[str, str], unused: tuple[str, ...]) -> list[str]:
    """What a catalogue's columns were taken for, and what was not used, for people."""
    if not used:
        return []
    taken = ", ".join(f"{ours.removesuffix('_deg')} from {name}" for ours, name in used.items())
    others = f"; not used: {', '.join(unused)}" if unused else ""
    lines = [cleaned(f"catalogue: {taken}{others}", 2000)]
    if not {"object", "tic", "hd", "hip"} & used.keys():
        lines.append(
            "the catalogue has no column of names: stars are matched by position alone. Say which it is, as with "
            "--columns object=YOURS."
        )
    return lines


def without_marks(columns: dict[str, np.ndarray], counts: Counter[str]) -> dict[str, np.ndarray]:
    """Labels (rows,) by name without the numbers that catalogues write where they know none: nines, and rows of zeros.

    Beside a temperature of 0 nothing was measured; beside a gravity of 0 no other 0 was. Nines are marks where no star
    has such a value, or where they repeat. What is out of physical range stays, and is counted.
    """
    zero = {name: values == 0 for name, values in columns.items()}
    cold, floating = (zero.get(name, np.False_) for name in ("teff", "logg"))
    found = {}
    for name, values in columns.items():
        possible = in_range_each(name, values)
        _count(counts, name, "out of physical range", ~possible & ~np.isnan(values))
        unknown = possible & (zero[name] & (cold | floating) | (cold & (name in ATMOSPHERIC)))
        _count(counts, name, "beside a temperature or gravity of 0, which stands for unknown", unknown)
        nines = possible & np.isin(np.abs(values), _NINES)
        different, counted = np.unique(values[nines], return_counts=True)
        mark = nines & (np.isin(values, different[counted > 1]) | ((name == "rv") & (np.abs(values) >= 900)))
        _count(counts, name, "a mark of missing, such as -999", mark)
        found[name] = np.where(unknown | mark, np.nan, values)
    return found
