"""Servers on loopback that tests read releases from: HTTP with byte ranges and faults on demand, and S3."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from socketserver import BaseServer
from urllib.request import urlopen


class _Handler(SimpleHTTPRequestHandler):
    """Serves byte ranges of files. The server's `faults` are taken up one a request: a status, or "cut"."""

    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range", "")))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, status = path.read_bytes(), 200
        size = len(content)
        self.close_connection = fault == "cut"
        if spec := self.headers.get("Range", "").removeprefix("bytes="):
            first, last = (int(part) for part in spec.split("-"))
            content, status = content[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


class RangeServer(ThreadingHTTPServer):
    """An HTTP server of a folder. requests: (path, range) of each; faults: what the next ones meet."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), lambda *a, **k: _Handler(*a, directory=str(folder), **k))
        self.requests: list[tuple[str, str]] = []
        self.faults: list[int | str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Answers requests in a thread while the block runs."""
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def http_server(folder: Path) -> Iterator[RangeServer]:
    server = RangeServer(folder)
    with serving(server):
        yield server


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3-compatible server; yields its address."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urlopen(url, timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()
