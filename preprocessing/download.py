"""One FITS file of an archive on the web: whole or not at all, gone on with where it was torn, and checked.

Half a file lies in a hidden folder beside the whole one as `NAME.TAG.part`. TAG stands for the version that the server
states (ETag or Last-Modified, and size), so that nothing is ever put together of two versions; where it states none, a
half file is not gone on with.

Tested in tests/integration/test_fetch.py.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import logging
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from harps_dist.errors import ConfigError, FetchError
from harps_dist.files import publish_file
from harps_dist.formats.hdus import BEGINS, open_hdus
from harps_dist.formats.packing import MAX_BYTES
from harps_dist.formats.records import RefusedError
from harps_dist.intake import GZIP, IntakeError, named, open_regular, read_stream
from harps_dist.text import cleaned

PARTS = ".parts"
ENDINGS = (".fits", ".fits.gz")
RETRIES = 8
LONGEST_WAIT_S = 600.0  # that a server may ask for

_TIMEOUT_S = (20.0, 120.0)  # to connect, and without a byte
_CHUNK = 1 << 18
_NO_VERSION = "0" * 16
_MAX_HDUS = 1000
_MAX_LINKS = 2**20  # bytes of a DataLink document
_TOKEN = re.compile(r"[\w.~+/-]+=*", re.ASCII)  # RFC 6750
_MD5 = re.compile(r'"([0-9a-fA-F]{32})"')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class TornError(Exception):
    """What asking again may mend. wait_s: how long the server asks to wait, None where it does not say."""

    def __init__(self, why: str, wait_s: float | None = None):
        super().__init__(why)
        self.wait_s = wait_s


class DeniedError(FetchError):
    """A file that the server gives only to others."""


class StoppedError(Exception):
    """The command is ending."""


class Client:
    """What asks servers. `session` is a requests Session that sends the token to its hosts alone.

    token: a bearer token, '' for none; it goes over https (or on this machine) to `hosts`, `name` or `name:port`, and
    to no other, also not where one of them redirects there. connections: how many there may be at a time. Raises
    ConfigError for what is no token, without repeating it.
    """

    def __init__(self, token: str = "", hosts: tuple[str, ...] = (), connections: int = 1):
        import pyvo  # noqa: F401  what brings requests; where it is missing, it is what to install
        from requests import Session
        from requests.adapters import HTTPAdapter

        if token and not _TOKEN.fullmatch(token):
            raise ConfigError("the token holds what no bearer token does, such as a blank. Set the variable again.")
        client = self

        class Guarded(Session):
            def request(self, *arguments: Any, **options: Any) -> Any:
                return super().request(*arguments, **{"timeout": _TIMEOUT_S} | options)

            def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
                prepared_request.headers.pop("Authorization", None)
                client._authorise(prepared_request)

        logging.getLogger("stamina").addHandler(logging.NullHandler())  # else it prints a word for every retry
        self._token, self._hosts, self.stop = token, hosts, Event()
        self.session = Guarded()
        self.session.auth = self._authorise
        self.session.headers["Accept-Encoding"] = "identity"  # sizes and ranges are the file's
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=connections, pool_block=True))

    def _authorise(self, request: Any) -> Any:
        address = urlsplit(request.url)
        if self._token and address.netloc in self._hosts and (address.scheme == "https" or _is_here(address.hostname)):
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def get(self, url: str, headers: dict[str, str]) -> Any:
        """The answer of a server, to be closed. Raises TornError, DeniedError or FetchError."""
        from requests import ConnectionError, RequestException, Timeout
        from requests.exceptions import ChunkedEncodingError

        address = urlsplit(url)
        if address.scheme not in ("http", "https"):
            raise FetchError(f"expected the address of a web server, got {cleaned(url, 200)!r}")
        if (
            self._token
            and address.scheme == "http"
            and address.netloc in self._hosts
            and not _is_here(address.hostname)
        ):
            url = urlunsplit(address._replace(scheme="https"))  # where the token may go along
        try:
            answer = self.session.get(url, headers=headers, stream=True)
        except (ConnectionError, Timeout, ChunkedEncodingError) as error:
            raise TornError(named(error)) from None
        except RequestException as error:
            raise FetchError(f"{cleaned(url, 200)} cannot be asked for: {named(error)}") from None
        if answer.status_code in (200, 206):
            return answer
        answer.close()
        said = f"the server answers {answer.status_code} {cleaned(str(answer.reason), 60)}".strip()
        if answer.status_code in (408, 416, 429) or answer.status_code >= 500:
            raise TornError(said, _wait_s(answer.headers.get("Retry-After", "")))
        if answer.status_code in (401, 403):
            host = cleaned(urlsplit(answer.url).netloc, 100)
            raise DeniedError(f"{said}: {host} gives it to a token of those who may have it alone")
        raise FetchError(f"{said} for {cleaned(url, 200)}")


def download(client: Client, url: str, path: Path) -> Path:
    """Fetch a FITS file, plain or gzipped, or go on with its half; returns its path.

    url: of the file, or of a DataLink document that leads to it. path: its name without an ending, which its content
    decides. Only a whole file gets its name: of the stated size, with every HDU that its headers promise, and with the
    checksums that the server (Content-MD5, an ETag that is an md5) and the headers (CHECKSUM with DATASUM) state. What
    arrives damaged is fetched once more. Raises FetchError saying what is wrong, and StoppedError.
    """
    for again in (True, False):
        part, md5 = _received(client, url, path)
        try:
            ending = check_whole(part, md5)
        except FetchError:
            part.unlink()
            if not again:
                raise
            continue
        whole = path.with_name(path.name + ending)
        publish_file(part, whole)
        return whole
    raise AssertionError("unreachable")


def check_whole(path: Path, md5: str = "") -> str:
    """The ending of the name that a FITS file is to get; raises FetchError where it is not whole.

    md5: what the server states of it, '' where it states nothing. An HDU with DATASUM but no CHECKSUM says nothing
    reliable: whoever removed the one changed the data too.
    """
    try:
        with open_regular(path) as stream:
            if md5 and (found := hashlib.file_digest(stream, "md5").hexdigest()) != md5:
                raise FetchError(f"the server states md5 {md5}, but what came has {found}")
            stream.seek(0)
            packed = stream.read(len(GZIP)) == GZIP
            stream.seek(0)
            raw = read_stream(stream, MAX_BYTES, BEGINS)
        with open_hdus(raw, count=_MAX_HDUS) as hdus:
            for number, hdu in enumerate(hdus):
                stated = "CHECKSUM" in hdu.header and "DATASUM" in hdu.header
                if stated and not (hdu.verify_checksum() and hdu.verify_datasum()):
                    raise FetchError(f"HDU {number} is not what its CHECKSUM and DATASUM state")
    except (IntakeError, RefusedError) as error:
        raise FetchError(f"what came is no whole FITS file: {error}") from None
    return ENDINGS[packed]


def parts_of(path: Path) -> list[Path]:
    """Halves of a file. path: its name without an ending."""
    name, folder = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{16}}\.part"), path.parent / PARTS
    return [entry for entry in folder.iterdir() if name.fullmatch(entry.name)] if folder.is_dir() else []


def _is_here(host: str | None) -> bool:
    """Whether an address is of this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _wait_s(stated: str) -> float | None:
    """Retry-After in seconds, given so or as a date; None where it says nothing."""
    if stated.strip().isdecimal():
        return float(stated)
    try:
        return max(0.0, parsedate_to_datetime(stated).timestamp() - time.time())
    except ValueError:
        return None


