"""Stellar labels from catalogues, and the resolved identity of a star.

A spectrum is matched by TIC number, then by name, then by position. The target id so found decides which
split a star belongs to and must not hang on how an observer spelt the name.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harps_dist.formats.records import SpectrumRecord
from harps_dist.formats.units import plain
from harps_dist.spectra.labels import CATALOGUED
from harps_dist.spectra.quantities import in_range, in_range_each
from preprocessing.catalog_files import COLUMNS, TEXTS, UNITS, read_catalog, without_marks
from preprocessing.sky import Sky, is_place, year_of

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
_SUNLIT = re.compile(r"\d{0,3}(CERES|PALLAS|JUNO|VESTA|MOON|LUNA|IO|EUROPA|GANYMEDE|CALLISTO|SUN|SUNSKY|SOLAR)")
SUN = "SUN"
_GENERIC = re.compile(r"(STAR|OBJECT|TARG|TARGET|CALIB|SCIENCE|TEST|NONE|UNKNOWN|DEFAULT|NONAME|SKY|FIELD)?[\d-]*")


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


def telling_names(record: SpectrumRecord, match: Match | None = None) -> str:
    """Normalised names of a spectrum that say which star it is, each once, with semicolons between them.

    Names that contradict the position say nothing.
    """
    return "" if match is not None and match.note else ";".join(dict.fromkeys(_names(record)))


def resolve_target(record: SpectrumRecord, match: Match | None) -> str:
    """The star a spectrum is of: the catalogue's id, else its normalised name, else its place on the sky.

    Places are rounded to 1 s in right ascension (15 arcsec at the equator) and 10 arcsec in declination. A
    spectrum with neither a telling name nor a place is a star of its own. Where the name contradicts the position, the
    position counts. Bodies that reflect the Sun are one star, the Sun.
    """
    if match is not None:
        return match.target_id
    names = _names(record)
    for name in [SUN] if SUN in names else names:
        tic = _TIC.fullmatch(name)
        return f"TIC {tic[1]}" if tic else name
    return _position_id(record.ra_deg, record.dec_deg) or record.dp_id


def _names(record: SpectrumRecord) -> list[str]:
    """Normalised names of a spectrum that say which star it is."""
    names = [name for name in map(telling_name, (record.object, record.target_name)) if name]
    return [*names, SUN] if any(map(_SUNLIT.fullmatch, names)) else names


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
    note: str = ""  # why no label is taken: the name is that of a star far from where the spectrum was taken
    errors: dict[str, float] = field(default_factory=dict)  # standard deviations of `labels`, where they are known


class Catalog:
    """Stars with labels, found by TIC number, name or position.

    columns: our names (keys of COLUMNS) to equally long sequences; texts '' and numbers NaN where missing.
    aliases: further names of stars, to the name the catalogue knows them by.
    errors: standard deviations of labels, by label, as long; NaN where missing.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        *,
        aliases: Mapping[str, str] | None = None,
        radius_arcsec: float = 5.0,
        errors: Mapping[str, np.ndarray] | None = None,
    ):
        self.errors = dict(errors or {})
        size = len(next(iter(columns.values())))
        texts = {name: [str(text or "") for text in _filled(columns.get(name, [""] * size))] for name in TEXTS}
        numbers = {
            name: plain(columns.get(name, np.full(size, np.nan)), UNITS[name], name).astype(float)
            for name in COLUMNS.keys() - set(TEXTS)
        }
        self.counts: Counter[str] = Counter()  # of cells that are not used, by why
        self.used: dict[str, str] = {}  # our columns to the file's, where a file was read
        self.unused: tuple[str, ...] = ()  # columns of the file that were not
        for name in ("ra", "dec"):
            wrong = ~np.isnan(numbers[f"{name}_deg"]) & ~in_range_each(name, numbers[f"{name}_deg"])
            numbers[f"{name}_deg"] = np.where(wrong, np.nan, numbers[f"{name}_deg"])
            self.counts[f"catalogue's {name} out of physical range"] += int(wrong.sum())
        self.labels = without_marks({name: numbers[name] for name in CATALOGUED}, self.counts)
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
        also = [[normalise_name(name) for name in re.split("[;|]", text)] for text in texts["aliases"]]
        gaia = [[f"GAIADR3-{number[0]}"] if (number := re.search(r"\d{6,}$", text)) else [""] for text in texts["gaia"]]
        self._by_name = self._index(primary, designated, also, gaia)
        for name, known in (aliases or {}).items():
            if (row := self._by_name.get(normalise_name(known))) is not None:
                self._by_name.setdefault(normalise_name(name), row)
        self._sky = Sky(**{name: numbers[name] for name in ("ra_deg", "dec_deg", "pm_ra", "pm_dec", "epoch")})
        self._radius_arcsec = radius_arcsec
        self.counts["catalogue's labels of a star that has a row before"] = self._of_further_rows()

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
        """Read a file; mapping and errors are those of `catalog_files.read_catalog`."""
        found = read_catalog(path, mapping or {})
        catalog = cls(found.columns, aliases=aliases, radius_arcsec=radius_arcsec, errors=found.errors)
        catalog.counts = found.counts + catalog.counts
        catalog.used, catalog.unused = found.used, found.unused
        return catalog

    def match(self, record: SpectrumRecord) -> Match | None:
        """The star of a spectrum: by TIC number, else by name, else the nearest within the radius.

        Positions are compared as of the exposure, of 2000 and of the catalogue's epoch, and the nearest counts: headers
        give the one or the other. A star that is found by number or name, but lies farther off than it can have moved,
        gives no labels.
        """
        row, by = None, ""
        for name in _names(record):
            if tic := _TIC.fullmatch(name):
                row, by = self._by_tic.get(tic[1]), "tic"
            if row is None:
                row, by = self._by_name.get(name), "name"
            if row is not None:
                break
        place = record.ra_deg, record.dec_deg, year_of(record.mjd_obs)
        if row is None:
            row, by = self._sky.nearest(*place, self._radius_arcsec), "position"
        elif (apart := self._sky.too_far(row, *place)) is not None:
            note = f"not taken: {name} lies {f'{apart:.2f} deg' if apart >= 1 else f'{apart * 60:.1f} arcmin'} away"
            return Match(_position_id(record.ra_deg, record.dec_deg), {}, by, (), note)
        if row is None:
            return None
        found = self._match(row, by)
        if self.target_ids[row] == SUN and SUN not in _names(record)[:1]:  # what reflects it has a velocity of its own
            found.labels.pop("rv", None)
            found.errors.pop("rv", None)
        return found

    def _match(self, row: int, by: str) -> Match:
        labels, out_of_range = {}, []
        for name, column in self.labels.items():
            value = float(column[row])
            if in_range(name, value):
                labels[name] = value
            elif not np.isnan(value):
                out_of_range.append(name)
        errors = {name: float(column[row]) for name, column in self.errors.items() if name in labels}
        errors = {name: value for name, value in errors.items() if np.isfinite(value)}
        return Match(self.target_ids[row], labels, by, tuple(out_of_range), errors=errors)

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

    def _of_further_rows(self) -> int:
        """How many labels stand in rows of a star of which an earlier row is taken."""
        named: dict[str, int] = {}
        for row, target in enumerate(self.target_ids):
            if target and not is_place(target):
                named.setdefault(target, row)
        further = [row for row, target in enumerate(self.target_ids) if named.get(target, row) != row]
        return int(sum(np.isfinite(values[further]).sum() for values in self.labels.values()))


def _filled(texts: Any) -> list[Any]:
    """Texts in memory, '' where they are masked."""
    return np.ma.filled(np.ma.asarray(texts, dtype=object), "").tolist() if hasattr(texts, "mask") else list(texts)


def _tic_number(text: str) -> str:
    """The digits of a TIC number, '' where there is none (GR8 writes 0 for unknown)."""
    number = _TIC.fullmatch("TIC" + normalise_name(text).removeprefix("TIC").removesuffix(".0"))
    return number[1] if number else ""


def _designation(survey: str, text: str) -> str:
    """'HD146361B' for the HD column's '146361B' or 'HD 146361B'; '' where there is none."""
    name = normalise_name(text).removesuffix(".0").removeprefix(survey)
    return survey + name if re.match(r"[1-9]", name) else ""
