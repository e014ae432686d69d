"""An archive on loopback that tests fetch from: a TAP service over SQLite, and files, with faults on demand."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from tests.servers import serving

COLUMNS = (
    *("dp_id", "access_url", "target_name", "obs_collection", "instrument_name", "dataproduct_type", "proposal_id"),
    *("obs_release_date", "publication_date", "s_ra", "s_dec", "t_min", "t_max", "snr", "access_estsize"),
)
NUMBERS = ("s_ra", "s_dec", "t_min", "t_max", "snr", "access_estsize")


def votable(names: list[str], rows: list[tuple[Any, ...]], status: str = "OK", said: str = "") -> bytes:
    """An answer as TAP services write it."""
    numeric = [
        name in NUMBERS or (bool(rows) and all(isinstance(row[index], int | float | None) for row in rows))
        for index, name in enumerate(names)
    ]
    fields = "".join(
        f'<FIELD name="{name}" datatype="double"/>'
        if plain
        else f'<FIELD name="{name}" datatype="char" arraysize="*"/>'
        for name, plain in zip(names, numeric, strict=True)
    )
    cells = "".join(
        f"<TR>{''.join(f'<TD>{chr(0) if v is None else escape(str(v))}</TD>' for v in row)}</TR>" for row in rows
    ).replace("\0", "")
    info = f'<INFO name="QUERY_STATUS" value="{status}">{escape(said)}</INFO>'
    table = f"<TABLE>{fields}<DATA><TABLEDATA>{cells}</TABLEDATA></DATA></TABLE>" if names else ""
    return (
        '<?xml version="1.0"?><VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results">{info}{table}</RESOURCE></VOTABLE>'
    ).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ArchiveServer

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        query = form["QUERY"][0]
        self.server.note("query", self.path, query, self.headers)
        fault = self.server.fault("tap")
        if fault and fault.isdecimal():
            self._send(int(fault), b"busy", {"Content-Type": "text/plain", "Retry-After": self.server.retry_after})
            return
        answer = self.server.query(query)
        headers = {"Content-Type": "application/x-votable+xml"}
        if fault == "torn":
            self._send(200, answer, headers, sent=len(answer) // 2)
        else:
            self._send(200, b"<html>maintenance</html>" if fault == "html" else answer, headers)

    def do_GET(self) -> None:
        name = unquote(self.path.rsplit("/", 1)[-1])
        self.server.note("file", name, self.headers.get("Range", ""), self.headers)
        fault = self.server.fault(name)
        if self.path.startswith("/links/"):
            rows = [(f"{self.server.url}/files/{name}.txt", "#preview"), (f"{self.server.url}/files/{name}", "#this")]
            content = votable(["access_url", "semantics"], rows)
            self._send(200, content, {"Content-Type": "application/x-votable+xml;content=datalink"})
        elif fault and fault.isdecimal():
            self._send(int(fault), b"", {"Retry-After": "0"})
        elif fault == "wait":
            self._send(503, b"", {"Retry-After": "86400"})
        elif fault and fault.startswith("http"):
            self._send(302, b"", {"Location": f"{fault}/files/{name}"})
        elif name in self.server.private and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send(401, b"", {})
        elif name not in self.server.files:
            self._send(404, b"", {})
        else:
            self._file(self.server.files[name], fault)

    def _file(self, content: bytes, fault: str | None) -> None:
        status, first = 200, 0
        headers = {"Content-Type": "application/fits"}
        if self.server.versioned:
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if fault == "html":
            content, headers = b"<!DOCTYPE html><title>Sign in</title>", {"Content-Type": "text/html"}
        elif fault == "flipped":
            content = content[:-3000] + bytes([content[-3000] ^ 1]) + content[-2999:]
        elif fault == "cut":  # and says that it is all
            content = content[: len(content) // 2]
        whole = content
        if (asked := self.headers.get("Range")) and fault not in ("no ranges", "html"):
            first, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            if fault == "little":  # servers may send less than was asked for
                content = content[: first + 1000]
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(whole)}"
            content = content[first:]
        if fault in ("md5", "wrong md5"):
            headers["ETag"] = f'"{hashlib.md5(whole if fault == "md5" else b"").hexdigest()}"'
        if fault == "content md5":
            headers["Content-MD5"] = "1B2M2Y8AsgTpgAmY7PhCfg=="  # of nothing
        sent = {"torn": len(content) // 2, "at once torn": 0}.get(fault or "")
        extra = 100 if fault == "states more" else 0
        self._send(status, content, headers, sent, extra)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], sent: int | None = None, extra: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + extra))
        self.close_connection = sent is not None or bool(extra)
        self.end_headers()
        self.server.hold(len(content))
        self.wfile.write(content if sent is None else content[:sent])

    def log_message(self, *_: object) -> None:
        """Quiet."""


class ArchiveServer(ThreadingHTTPServer):
    """Tables and files of an archive.

    rows: of ObsCore. files: content by dp_id. faults: by dp_id, or "tap": what the next requests meet, one each; the
    last one stays where it ends with "!". private: what only `token` opens. asked: (kind, name, query or range, token)
    of each request. most: rows of an answer, whatever was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.rows: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.private: set[str] = set()
        self.token, self.versioned, self.most = "secret", True, 10**6
        self.columns: tuple[str, ...] = COLUMNS
        self.asked: list[tuple[str, str, str, str]] = []
        self.at_a_time = self.most_at_a_time = 0
        self.slow_s = 0.0
        self.retry_after = "0"  # of the TAP service
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def add(self, dp_id: str, content: bytes | None = None, **row: Any) -> None:
        """One product, with a file where there is content."""
        plain = {"obs_collection": "HARPS", "instrument_name": "HARPS", "dataproduct_type": "spectrum"}
        place = {"access_url": f"{self.url}/files/{dp_id}", "access_estsize": len(content or b"") / 1000}
        self.rows.append({"dp_id": dp_id} | plain | place | row)
        if content is not None:
            self.files[dp_id] = content

    def note(self, kind: str, name: str, what: str, headers: Any) -> None:
        with self._lock:
            self.asked.append((kind, name, what, headers.get("Authorization", "")))

    def fault(self, name: str) -> str | None:
        with self._lock:
            coming = self.faults.get(name)
            if not coming:
                return None
            return coming[0].removesuffix("!") if coming[0].endswith("!") else coming.pop(0)

    def hold(self, size: int) -> None:
        """Count who is being answered, for as long as the answer is meant to take."""
        if not self.slow_s:
            return
        with self._lock:
            self.at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        threading.Event().wait(self.slow_s)
        with self._lock:
            self.at_a_time -= 1

    def files_asked(self, name: str = "") -> list[str]:
        """Ranges in which a file was asked for, or names of all files."""
        files = [entry for entry in self.asked if entry[0] == "file"]
        return [entry[2] for entry in files if entry[1] == name] if name else [entry[1] for entry in files]

    def query(self, adql: str) -> bytes:
        """The answer to a query, as SQLite understands it."""
        sql = re.sub(r"^SELECT (DISTINCT )?TOP (\d+) (.*)$", r"SELECT \1\3 LIMIT \2", adql, flags=re.DOTALL)
        with sqlite3.connect(":memory:") as tables:
            for schema in ("ivoa", "TAP_SCHEMA"):
                tables.execute(f"ATTACH ':memory:' AS {schema}")
            tables.execute(f"CREATE TABLE ivoa.ObsCore ({', '.join(self.columns)})")
            tables.execute("CREATE TABLE TAP_SCHEMA.columns (table_name, column_name)")
            marks = ", ".join("?" * len(self.columns))
            rows = [[row.get(name) for name in self.columns] for row in self.rows]
            tables.executemany(f"INSERT INTO ivoa.ObsCore VALUES ({marks})", rows)
            named = [("ivoa.ObsCore", name) for name in self.columns]
            tables.executemany("INSERT INTO TAP_SCHEMA.columns VALUES (?, ?)", named)
            try:
                found = tables.execute(sql)
            except sqlite3.Error as error:
                return votable([], [], "ERROR", str(error))
            names, answer = [column[0] for column in found.description], found.fetchall()
        return votable(names, answer[: self.most], "OVERFLOW" if len(answer) > self.most else "OK")


@contextmanager
def archive_server() -> Iterator[ArchiveServer]:
    server = ArchiveServer()
    with serving(server):
        yield server