def again(error: Exception) -> bool | float:
    """Whether to ask again, or in how many seconds: what stamina's retries ask."""
    if not isinstance(error, TornError) or (error.wait_s or 0.0) > LONGEST_WAIT_S:
        return False
    return True if error.wait_s is None else error.wait_s


def _received(client: Client, url: str, path: Path) -> tuple[Path, str]:
    """A part that has all that the server states, and the md5 that it states."""
    from stamina import retry_context

    try:
        for attempt in retry_context(on=again, attempts=1 + RETRIES, timeout=None, wait_initial=0.5, wait_max=60):
            with attempt:
                return _once(client, url, path)
    except TornError as error:
        wait = f" and asks to wait {error.wait_s:.0f} s" if (error.wait_s or 0.0) > LONGEST_WAIT_S else ""
        raise FetchError(f"it did not come, {RETRIES} retries or not: {error}{wait}") from None
    raise AssertionError("unreachable")


class _Stated(NamedTuple):
    """What an answer says of the whole file. start: of the first byte that it sends. size: None where not stated."""

    start: int
    size: int | None
    version: str
    md5: str


def _stated(answer: Any) -> _Stated:
    headers, start, size, md5 = answer.headers, 0, None, ""
    if answer.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        start, size = (int(found[1]), int(found[2])) if found else (-1, None)
    elif headers.get("Content-Length", "").isdecimal():
        size = int(headers["Content-Length"])
    tag = headers.get("ETag", "")
    if like_md5 := _MD5.fullmatch(tag):
        md5 = like_md5[1].lower()
    if answer.status_code == 200 and (given := headers.get("Content-MD5")):  # else it is of the range
        try:
            md5 = base64.b64decode(given, validate=True).hex()
        except ValueError:
            raise FetchError(f"the server states a Content-MD5 that is none: {cleaned(given, 60)!r}") from None
    version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    named = hashlib.sha256(f"{version} {size}".encode()).hexdigest()[:16] if version and size else _NO_VERSION
    return _Stated(start, size, named, md5)


