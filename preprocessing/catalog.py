"""Stellar labels from catalogues, and the resolved identity of a star.

A spectrum is matched by TIC number, then by name, then by position. The target id so found decides which
split a star belongs to and must not hang on how an observer spelt the name.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.errors import HarpsDistError
from harps_dist.formats.records import SpectrumRecord
from harps_dist.formats.tables import read_ascii, read_table
from harps_dist.spectra.labels import CATALOGUED, LABEL
from harps_dist.spectra.quantities import in_range, in_range_each
from harps_dist.text import printable

LONGEST_NAME = 1000  # characters, with all aliases

# Our columns and what catalogues call them, in lower case and order of preference; those of labels stand in the label
# table. `ra_j2000` goes before `ra`, which GR8 and Gaia give at their own epoch.
COLUMNS: dict[str, tuple[str, ...]] = {
    "object": ("object", "primary", "name", "star", "target", "main_id"),
    "aliases": ("aliases", "alias", "simbad"),
    "tic": ("tic", "tic_id", "ticid"),  # and a column `ID` where no column holds names, as in the TIC itself
    "hd": ("hd",),
    "hip": ("hip",),
    "ra_deg": ("ra_deg", "ra_j2000", "raj2000", "_raj2000", "ra"),
    "dec_deg": ("dec_deg", "dec_j2000", "dej2000", "_dej2000", "dec"),
    **{name: LABEL[name].columns for name in CATALOGUED},
}
_TEXTS = ("object", "aliases", "tic", "hd", "hip")
_UNITS = {name: LABEL[name].unit for name in CATALOGUED if LABEL[name].unit != "dex"} | {
    "ra_deg": "deg",
    "dec_deg": "deg",
}
_GTO_COLUMNS = ("object", "snr", "teff", "logg", "vt", "[fe/h]")  # HARPS-GTO list of 1111 stars: no header line

_GREEK = {  # as SIMBAD shortens them; the others are too short to be shortened
    "ALPHA": "ALF", "ALP": "ALF", "BETA": "BET", "GAMMA": "GAM", "DELTA": "DEL", "EPSILON": "EPS",
    "ZETA": "ZET", "THETA": "TET", "IOTA": "IOT", "KAPPA": "KAP", "LAMBDA": "LAM", "LAMDA": "LAM",
    "XI": "KSI", "OMICRON": "OMI", "SIGMA": "SIG", "UPSILON": "UPS", "OMEGA": "OME",
}  # fmt: skip
_CONSTELLATIONS = (
    "AND ANT APS AQL AQR ARA ARI AUR BOO CAE CAM CAP CAR CAS CEN CEP CET CHA CIR CMA CMI CNC COL COM CRA "
    "CRB CRT CRU CRV CVN CYG DEL DOR DRA EQU ERI FOR GEM GRU HER HOR HYA HYI IND LAC LEO LEP LIB LMI LUP "
    "LYN LYR MEN MIC MON MUS NOR OCT OPH ORI PAV PEG PER PHE PIC PSA PSC PUP PYX RET SCL SCO SCT SER SEX "
    "SGE SGR TAU TEL TRA TRI TUC UMA UMI VEL VIR VOL VUL"
)
_BAYER = re.compile(rf"({'|'.join(_GREEK)})(?=\d*(?:{_CONSTELLATIONS.replace(' ', '|')})[A-D]?$)")
_DURCHMUSTERUNG = re.compile(r"(BD|CO?D|CPD?) ?([+-]) ?(?:(\d\d)(\d+)|(\d\d?)[ -](\d+))[ -]?([A-Z]*)")
_COORDINATES = re.compile(r"\d{4}(?:\.\d+)?[+-]\d{4}")
_TIC = re.compile(r"TIC([1-9]\d*)")
_GENERIC = re.compile(r"(STAR|OBJECT|TARG|TARGET|CALIB|SCIENCE|TEST|NONE|UNKNOWN|DEFAULT|NONAME|SKY|FIELD)?[\d-]*")
_SEXAGESIMAL = re.compile(r"[+-]?\d+[: ]+\d+[: ]+\d+(\.\d*)?")


class CatalogError(HarpsDistError):
    """A catalogue that cannot be read, or holds nothing to match or to label by."""


# --- names -------------------------------------------------------------------------------------------


def normalise_name(name: str) -> str:
    """One spelling for the many spellings of a star's name; '' where it holds no letter or digit.

    Case, spaces, '_', '-' and leading zeros do not count, but two numbers stay apart (K2-55 is not K25-5).
    'HD-128621' gives 'HD128621'; 'Gl581' and 'Gliese 581' give 'GJ581'; 'alpha Cen B' and '* alf Cen B' give
    'ALFCENB'; 'BD+6 2932' gives 'BD+062932', the zone in two digits and the number without leading zeros;
    names made of coordinates keep signs and zeros. Idempotent.
    """
    text = "".join(_greek_word(letter) for letter in unicodedata.normalize("NFKC", name))
    text = unicodedata.normalize("NFKD", text.replace("\N{MINUS SIGN}", "-")).encode("ascii", "ignore").decode()
    text = re.sub(r"^\s*(?:(?:\*+|V\*|NAME)\s+|\*+)", "", text.upper())  # SIMBAD's marks of the kind of name
    previous = None
    while text != previous:
        previous, text = text, _respell(text)
    return text


def _greek_word(letter: str) -> str:
    """'ALPHA ' for the letter alpha, any other character as it is."""
    word = re.match(r"GREEK (?:SMALL|CAPITAL) LETTER (?:FINAL )?(\w+)", unicodedata.name(letter, ""))
    return f"{word[1]} " if word else letter


def _respell(text: str) -> str:
    text = re.sub(r"[^A-Z0-9+.-]|(?<!\d)\.|\.(?!\d)", " ", text)
    text = re.sub(r" *-[ -]*", "-", re.sub(r" +", " ", text)).strip(" -")
    if zone := _DURCHMUSTERUNG.fullmatch(text):
        survey, sign, two, joined, few, apart, component = zone.groups()
        survey = {"COD": "CD", "CP": "CPD"}.get(survey, survey)
        return f"{survey}{sign}{(two or few):0>2}{(joined or apart).lstrip('0') or '0'}{component}"
    if _COORDINATES.search(text):
        return text.replace(" ", "")
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    text = re.sub(r"(?<!\d)[ -]|[ -](?!\d)", "", text).replace(" ", "-")
    text = re.sub(r"^(?:GLIESE|GL)(?=\d)", "GJ", text)
    return _BAYER.sub(lambda greek: _GREEK[greek[1]], text, count=1) if _BAYER.match(text) else text


def telling_names(record: SpectrumRecord) -> str:
    """Normalised names of a spectrum that say which star it is, each once, with semicolons between them."""
    return ";".join(dict.fromkeys(_names(record)))


def resolve_target(record: SpectrumRecord, match: Match | None) -> str:
    """The star a spectrum is of: the catalogue's id, else its normalised name, else its place on the sky.

    Places are rounded to 1 s in right ascension (15 arcsec at the equator) and 10 arcsec in declination. A
    spectrum with neither a telling name nor a place is a star of its own.
    """
    if match is not None:
        return match.target_id
    for name in _names(record):
        tic = _TIC.fullmatch(name)
        return f"TIC {tic[1]}" if tic else name
    return _position_id(record.ra_deg, record.dec_deg) or record.dp_id


def _names(record: SpectrumRecord) -> list[str]:
    """Normalised names of a spectrum that say which star it is."""
    return [name for name in map(telling_name, (record.object, record.target_name)) if name]


def telling_name(text: str) -> str:
    """The normalised name; '' where it does not say which star it is."""
    name = normalise_name(text)
    return "" if _GENERIC.fullmatch(name) else name


def _position_id(ra_deg: float, dec_deg: float) -> str:
    """'J200044+224240'; '' without a position."""
    if not np.isfinite([ra_deg, dec_deg]).all():
        return ""
    minutes, seconds = divmod(round(ra_deg * 240) % 86400, 60)
    arcmin, tens = divmod(round(abs(dec_deg) * 360), 6)
    sign = "-" if dec_deg < 0 else "+"
    return f"J{minutes // 60:02}{minutes % 60:02}{seconds:02}{sign}{arcmin // 60:02}{arcmin % 60:02}{tens}0"


# --- catalogue ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A spectrum's star in a catalogue."""

    target_id: str  # 'TIC 256364928' where the number is known, else the normalised primary name
    labels: dict[str, float]  # in the units of the label table: only those present and physical
    by: str  # 'tic', 'name' or 'position'
    out_of_range: tuple[str, ...]  # labels whose value is unphysical, hence left out of `labels`


