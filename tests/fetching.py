"""What tests of `fetch` share: a server, the command, and products to be fetched."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harps_dist.console import exit_code_of
from preprocessing import __main__ as preprocessing
from tests.archive_server import ArchiveServer, archive_server
from tests.integration.test_fetch import fits_file

OLD, NEW = "2020-01-01T00:00:00", "2026-11-29T00:00:00"
Fetch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    import stamina

    with archive_server() as one, stamina.set_testing(True, attempts=100, cap=True):
        yield one


@pytest.fixture
def fetch(server, capsys, monkeypatch) -> Fetch:
    """The command: exit code, and what it printed on both streams."""

    def run_fetch(options: str, folder: Path) -> tuple[int, str, str]:
        words = ["fetch", "--spectra", str(folder), "--service", f"{server.url}/tap", *shlex.split(options)]
        monkeypatch.setattr(sys, "argv", ["harps-dist", *words])
        capsys.readouterr()
        code = exit_code_of(preprocessing.main)
        return code, *capsys.readouterr()

    return run_fetch


def exposures(server: ArchiveServer, count: int, programme: str = "072.C-0488(E)", **row: object) -> list[str]:
    """So many products, a minute apart."""
    names = [f"ADP.2026-11-01T00:{number:02}:00.000" for number in range(count)]
    for number, name in enumerate(names):
        begins = 61000 + number / 1440
        server.add(name, fits_file(number, 1000), **{
            "target_name": f"HD {100 + number}", "proposal_id": programme, "t_min": begins, "t_max": begins + 5e-4,
            "publication_date": OLD, "obs_release_date": OLD, "s_ra": 10.0 + number, "s_dec": -20.0,
        } | row)  # fmt: skip
    return names


def fetched(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".fits") for path in folder.glob("*.fits"))


def queries(server: ArchiveServer) -> str:
    return "\n".join(entry[2] for entry in server.asked if entry[0] == "query")
