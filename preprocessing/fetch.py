"""From an archive's query to a folder of files: products are chosen, fetched a few at a time, and remembered.

A folder of fetched spectra holds DP_ID.fits or .fits.gz, a hidden folder of halves (`download`), and a hidden sealed
document that says when what was asked for the last time. A file that is there under its name is whole and stays.

Tested in tests/integration/test_fetch.py.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from harps_dist.errors import ConfigError, FetchError
from harps_dist.files import atomic_write
from harps_dist.intake import read_text
from harps_dist.ownership import claimed, home
from harps_dist.progress import Progress, silent
from harps_dist.sealed import digest_of, unsealed
from harps_dist.text import printable, sealed_json
from preprocessing.download import ENDINGS, PARTS, Client, DeniedError, download
from preprocessing.obscore import Found, Objects, Product, Search, find_products, read_objects

FETCHED = home("folder of fetched spectra", "--spectra")
STATE = ".fetch.json"
LAST = "last"
TOKEN = "HARPS_DIST_TOKEN"  # environment variable: a bearer token for data that are not public yet
OVERLAP = timedelta(days=7)  # asked for again: what is published may be seen in the table days later
MOST_CONNECTIONS = 16
GIVE_UP = 20  # products that fail one after another

_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][\w.:+-]{0,150}", re.ASCII)
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?")
_SAME_START_D, _SAME_END_D = 1 / 86400, 10 / 86400  # of two forms of one exposure


class Request(NamedTuple):
    """What a user asks for. since: a date, or `last`. token_hosts: the servers that may see the token."""

    service: str
    collection: str
    programmes: tuple[str, ...] = ()
    since: str | None = None
    objects: Path | None = None
    every_form: bool = False
    connections: int = 4
    token_hosts: tuple[str, ...] = ()


class Plan(NamedTuple):
    """What is to be done. Products that stand in one list stand in no other.

    others: other forms of exposures, of which a newer one was chosen. found: all, and what was not found.
    """

    fetch: list[Product]
    there: list[Product]
    others: list[Product]
    not_public: list[Product]
    found: Found

    def table(self) -> Any:
        """What there is to fetch, for people."""
        from rich.table import Table

        table = Table("products", "number", "GB")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, products in (
            ("to fetch", self.fetch),
            ("there already", self.there),
            ("another form of an exposure", self.others),
            ("not public yet", self.not_public),
        ):
            sizes = [product.kilobytes for product in products]
            stated = sum(size for size in sizes if not math.isnan(size))
            unknown = sum(map(math.isnan, sizes))
            table.add_row(
                name, f"{len(products):,}", f"{stated / 1e6:.3f}" + (f" + {unknown} unknown" if unknown else "")
            )
        return table


class Fetched(NamedTuple):
    """failed: the reason by dp_id. denied: as many that are not public yet and not for this token either."""

    files: int
    failed: dict[str, str]
    denied: int


class Fetch:
    """A request and the folder that it is for. Raises ConfigError or FetchError where it cannot be asked."""

    def __init__(self, folder: Path, request: Request):
        self.folder, self.request = folder, request
        if not (request.programmes or request.since or request.objects):
            raise ConfigError("nothing is asked for. Give --programme, --since or --objects.")
        if not 1 <= request.connections <= MOST_CONNECTIONS:
            raise ConfigError(f"--connections is {request.connections}, expected 1 to {MOST_CONNECTIONS}.")
        self._token = os.environ.get(TOKEN, "").strip()
        self.client = Client(self._token, request.token_hosts, request.connections)
        objects = read_objects(request.objects) if request.objects else None
        self._key = _key(request, objects)
        self._state = _read_state(folder / STATE)
        self._asked = datetime.now(UTC)
        since, published = _since(request.since, self._state.get(self._key), folder)
        self._search = Search(request.collection, request.programmes, since, objects, published)

    def plan(self) -> Plan:
        """Ask the archive what there is; writes nothing."""
        found = find_products(self.request.service, self.client, self._search)
        chosen, others = (found.products, []) if self.request.every_form else choose(found.products)
        names = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        there = {product.dp_id for product in chosen if any(product.dp_id + ending in names for ending in ENDINGS)}
        rest = [product for product in chosen if product.dp_id not in there]
        not_public = [product for product in rest if not self._token and self._is_private(product)]
        private = {product.dp_id for product in not_public}
        return Plan(
            [product for product in rest if product.dp_id not in private],
            [product for product in chosen if product.dp_id in there],
            others,
            not_public,
            found,
        )

    def _is_private(self, product: Product) -> bool:
        return product.released > self._asked.strftime("%Y-%m-%dT%H:%M:%S")

    def run(self, plan: Plan, progress: Progress = silent) -> Fetched:
        """Fetch what is planned; where nothing failed, it is remembered for `last`.

        Raises FetchError where nothing comes any more.
        """
        failed: dict[str, str] = {}
        files = denied = in_a_row = 0
        with claimed(self.folder, FETCHED):
            pool = ThreadPoolExecutor(self.request.connections)
            try:
                futures = {pool.submit(self._one, product): product for product in plan.fetch}
                for done, future in enumerate(as_completed(futures), 1):
                    product, in_a_row = futures[future], in_a_row + 1
                    try:
                        future.result()
                        files, in_a_row = files + 1, 0
                    except FetchError as error:
                        if isinstance(error, DeniedError) and self._is_private(product):
                            denied, in_a_row = denied + 1, 0
                        else:
                            failed[product.dp_id] = str(error)
                    progress("fetch", done, len(futures))
                    if in_a_row >= GIVE_UP:
                        raise FetchError(
                            f"{GIVE_UP} products failed one after another, the last one, {printable(product.dp_id)}, "
                            f"since {failed[product.dp_id]}. {files} came into {printable(self.folder)}; run the same "
                            f"command again to go on."
                        )
            except BaseException:  # an interrupt too: no thread is waited for, each ends with its next bytes
                self.client.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            pool.shutdown()
            with suppress(OSError):  # where halves are left in it
                (self.folder / PARTS).rmdir()
            if not failed:
                self._remember()
        return Fetched(files, failed, denied)

    def _one(self, product: Product) -> Path:
        if not _NAME.fullmatch(product.dp_id):
            raise FetchError("its dp_id cannot be the name of a file")
        return download(self.client, product.url, self.folder / product.dp_id)

    def _remember(self) -> None:
        before = self._state.get(self._key)
        since = self._search.since.isoformat() if self._search.since else ""
        if before and since > before["since"]:
            return  # what was asked for before reaches further back, and was not asked for now
        entry = {"asked": self._asked.strftime("%Y-%m-%dT%H:%M:%S"), "since": since}
        with atomic_write(self.folder / STATE) as aside:
            content = {"format": _FORMAT, "fetches": self._state | {self._key: entry}}
            aside.write_text(sealed_json(content), encoding="utf-8")


def choose(products: Sequence[Product]) -> tuple[list[Product], list[Product]]:
    """One form of each exposure, the newest, and the other forms.

    One exposure is what one instrument began within a second and ended within ten, as ObsCore states it. The newest is
    what was published last, or whose id has the later date. ObsCore names neither pipeline nor fibre: that the product
    published last is of the newest pipeline is what archives do, not what the table says.
    """
    exposures: list[list[Product]] = []
    recent: list[list[Product]] = []  # those that began as the one before
    for product in sorted(products, key=lambda one: (one.instrument, math.isnan(one.mjd), one.mjd, one.dp_id)):
        recent = [forms for forms in recent if _began_together(forms[0], product)]
        forms = next((forms for forms in recent if _ended_together(forms[0], product)), None)
        if forms is None:
            forms = []
            exposures.append(forms)
            recent.append(forms)
        forms.append(product)
    newest = [max(forms, key=_age) for forms in exposures]
    others = [one for forms, best in zip(exposures, newest, strict=True) for one in forms if one is not best]
    return sorted(newest, key=_dp_id), sorted(others, key=_dp_id)


def _began_together(one: Product, other: Product) -> bool:
    return one.instrument == other.instrument and abs(one.mjd - other.mjd) <= _SAME_START_D


def _ended_together(one: Product, other: Product) -> bool:
    ends = one.mjd_end, other.mjd_end
    return abs(ends[0] - ends[1]) <= _SAME_END_D or all(map(math.isnan, ends))


def _dp_id(product: Product) -> str:
    return product.dp_id


def _age(product: Product) -> tuple[str, str, str]:
    stamp = _STAMP.search(product.dp_id)
    return product.published, stamp[0] if stamp else "", product.dp_id


def _key(request: Request, objects: Objects | None) -> str:
    """What stands for a request in the state of a folder, whatever its dates."""
    listed = sorted([*map(sorted, objects.names)]) if objects else None
    places = [objects.ra_deg.tolist(), objects.dec_deg.tolist()] if objects else None
    return digest_of(
        [
            request.service,
            request.collection,
            sorted(request.programmes),
            listed,
            json.dumps(places),
            request.every_form,
        ]
    )


def _since(asked: str | None, before: dict[str, str] | None, folder: Path) -> tuple[date | None, str]:
    """From when on observations are asked for, and since when they are to be published, '' for any time."""
    if asked is None:
        return None, ""
    if asked != LAST:
        try:
            return date.fromisoformat(asked), ""
        except ValueError:
            raise ConfigError(f"--since is {asked!r}, expected a date as 2026-11-30, or {LAST}.") from None
    if before is None:
        raise ConfigError(
            f"{printable(folder)} does not know of a fetch with these options that ended without failures, so there is "
            f"no --since {LAST}. Run it with a date, or without --since, first."
        )
    published = datetime.fromisoformat(before["asked"]) - OVERLAP
    since = date.fromisoformat(before["since"]) if before["since"] else None
    return since, published.strftime("%Y-%m-%dT%H:%M:%S")


def _read_state(path: Path) -> dict[str, dict[str, str]]:
    """What was asked for before, by key; raises FetchError for a file that is damaged."""
    try:
        text = read_text(path, "record of fetches", FetchError)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        content = unsealed(json.loads(text), required=True)
    except ValueError as error:
        raise FetchError(
            f"record of fetches {printable(path)} is damaged: {error}. Remove it and run with a date, or without "
            f"--since: what is there is not fetched again."
        ) from None
    if content.get("format") != _FORMAT:
        raise FetchError(
            f"record of fetches {printable(path)} has format {content.get('format')!r}, expected {_FORMAT}. Use the "
            f"version that wrote it, or remove it."
        )
    return content["fetches"]


def lines_of(folder: Path, plan: Plan, done: Fetched | None) -> list[str]:
    """What is to be said of a fetch, or of a plan alone (None), besides its table."""
    lines, there = [], len(plan.there)
    if done:
        lines.append(f"{printable(folder)}: fetched {done.files}, there already {there}, failed {len(done.failed)}")
        lines += [f"{printable(dp_id)}: {why}" for dp_id, why in sorted(done.failed.items())]
        if done.failed:
            lines.append("run the same command again: it fetches these alone")
        if done.denied:
            lines.append(f"{done.denied} are not public yet, and not for this token")
    if plan.found.all_again:
        lines.append("the archive does not say when products were published: all were compared with the folder")
    if missing := plan.found.missing:
        few = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
        lines.append(f"{len(missing)} objects of the list have nothing, by name or by position: {few}")
    if not plan.found.products:
        lines.append("the archive has nothing of what was asked for")
    return lines