class Catalog:
    """Stars with labels, found by TIC number, name or position.

    columns: our names (keys of COLUMNS) to equally long sequences; texts '' and numbers NaN where missing.
    aliases: further names of stars, to the name the catalogue knows them by.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        *,
        aliases: Mapping[str, str] | None = None,
        radius_arcsec: float = 5.0,
    ):
        size = len(next(iter(columns.values())))
        texts = {name: list(columns.get(name, [""] * size)) for name in _TEXTS}
        numbers = {
            name: np.asarray(columns.get(name, np.full(size, np.nan)), dtype=float)
            for name in COLUMNS.keys() - set(_TEXTS)
        }
        self.counts: Counter[str] = Counter()  # of positions that cannot be, which count as missing
        for name in ("ra", "dec"):
            wrong = ~np.isnan(numbers[f"{name}_deg"]) & ~in_range_each(name, numbers[f"{name}_deg"])
            numbers[f"{name}_deg"] = np.where(wrong, np.nan, numbers[f"{name}_deg"])
            self.counts[f"catalogue's {name} out of physical range"] += int(wrong.sum())
        self.labels = {name: numbers[name] for name in CATALOGUED}
        primary = [[normalise_name(name)] for name in texts["object"]]
        designated = [
            [_designation("HD", hd), _designation("HIP", hip)]
            for hd, hip in zip(texts["hd"], texts["hip"], strict=True)
        ]
        tics = [_tic_number(text) for text in texts["tic"]]
        places = zip(numbers["ra_deg"], numbers["dec_deg"], strict=True)
        self.target_ids = [
            f"TIC {tic}" if tic else next(filter(None, [*name, *others]), "") or _position_id(*place)
            for tic, name, others, place in zip(tics, primary, designated, places, strict=True)
        ]
        self._by_tic = {tic: row for row, tic in reversed(list(enumerate(tics))) if tic}  # the first row wins
        also = [[normalise_name(name) for name in text.split(";")] for text in texts["aliases"]]
        self._by_name = self._index(primary, designated, also)
        for name, known in (aliases or {}).items():
            if (row := self._by_name.get(normalise_name(known))) is not None:
                self._by_name.setdefault(normalise_name(name), row)
        self._place(numbers["ra_deg"], numbers["dec_deg"], radius_arcsec)

    def __len__(self) -> int:
        return len(self.target_ids)

    @classmethod
    def read(
        cls,
        path: Path,
        *,
        mapping: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        radius_arcsec: float = 5.0,
    ) -> Catalog:
        """Read CSV, FITS, VOTable (each also .gz), Parquet, or .dat and .txt with blanks between columns.

        mapping: our column name (a key of COLUMNS) to the file's, where COLUMNS does not choose right.
        Raises CatalogError where the file cannot be read, or has no label or nothing to match by.
        """
        columns = _columns(_table(path), mapping or {}, path)
        return cls(columns, aliases=aliases, radius_arcsec=radius_arcsec)

    def match(self, record: SpectrumRecord) -> Match | None:
        """The star of a spectrum: by TIC number, else by name, else the nearest within the radius."""
        row, by = None, ""
        for name in _names(record):
            if tic := _TIC.fullmatch(name):
                row, by = self._by_tic.get(tic[1]), "tic"
            if row is None:
                row, by = self._by_name.get(name), "name"
            if row is not None:
                break
        if row is None:
            row, by = self._nearest(record.ra_deg, record.dec_deg), "position"
        return None if row is None else self._match(row, by)

    def _match(self, row: int, by: str) -> Match:
        labels, out_of_range = {}, []
        for name, column in self.labels.items():
            value = float(column[row])
            if in_range(name, value):
                labels[name] = value
            elif not np.isnan(value):
                out_of_range.append(name)
        return Match(self.target_ids[row], labels, by, tuple(out_of_range))

    def _index(self, *ranks: Iterable[list[str]]) -> dict[str, int]:
        """Names to rows. An earlier rank wins; a name that two stars of one rank share is left out."""
        index: dict[str, int] = {}
        for rank in ranks:
            rows: dict[str, int] = {}
            shared = {""}
            for row, names in enumerate(rank):
                for name in names:
                    if self.target_ids[rows.setdefault(name, row)] != self.target_ids[row]:
                        shared.add(name)
            index = {name: row for name, row in rows.items() if name not in shared} | index
        return index

    def _place(self, ra_deg: np.ndarray, dec_deg: np.ndarray, radius_arcsec: float) -> None:
        from scipy.spatial import cKDTree

        self._placed = np.flatnonzero(np.isfinite(ra_deg) & np.isfinite(dec_deg))
        self._tree = cKDTree(unit_vectors(ra_deg[self._placed], dec_deg[self._placed]))
        self._chord = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0)

    def _nearest(self, ra_deg: float, dec_deg: float) -> int | None:
        if not (len(self._placed) and np.isfinite([ra_deg, dec_deg]).all()):
            return None
        distance, index = self._tree.query(unit_vectors(ra_deg, dec_deg))
        return int(self._placed[index]) if distance <= self._chord else None


def unit_vectors(ra_deg: Any, dec_deg: Any) -> np.ndarray:
    """(..., 3) for (...,) degrees."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def _tic_number(text: str) -> str:
    """The digits of a TIC number, '' where there is none (GR8 writes 0 for unknown)."""
    number = _TIC.fullmatch("TIC" + normalise_name(text).removeprefix("TIC").removesuffix(".0"))
    return number[1] if number else ""


