"""Files of an archive on the web: whole or not at all, whatever the server does, and no token to strangers."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyvo")
import stamina

from harps_dist.errors import ConfigError, FetchError
from preprocessing.download import Client, DeniedError, check_whole, download, parts_of
from tests.archive_server import ArchiveServer, archive_server

NAME = "ADP.2026-11-29T01:02:03.456"


def fits_file(seed: int = 0, pixels: int = 40_000, checksum: bool = True) -> bytes:
    """A FITS file of a table of noise."""
    from astropy.io import fits

    flux = np.random.default_rng(seed).normal(size=pixels)
    table = fits.BinTableHDU.from_columns([fits.Column("FLUX", f"{pixels}D", array=flux[None])])
    written = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(written, checksum=checksum)
    return written.getvalue()


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    with archive_server() as one, stamina.set_testing(True, attempts=100, cap=True):
        yield one


def bring(server: ArchiveServer, folder: Path, name: str = NAME, client: Client | None = None) -> Path:
    return download(client or Client(), f"{server.url}/files/{name}", folder / name)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".parts" or any(path.iterdir()))


@pytest.mark.parametrize(
    "fault", [None, "torn", "at once torn", "503", "429", "500", "408", "states more", "no ranges", "md5"]
)
@pytest.mark.parametrize("versioned", [True, False])
def test_what_servers_do_now_and_then_is_mended(fault, versioned, server, tmp_path):
    server.files[NAME], server.versioned = fits_file(), versioned
    server.faults[NAME] = [fault] if fault else []
    path = bring(server, tmp_path)
    assert path.read_bytes() == server.files[NAME]
    assert left(tmp_path) == [f"{NAME}.fits"]


@pytest.mark.parametrize(
    "faults", [["torn", "torn", "503", "torn"], ["torn", "no ranges"], ["torn", "states more"], ["torn", "little"]]
)
def test_torn_connections_go_on_where_they_ended(faults, server, tmp_path):
    server.files[NAME], server.faults[NAME] = fits_file(), [*faults]
    assert bring(server, tmp_path).read_bytes() == server.files[NAME]
    half = len(server.files[NAME]) // 2
    assert server.files_asked(NAME)[:2] == ["", f"bytes={half - 1}-"]


def test_a_half_of_another_process_is_gone_on_with(server, tmp_path):
    server.files[NAME], server.faults[NAME] = fits_file(), ["torn", "500!"]
    with pytest.raises(FetchError, match="did not come, 8 retries or not: the server answers 500"):
        bring(server, tmp_path)
    (half,) = parts_of(tmp_path / NAME)
    assert half.read_bytes() == server.files[NAME][: len(server.files[NAME]) // 2]
    server.faults.clear()
    server.asked.clear()
    assert bring(server, tmp_path).read_bytes() == server.files[NAME]
    assert server.files_asked(NAME) == [f"bytes={len(server.files[NAME]) // 2 - 1}-"]
    assert left(tmp_path) == [f"{NAME}.fits"]


def test_a_whole_that_was_not_named_yet_is_not_fetched_again(server, tmp_path):
    server.files[NAME], server.faults[NAME] = fits_file(), ["torn", "500!"]
    with pytest.raises(FetchError):
        bring(server, tmp_path)
    (half,) = parts_of(tmp_path / NAME)
    half.write_bytes(server.files[NAME])
    server.faults.clear()
    server.asked.clear()
    assert bring(server, tmp_path).read_bytes() == server.files[NAME]
    assert server.files_asked(NAME) == [f"bytes={len(server.files[NAME]) - 1}-"]


@pytest.mark.parametrize("versioned", [True, False])
def test_two_versions_are_never_put_together(versioned, server, tmp_path):
    server.files[NAME], server.versioned = fits_file(0, checksum=False), versioned
    server.faults[NAME] = ["torn", "500!"]
    with pytest.raises(FetchError):
        bring(server, tmp_path)
    server.faults.clear()
    server.files[NAME] = fits_file(1, checksum=False)  # as large, and nothing in it tells
    assert bring(server, tmp_path).read_bytes() == server.files[NAME]
    assert left(tmp_path) == [f"{NAME}.fits"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("html", "expected a FITS file, got text/html that begins b'<!DOCTYPE"),
        ("cut", "no whole FITS file: the header of HDU 1 promises data up to byte"),
        ("flipped", "HDU 1 is not what its CHECKSUM and DATASUM state"),
        ("wrong md5", "the server states md5 d41d8cd98f00b204e9800998ecf8427e, but what came has"),
        ("content md5", "the server states md5 d41d8cd98f00b204e9800998ecf8427e, but what came has"),
        ("states more", "did not come, 8 retries or not: the connection"),
        ("404", "the server answers 404"),
        ("403", "the server answers 403"),
        ("wait", "answers 503 Service Unavailable and asks to wait 86400 s"),
    ],
)  # fmt: skip
def test_what_is_wrong_never_gets_the_name(fault, said, server, tmp_path):
    server.files[NAME], server.faults[NAME] = fits_file(), [f"{fault}!"]
    with pytest.raises(FetchError, match=re.escape(said)):
        bring(server, tmp_path)
    assert set(left(tmp_path)) <= {".parts"}
    asked = {"wait": 1, "html": 1, "404": 1, "403": 1, "states more": 9}.get(fault, 2)
    assert len(server.files_asked(NAME)) == asked
    server.faults.clear()  # and what is left does no harm
    assert bring(server, tmp_path).read_bytes() == server.files[NAME]
    assert left(tmp_path) == [f"{NAME}.fits"]


@pytest.mark.parametrize("fault", ["flipped", "cut", "wrong md5"])
def test_what_arrived_damaged_is_fetched_once_more(fault, server, tmp_path):
    server.files[NAME], server.faults[NAME] = fits_file(), [fault]
    assert bring(server, tmp_path).read_bytes() == server.files[NAME]


def test_a_gzipped_file_gets_its_ending_and_a_cut_one_none(server, tmp_path):
    server.files[NAME] = gzip.compress(fits_file(), mtime=0)
    assert bring(server, tmp_path).name == f"{NAME}.fits.gz"
    server.faults["b"], server.files["b"] = ["cut!"], server.files[NAME]
    with pytest.raises(FetchError, match="the packed stream ends before its end mark"):
        bring(server, tmp_path, "b")


def test_what_stands_there_is_not_replaced(server, tmp_path):
    server.files[NAME] = fits_file()
    (tmp_path / f"{NAME}.fits").write_text("of mine")
    with pytest.raises(FileExistsError):
        bring(server, tmp_path)
    assert (tmp_path / f"{NAME}.fits").read_text() == "of mine"


def test_a_datalink_document_leads_to_the_file(server, tmp_path):
    server.files[NAME], server.faults[NAME] = fits_file(), []
    path = download(Client(), f"{server.url}/links/{NAME}", tmp_path / NAME)
    assert path.read_bytes() == server.files[NAME]


def test_genuine_files_are_whole(genuine_data):
    files = sorted((genuine_data / "harps").glob("*.fits*"))
    assert files
    for path in files:
        assert path.name.endswith(check_whole(path)), path


def test_stale_sums_of_old_files_are_no_fault(tmp_path):
    """Files of the old pipeline that others cut have a DATASUM of before and no CHECKSUM."""
    from astropy.io import fits

    old = fits.PrimaryHDU(np.arange(10.0))
    old.header["DATASUM"] = "12345"
    old.writeto(tmp_path / "a.fits")
    assert check_whole(tmp_path / "a.fits") == ".fits"


def tokens_seen(server: ArchiveServer) -> list[str]:
    return [entry[3] for entry in server.asked if entry[0] == "file"]


def test_the_token_opens_what_is_private(server, tmp_path):
    server.files[NAME], server.private = fits_file(), {NAME}
    with pytest.raises(DeniedError, match="401"):
        bring(server, tmp_path)
    assert bring(server, tmp_path, client=Client("secret", (server.host,))).is_file()
    assert tokens_seen(server) == ["", "Bearer secret"]


def test_the_token_goes_to_no_other_host(server, tmp_path, capsys):
    client = Client("secret", (server.host,))
    with archive_server() as other:
        other.files[NAME], server.faults[NAME] = fits_file(), [other.url]
        assert bring(server, tmp_path, client=client).is_file()
        assert (tokens_seen(server), tokens_seen(other)) == (["Bearer secret"], [""])
        other.files["b"] = fits_file()
        assert bring(other, tmp_path, "b", client).is_file()  # a row of the table may name any host
        assert tokens_seen(other) == ["", ""]
        other.files["c"], server.faults["c"] = fits_file(), [other.url]
        both = Client("secret", (server.host, other.host))  # but two that are named both get it
        assert bring(server, tmp_path, "c", both).is_file()
        assert tokens_seen(other)[-1] == "Bearer secret"


def test_the_token_is_never_sent_or_said_in_the_open(monkeypatch, server):
    from requests import PreparedRequest, Request

    def sent(url: str) -> PreparedRequest:
        return Client("secret", ("archive.eso.org",)).session.prepare_request(Request("GET", url))

    assert sent("https://archive.eso.org/x").headers["Authorization"] == "Bearer secret"
    for url in ("http://archive.eso.org/x", "https://archive.eso.org.evil.org/x", "https://archive.eso.org:444/x"):
        assert "Authorization" not in sent(url).headers
    with pytest.raises(ConfigError) as said:
        Client("sec ret\n", ())
    assert "sec" not in str(said.value)
