"""What an archive has: its table `ivoa.ObsCore`, asked in ADQL through a TAP service.

Conditions compare plain columns, without the geometry that services support in different ways. Answers come page by
page in the order of `dp_id`, and their number is compared with what the service counts: no limit of a service cuts them
short unsaid.

Tested in tests/integration/test_fetch_query.py.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harps_dist.errors import ConfigError, FetchError
from harps_dist.formats.tables import read_ascii, read_table
from harps_dist.intake import named
from harps_dist.spectra.quantities import in_range, number
from harps_dist.text import cleaned, printable
from preprocessing.catalog import telling_name
from preprocessing.catalog_files import COLUMNS
from preprocessing.download import RETRIES, Client, TornError, again
from preprocessing.sky import unit_vectors

TABLE = "ivoa.ObsCore"
PAGE = 10_000  # rows
AT_ONCE = 40  # names or places in one query
RADIUS_ARCSEC = 60.0  # that a place may be off: proper motion, other epochs, a telescope's pointing

NEEDED = ("dp_id", "access_url", "target_name", "s_ra", "s_dec", "t_min")
HELPFUL = ("t_max", "snr", "access_estsize", "instrument_name", "obs_release_date", "publication_date")

_PROGRAMME = re.compile(r"[0-9A-Za-z.-]+(\([0-9A-Za-z]+\))?")
_MJD_ZERO = datetime(1858, 11, 17)


class Product(NamedTuple):
    """A row of ObsCore. Texts are '' and numbers NaN where it has none.

    mjd, mjd_end: of the exposure. kilobytes: an estimate. published, released: ISO dates, since when it is in the
    archive and since when anybody may have it.
    """

    dp_id: str
    url: str
    target: str
    ra_deg: float
    dec_deg: float
    mjd: float
    mjd_end: float
    snr: float
    kilobytes: float
    instrument: str
    released: str
    published: str


class Objects(NamedTuple):
    """A list of stars. names: of each, normalised, with aliases. ra_deg, dec_deg: (star,), NaN where not given."""

    shown: list[str]
    names: list[frozenset[str]]
    ra_deg: np.ndarray
    dec_deg: np.ndarray


class Search(NamedTuple):
    """What is asked for; all of it has to hold. since: day of the observation. published_since: or may be had since."""

    collection: str
    programmes: tuple[str, ...] = ()
    since: date | None = None
    objects: Objects | None = None
    published_since: str = ""


class Found(NamedTuple):
    """missing: stars of the list of which there is nothing. all_again: whether the service cannot say what is new."""

    products: list[Product]
    missing: list[str]
    all_again: bool


def quoted(text: str) -> str:
    """A text as ADQL writes it. Raises ConfigError for control characters, which no name has."""
    if not text.isprintable():
        raise ConfigError(f"{cleaned(text, 100)!r} holds control characters. Correct it.")
    return "'" + text.replace("'", "''") + "'"


def find_products(address: str, client: Client, search: Search) -> Found:
    """Everything that a TAP service has of what is asked for, by `dp_id`. Raises FetchError or ConfigError."""
    service = _Service(address, client)
    columns = service.columns()
    where = [f"obs_collection = {quoted(search.collection)}"]
    if "dataproduct_type" in columns:
        where.append("dataproduct_type = 'spectrum'")
    if search.programmes:
        service.require(columns, "proposal_id")
        where.append(_either(map(_of_programme, search.programmes)))
    if search.since:
        where.append(f"t_min >= {(search.since - _MJD_ZERO.date()).days}")
    dated = {"publication_date", "obs_release_date"} <= columns
    if search.published_since and dated:
        dates = ("publication_date", "obs_release_date")
        where.append(_either(f"{name} >= {quoted(search.published_since)}" for name in dates))
    base = " AND ".join(where)
    wanted = [*NEEDED, *(name for name in HELPFUL if name in columns)]
    found: dict[str, Product] = {}
    parts = _of_objects(service, where[0], search.objects) if search.objects else iter([""])
    for part in (f"{base} AND {part}" if part else base for part in parts):
        for row in service.counted(wanted, part):
            product = _product(row)
            found[product.dp_id] = product
    products = [found[dp_id] for dp_id in sorted(found)]
    missing: list[str] = []
    if search.objects:
        products, missing = _matched(products, search.objects)
    return Found(products, missing, bool(search.published_since) and not dated)


def read_objects(path: Path) -> Objects:
    """A list of stars: a table with names (column `object`, `star`, `main_id`, HD or HIP numbers, aliases …) or `ra`
    and `dec` in degrees, or a .txt with one name a line.

    Raises FetchError where it cannot be read or a row has neither.
    """

    def one_a_line(text: str) -> Any:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return read_ascii("\n".join(["object", *(f'"{line}"' for line in lines)]), "csv")

    table = read_table(path, "list of objects", FetchError, {".txt": one_a_line})
    there = {name.lower(): name for name in reversed(table.colnames)}

    def column(ours: str) -> list[Any]:
        known = next((there[name] for name in COLUMNS[ours] if name in there), None)
        if known is None:
            return [None] * len(table)
        return _values(table[known])

    texts = {name: [_text(value) for value in column(name)] for name in ("object", "aliases", "hd", "hip", "tic")}
    places = {name: np.array([_degrees(value, name) for value in column(f"{name}_deg")]) for name in ("ra", "dec")}
    shown, names = [], []
    for row, (name, aliases, hd, hip, tic) in enumerate(zip(*texts.values(), strict=True)):
        given = [name, *aliases.split(";")]
        numbered = (("HD", hd), ("HIP", hip), ("TIC", tic))
        given += [f"{what} {text.upper().removeprefix(what).removesuffix('.0')}" for what, text in numbered if text]
        names.append(frozenset(filter(None, map(telling_name, given))))
        place = places["ra"][row], places["dec"][row]
        if not names[-1] and not np.isfinite(place).all():
            raise FetchError(
                f"list of objects {printable(path)}, row {row + 1}: expected a name that says which star it is, or "
                f"`ra` and `dec` in degrees, in columns {cleaned(', '.join(table.colnames), 200)}. Correct the row, or "
                f"leave it out."
            )
        shown.append(next((text for text in given if text), f"{place[0]:.5f} {place[1]:+.5f}"))
    if not shown:
        raise FetchError(f"list of objects {printable(path)} has no rows. Name a star in it.")
    return Objects(shown, names, places["ra"], places["dec"])


def _values(column: Any) -> list[Any]:
    """What a column of a table holds; None where it is masked."""
    hidden = np.broadcast_to(getattr(column, "mask", False), len(column))
    return [None if none else value for value, none in zip(np.ma.getdata(column).tolist(), hidden, strict=True)]


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
    return "" if text == "nan" else text.strip()


def _degrees(value: Any, name: str) -> float:
    try:
        degrees = float(value)
    except (TypeError, ValueError):
        return math.nan
    return degrees if in_range(name, degrees) else math.nan


def _either(conditions: Iterable[str]) -> str:
    return f"({' OR '.join(conditions)})"


def _of_programme(programme: str) -> str:
    """A programme with all its runs, as 072.C-0488(E) or 110.23XW.001, or one run."""
    if not _PROGRAMME.fullmatch(programme):
        raise ConfigError(f"expected a programme as 072.C-0488 or a run of it as 072.C-0488(E), got {programme!r}.")
    runs = "" if ")" in programme else f" OR proposal_id LIKE '{programme}(%' OR proposal_id LIKE '{programme}.%'"
    return f"proposal_id = '{programme}'{runs}"


def _of_objects(service: _Service, base: str, objects: Objects) -> Iterator[str]:
    """Conditions, few stars each. Names are compared here, since observers spell them in many ways."""
    wanted = frozenset().union(*objects.names)
    if wanted:
        spelt = service.pages(["target_name"], base, "target_name", distinct=True)
        known = [row["target_name"] for row in spelt if telling_name(row["target_name"]) in wanted]
        for some in _batches(known):
            yield f"target_name IN ({', '.join(map(quoted, some))})"
    places = np.stack([objects.ra_deg, objects.dec_deg], axis=-1)
    for some in _batches(places[np.isfinite(places).all(axis=-1)].tolist()):
        yield _either(_box(*place) for place in some)


def _box(ra_deg: float, dec_deg: float) -> str:
    """Around a place; what lies in its corners is left out later."""
    high = RADIUS_ARCSEC / 3600
    condition = f"s_dec BETWEEN {dec_deg - high:.6f} AND {dec_deg + high:.6f}"
    if abs(dec_deg) + high >= 89.9:
        return f"({condition})"
    wide = high / math.cos(math.radians(abs(dec_deg) + high))
    spans = [(ra_deg - wide + turn, ra_deg + wide + turn) for turn in (-360, 0, 360)]
    here = [f"s_ra BETWEEN {low:.6f} AND {up:.6f}" for low, up in spans if low < 360 and up >= 0]
    return f"({condition} AND {_either(here)})"


def _batches(items: Sequence[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, AT_ONCE)):
        yield some


def _matched(products: list[Product], objects: Objects) -> tuple[list[Product], list[str]]:
    """Products of the stars of a list, and stars without a product."""
    from scipy.spatial import cKDTree

    of_name: dict[str, list[int]] = {}
    for star, names in enumerate(objects.names):
        for name in names:
            of_name.setdefault(name, []).append(star)
    placed = np.flatnonzero(np.isfinite(objects.ra_deg) & np.isfinite(objects.dec_deg))
    tree = cKDTree(unit_vectors(objects.ra_deg[placed], objects.dec_deg[placed]))
    chord = 2 * math.sin(math.radians(RADIUS_ARCSEC / 3600) / 2)
    kept, seen = [], set()
    for product in products:
        stars = list(of_name.get(telling_name(product.target), ()))
        if len(placed) and np.isfinite([product.ra_deg, product.dec_deg]).all():
            stars += placed[tree.query_ball_point(unit_vectors(product.ra_deg, product.dec_deg), chord)].tolist()
        if stars:
            kept.append(product)
            seen.update(stars)
    return kept, [name for star, name in enumerate(objects.shown) if star not in seen]


def _product(row: dict[str, Any]) -> Product:
    texts = {name: _text(row.get(name)) for name in (*NEEDED, *HELPFUL)}
    numbers = {name: number(row.get(name)) for name in ("s_ra", "s_dec", "t_min", "t_max", "snr", "access_estsize")}
    return Product(
        dp_id=texts["dp_id"],
        url=texts["access_url"],
        target=cleaned(texts["target_name"], 100),
        ra_deg=numbers["s_ra"],
        dec_deg=numbers["s_dec"],
        mjd=numbers["t_min"],
        mjd_end=numbers["t_max"],
        snr=numbers["snr"],
        kilobytes=numbers["access_estsize"] if 0 <= numbers["access_estsize"] < 1e12 else math.nan,
        instrument=texts["instrument_name"],
        released=texts["obs_release_date"],
        published=texts["publication_date"],
    )


class _Service:
    """A TAP service through pyvo. Whatever goes wrong is a FetchError that names it."""

    def __init__(self, address: str, client: Client):
        from pyvo.dal import TAPService

        if not re.match(r"https?://[^/]", address):
            raise ConfigError(
                f"--service is {cleaned(address, 200)!r}, expected an address as https://archive.eso.org/tap_obs."
            )
        self.address, self._tap = address, TAPService(address.rstrip("/"), session=client.session)

    def ask(self, query: str, most: int = PAGE) -> list[dict[str, Any]]:
        """Rows of an answer, by the names of its columns in lower case; None where there is no value."""
        from stamina import retry_context

        try:
            for attempt in retry_context(on=again, attempts=1 + RETRIES, timeout=None, wait_initial=0.5, wait_max=60):
                with attempt:
                    return self._ask(query, most)
        except TornError as error:
            raise FetchError(
                f"the TAP service {self.address} does not answer, {RETRIES} retries or not: {error}. Check the address "
                f"(--service) and the network, and run the same command again."
            ) from None
        raise AssertionError("unreachable")

    def _ask(self, query: str, most: int) -> list[dict[str, Any]]:
        from pyvo.dal.exceptions import DALFormatError, DALQueryError, DALServiceError
        from requests import RequestException

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an answer that is cut short is noticed by its count
                table = self._tap.run_sync(query, maxrec=most).to_table()
        except DALQueryError as error:
            raise self._refused(error) from None
        except DALServiceError as error:
            code = error.code or 0
            if 400 <= code < 500 and code not in (408, 429):
                raise self._refused(error) from None
            raise TornError(cleaned(str(error), 300), getattr(error, "retry_after_seconds", None)) from None
        except (DALFormatError, RequestException) as error:
            raise TornError(named(error)) from None
        columns = {}
        for name in table.colnames:
            columns[name.lower()] = _values(table[name])
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _refused(self, error: Exception) -> FetchError:
        return FetchError(
            f"the TAP service {self.address} refuses the query: {named(error)}. Check the address (--service) and what "
            f"was asked for."
        )

    def columns(self) -> set[str]:
        """Names of the columns of ObsCore; raises FetchError where one is missing without which nothing can be done."""
        where = f"table_name IN ('{TABLE}', '{TABLE.lower()}')"
        rows = self.pages(["column_name"], where, "column_name", of="TAP_SCHEMA.columns")
        found = {_text(row["column_name"]).lower() for row in rows}
        self.require(found, *NEEDED, "obs_collection")
        return found

    def require(self, columns: set[str], *names: str) -> None:
        """Raises FetchError where a column is missing."""
        if lacking := sorted(set(names) - columns):
            raise FetchError(
                f"the TAP service {self.address} has no column {', '.join(lacking)} in {TABLE}. Give another "
                f"--service, or ask in another way."
            )

    def counted(self, columns: Sequence[str], where: str) -> list[dict[str, Any]]:
        """All rows for which a condition holds; raises FetchError where they are fewer than the service counts."""
        (counts,) = self.ask(f"SELECT COUNT(*) AS products FROM {TABLE} WHERE {where}") or [{}]
        stated = number(counts.get("products"))
        rows = list(self.pages(columns, where, "dp_id"))
        if not len(rows) >= stated:
            raise FetchError(
                f"the TAP service {self.address} counts {stated:.0f} products and gives {len(rows)}. Run the same "
                f"command again; if it stays so, ask for less at a time."
            )
        return rows

    def pages(
        self, columns: Sequence[str], where: str, key: str, distinct: bool = False, of: str = TABLE
    ) -> Iterator[dict[str, Any]]:
        """Rows with a value of `key`, each value once, page by page until nothing new comes."""
        seen: set[str] = set()
        after = f"{key} IS NOT NULL"
        what = f"{'DISTINCT ' if distinct else ''}TOP {PAGE} {', '.join(columns)}"
        while True:
            rows = self.ask(f"SELECT {what} FROM {of} WHERE {where} AND {after} ORDER BY {key}")
            fresh = [row for row in rows if _text(row[key]) not in seen]
            if not fresh:
                return
            seen.update(_text(row[key]) for row in fresh)
            yield from fresh
            after = f"{key} > {quoted(_text(rows[-1][key]))}"