def _designation(survey: str, text: str) -> str:
    """'HD146361B' for the HD column's '146361B' or 'HD 146361B'; '' where there is none."""
    name = normalise_name(text).removesuffix(".0").removeprefix(survey)
    return survey + name if re.match(r"[1-9]", name) else ""


# --- files -------------------------------------------------------------------------------------------


def _table(path: Path) -> Any:
    """The file as an astropy Table."""
    return read_table(path, "catalogue", CatalogError, {".dat": _read_whitespace, ".txt": _read_whitespace})


def _read_whitespace(text: str) -> Any:
    """A table with blanks between columns; without a header line it is taken for the HARPS-GTO list."""
    lines = (line for line in io.StringIO(text) if line.strip() and not line.startswith("#"))
    first = next(lines, "").split()
    if not any(re.fullmatch(r"[+-]?\d+(\.\d*)?", field) for field in first):
        return read_ascii(text, "basic")
    if len(first) != len(_GTO_COLUMNS):
        raise CatalogError(
            f"the catalogue has {len(first)} columns and no header line; without one only the HARPS-GTO "
            f"columns {' '.join(_GTO_COLUMNS)} are known. Add a header line."
        )
    return read_ascii(text, "no_header", names=_GTO_COLUMNS)


def _columns(table: Any, mapping: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Our columns from the file's, cleaned."""
    unknown = [*(mapping.keys() - COLUMNS.keys()), *(set(mapping.values()) - set(table.colnames))]
    if unknown:
        raise CatalogError(
            f"catalogue {printable(path)}: the mapping has {', '.join(sorted(unknown))}, but our columns are "
            f"{', '.join(COLUMNS)} and the file's are {', '.join(table.colnames)}."
        )
    actual = {name.lower(): name for name in reversed(table.colnames)}
    chosen = {
        ours: actual[known] for ours, names in COLUMNS.items() if (known := next((n for n in names if n in actual), ""))
    }
    if "ID" in table.colnames and not {"object", "tic"} & chosen.keys():
        chosen["tic"] = "ID"
    chosen |= mapping
    identity = {"object", "tic", "hd", "hip"} & chosen.keys() or {"ra_deg", "dec_deg"} <= chosen.keys()
    if not identity or not set(CATALOGUED) & chosen.keys():
        raise CatalogError(
            f"catalogue {printable(path)}: expected names, TIC numbers or coordinates and at least one of "
            f"{', '.join(CATALOGUED)}, got columns {', '.join(table.colnames)}. Pass a mapping."
        )
    return {
        ours: _texts(table[name]) if ours in _TEXTS else _numbers(table[name], ours) for ours, name in chosen.items()
    }


def _texts(column: Any) -> list[str]:
    mask = np.broadcast_to(getattr(column, "mask", False), len(column))
    values = zip(np.ma.getdata(column).tolist(), mask, strict=True)
    return ["" if hidden or value is None or value != value else _text(value) for value, hidden in values]


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text[:LONGEST_NAME].strip()


def _numbers(column: Any, ours: str) -> np.ndarray:
    """(rows,) float64 in our unit, NaN where missing; sexagesimal texts become degrees."""
    from astropy import units
    from astropy.coordinates import Angle

    if column.dtype.kind in "fiu":
        values: np.ndarray = np.ma.filled(np.ma.asarray(column, dtype=float), np.nan)
        unit, wanted = column.unit, _UNITS.get(ours)
        if wanted and isinstance(unit, units.UnitBase) and unit.is_equivalent(wanted):
            values = values * unit.to(wanted)
        return values
    values = np.full(len(column), np.nan)
    for row, text in enumerate(_texts(column)):
        try:
            if ours in ("ra_deg", "dec_deg") and _SEXAGESIMAL.fullmatch(text):
                values[row] = Angle(text, unit="hourangle" if ours == "ra_deg" else "deg").deg
            else:
                values[row] = float(text)
        except ValueError:
            values[row] = np.nan  # '', '--', '~', 61 minutes: catalogues have many words for missing
    return values