def _once(client: Client, url: str, path: Path) -> tuple[Path, str]:
    """Ask once, for what is missing; TornError where something is still missing then."""
    parts = parts_of(path)
    known = [part for part in parts if not part.name.endswith(f".{_NO_VERSION}.part") and part.stat().st_size]
    half = known[0] if known else None
    for part in parts:
        if part != half:
            part.unlink()
    begun = half.stat().st_size if half else 0
    # The last byte is asked for once more: a half that lacks nothing has an answer too.
    with _opened(client, url, {"Range": f"bytes={begun - 1}-"} if begun else {}) as answer:
        stated = _stated(answer)
        part = path.parent / PARTS / f"{path.name}.{stated.version}.part"
        goes_on = answer.status_code == 206 and part == half and stated.start == begun - 1
        if half and not goes_on:
            half.unlink()
        if answer.status_code == 206 and not goes_on:
            raise TornError("the server has another version by now")
        if (stated.size or 0) > MAX_BYTES:
            raise FetchError(f"expected at most {MAX_BYTES} bytes, the server states {stated.size}")
        part.parent.mkdir(exist_ok=True)
        with part.open("r+b" if goes_on else "wb") as file:
            file.seek(begun - 1 if goes_on else 0)
            for chunk in _chunks(answer):
                if client.stop.is_set():
                    raise StoppedError
                if file.tell() == 0 and not chunk.startswith((BEGINS, GZIP)):
                    part.unlink()
                    kind = cleaned(answer.headers.get("Content-Type", "unknown kind"), 60)
                    raise FetchError(f"expected a FITS file, got {kind} that begins {chunk[:40]!r}")
                file.write(chunk)
                if file.tell() > MAX_BYTES:
                    part.unlink()
                    raise FetchError(f"expected at most {MAX_BYTES} bytes, got more")
            got = file.tell()
    if stated.size is not None and got != stated.size:
        raise TornError(f"the connection ended after {got} of {stated.size} bytes")
    return part, stated.md5


def _chunks(answer: Any) -> Iterator[bytes]:
    """The bytes of an answer, the first ones enough to see what it is. Raises TornError."""
    from urllib3.exceptions import HTTPError

    stream, head = answer.raw.stream(_CHUNK, decode_content=False), b""
    try:
        for chunk in stream:
            head += chunk
            if len(head) >= len(BEGINS):
                yield head
                head = b""
    except (HTTPError, OSError) as error:
        raise TornError(f"the connection was torn: {named(error)}") from None
    if head:
        yield head


def _opened(client: Client, url: str, headers: dict[str, str]) -> Any:
    """The answer that brings the file, through the DataLink document that stands before it where there is one."""
    answer = client.get(url, headers)
    if "content=datalink" not in answer.headers.get("Content-Type", "").replace(" ", "").replace('"', ""):
        return answer
    answer.close()
    with client.get(url, {}) as document:
        text = b"".join(_limited(_chunks(document)))
    return client.get(_linked(text), headers)


def _limited(chunks: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > _MAX_LINKS:
            raise FetchError(f"expected a DataLink document of at most {_MAX_LINKS} bytes, got more")
        yield chunk


def _linked(document: bytes) -> str:
    """The address of the file itself, semantics `#this`, in a DataLink document."""
    from astropy.io.votable import parse
    from pyvo.dal.adhoc import DatalinkResults

    try:
        rows = DatalinkResults(parse(BytesIO(document), verify="ignore")).to_table()
        found = [str(row["access_url"]) for row in rows if str(row["semantics"]).endswith("#this")]
    except Exception as error:  # pyvo and astropy raise nearly anything for what they did not expect
        raise FetchError(f"its DataLink document cannot be read: {named(error)}") from None
    if not found:
        raise FetchError("its DataLink document has no row with semantics #this")
    return found[0]
