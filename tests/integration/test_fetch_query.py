"""From a query to a folder: what is asked for, which form of an exposure, what is new, and the folder after a kill."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyvo")
import stamina

from harps_dist.console import exit_code_of
from harps_dist.errors import FetchError
from preprocessing import __main__ as preprocessing
from preprocessing import obscore
from preprocessing.download import Client
from preprocessing.fetch import STATE, choose
from preprocessing.obscore import Search, find_products, quoted, read_objects
from tests.archive_server import ArchiveServer, archive_server
from tests.commands import command, kill_when, run
from tests.integration.test_fetch import fits_file
from tests.integration.test_nothing_replaced import everything

OLD, NEW = "2020-01-01T00:00:00", "2026-11-29T00:00:00"
Fetch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
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


def test_a_programme_comes_with_its_runs_and_no_other(server, fetch, tmp_path):
    names = exposures(server, 4)
    for name, run_id in zip(names, ("072.C-0488(E)", "072.C-0488(F)", "072.C-04881(A)", "072.C-0488"), strict=True):
        next(row for row in server.rows if row["dp_id"] == name)["proposal_id"] = run_id
    server.add("ADP.x", fits_file(), proposal_id="072.C-0488(E)", obs_collection="UVES")
    code, said, wrong = fetch("--programme 072.C-0488", tmp_path / "a")
    assert code == 0, said + wrong
    assert fetched(tmp_path / "a") == [names[0], names[1], names[3]]
    for name in fetched(tmp_path / "a"):
        assert (tmp_path / f"a/{name}.fits").read_bytes() == server.files[name]
    assert "fetched 3, there already 0, failed 0" in said
    assert fetch("--programme '072.C-0488(F)'", tmp_path / "b")[0] == 0
    assert fetched(tmp_path / "b") == [names[1]]


def test_run_again_nothing_is_fetched_twice(server, fetch, tmp_path):
    names = exposures(server, 3)
    assert fetch("--programme 072.C-0488", tmp_path / "a")[0] == 0
    before = everything(tmp_path)
    server.asked.clear()
    code, said, _ = fetch("--programme 072.C-0488", tmp_path / "a")
    assert (code, server.files_asked()) == (0, [])
    assert f"fetched 0, there already {len(names)}, failed 0" in said
    after = everything(tmp_path)
    assert before.keys() == after.keys() == {"a", *(f"a/{name}.fits" for name in names), "a/.harps_dist", f"a/{STATE}"}
    assert all(after[name] == before[name] for name in before if not name.endswith(STATE))


def test_a_dry_run_counts_and_writes_nothing(server, fetch, tmp_path):
    exposures(server, 3, access_estsize=500_000)
    server.rows[0]["access_estsize"] = None
    server.rows[1]["obs_release_date"] = "2999-01-01T00:00:00"
    code, said, wrong = fetch("--since 2003-01-01 --dry-run", tmp_path / "a")
    assert code == 0, wrong
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in said.splitlines() if "│" in line]
    assert ["to fetch", "2", "0.500 + 1 unknown"] in cells
    assert ["not public yet", "1", "0.500"] in cells
    assert list(tmp_path.iterdir()) == []
    assert server.files_asked() == []


def test_a_date_bounds_the_observation(server, fetch, tmp_path):
    exposures(server, 2)
    server.rows[0]["t_min"], server.rows[0]["t_max"] = 60999.9999, 61000.1
    assert fetch("--since 2025-11-21", tmp_path / "a")[0] == 0  # MJD 61000
    assert fetched(tmp_path / "a") == [server.rows[1]["dp_id"]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "nothing is asked for. Give --programme, --since or --objects."),
        ("--since yesterday", "--since is 'yesterday', expected a date as 2026-11-30, or last."),
        ("--since last", "there is no --since last. Run it with a date, or without --since, first."),
        ("--programme \"x' OR '1'='1\"", "expected a programme as 072.C-0488"),
        ("--programme 072%", "expected a programme as 072.C-0488"),
        ("--programme 1 --service archive.eso.org", "--service is 'archive.eso.org', expected an address as https://"),
        ("--programme 1 --connections 0", "--connections is 0, expected 1 to 16."),
        ("--programme 1 --objects {gone}", "ConfigError"),
    ],
)
def test_what_cannot_be_asked_is_said_and_nothing_is_left(options, said, server, fetch, tmp_path):
    exposures(server, 1)
    code, _, wrong = fetch(options.format(gone=tmp_path / "gone.csv"), tmp_path / "a")
    assert code == 1
    assert said in wrong or "gone.csv" in wrong
    assert len(wrong.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["Barnard's star", "''", "x' OR '1'='1", "'; DROP TABLE ivoa.ObsCore; --", "100%_"])
def test_texts_are_quoted(text, server):
    server.add("a", target_name=text)
    server.add("b", target_name="other")
    answer = server.query(f"SELECT TOP 10 dp_id FROM ivoa.ObsCore WHERE target_name = {quoted(text)}").decode()
    assert "<TD>a</TD>" in answer
    assert "<TD>b</TD>" not in answer


@pytest.mark.parametrize("most", [3, 10**6])
def test_limits_of_the_service_cut_nothing_short(most, server, monkeypatch):
    exposures(server, 20)
    monkeypatch.setattr(obscore, "PAGE", 7)
    server.most = most
    found = find_products(f"{server.url}/tap", Client(), Search("HARPS"))
    assert [product.dp_id for product in found.products] == sorted(server.files)


def test_fewer_rows_than_were_counted_are_an_error(server, monkeypatch):
    exposures(server, 4)
    plain = server.query
    monkeypatch.setattr(server, "query", lambda adql: plain(adql.replace("dp_id IS NOT NULL", "snr > 0")))
    with pytest.raises(FetchError, match="counts 4 products and gives 0"):
        find_products(f"{server.url}/tap", Client(), Search("HARPS"))


@pytest.mark.parametrize("fault", ["503", "429", "torn", "html"])
def test_a_query_is_repeated(fault, server, fetch, tmp_path):
    names = exposures(server, 2)
    server.faults["tap"] = [fault, fault]
    assert fetch("--programme 072.C-0488", tmp_path / "a")[0] == 0
    assert fetched(tmp_path / "a") == names


@pytest.mark.parametrize("fault", ["503!", "torn!", "html!", "400!"])
def test_a_service_that_does_not_answer_is_one_sentence(fault, server, fetch, tmp_path):
    server.faults["tap"] = [fault]
    code, _, wrong = fetch("--programme 072.C-0488", tmp_path / "a")
    assert code == 1
    assert f"FetchError: the TAP service {server.url}/tap" in wrong
    assert "Traceback" not in wrong
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_asks_to_wait_long_is_asked_once(server, fetch, tmp_path):
    server.faults["tap"], server.retry_after = ["429!"], "86400"
    assert "does not answer" in fetch("--programme 1", tmp_path / "a")[2]
    assert len(server.asked) == 1


def test_a_column_that_is_missing_is_named(server, fetch, tmp_path):
    server.columns = tuple(name for name in server.columns if name not in ("t_min", "proposal_id"))
    assert "has no column t_min in ivoa.ObsCore" in fetch("--since 2020-01-01", tmp_path / "a")[2]
    server.columns = (*server.columns, "t_min")
    assert "has no column proposal_id" in fetch("--programme 1", tmp_path / "a")[2]


def test_the_newest_form_of_an_exposure_is_fetched(server, fetch, tmp_path):
    names = exposures(server, 3)
    begins = server.rows[1]["t_min"]
    for name, start, ends, published in (
        ("ADP.2026-11-20T00:00:00.000", begins + 0.4 / 86400, 5e-4, NEW),  # the same exposure, processed anew
        ("ADP.2013-01-01T00:00:00.000", begins, 5e-4 + 2 / 86400, "2013-01-01T00:00:00"),  # and of old
        ("ADP.2026-11-21T00:00:00.000", begins, 9e-4, NEW),  # one of several exposures
        ("ADP.2026-11-22T00:00:00.000", begins + 30 / 86400, 5e-4, NEW),  # another one
    ):
        server.add(name, fits_file(9, 1000), target_name="HD 101", proposal_id="072.C-0488(E)", t_min=start,
                   t_max=start + ends, publication_date=published, obs_release_date=OLD)  # fmt: skip
    code, said, _ = fetch("--programme 072.C-0488", tmp_path / "a")
    assert code == 0
    assert fetched(tmp_path / "a") == sorted(
        [names[0], names[2], *(f"ADP.2026-11-{day}T00:00:00.000" for day in (20, 21, 22))]
    )
    assert "another form of an exposure" in said
    assert fetch("--programme 072.C-0488 --every-form", tmp_path / "b")[0] == 0
    assert len(fetched(tmp_path / "b")) == 7


def test_without_dates_of_publication_the_id_tells(server):
    exposures(server, 1, publication_date=None, obs_release_date=None)
    for name in ("ADP.2027-01-01T00:00:00.000", "ADP.2014-01-01T00:00:00.000"):
        server.add(name, t_min=server.rows[0]["t_min"], t_max=server.rows[0]["t_max"])
    server.add("ADP.no-time", t_min=None)
    server.add("ADP.no-time-either", t_min=None)
    chosen, others = choose(find_products(f"{server.url}/tap", Client(), Search("HARPS")).products)
    assert [product.dp_id for product in chosen] == ["ADP.2027-01-01T00:00:00.000", "ADP.no-time", "ADP.no-time-either"]
    assert len(others) == 2


OBJECTS = {
    "names.csv": "object,teff\nHD100,5000\nBarnard's star,3100\nHD 999,1\n",
    "aliases.csv": "star,aliases\nmine,HD-100;x\nGJ 699,Barnard's Star\nHD 999,\n",
    "numbers.csv": "hd,ra,dec\n100,,\n,269.4525,4.6933\n999,,\n",
    "places.csv": "ra,dec\n10.005,-20.005\n269.45,4.69\n77,7\n",
    "names.txt": "# of mine\nHD 100\nBARNARDS_STAR, not\nBarnard's star\n",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_stars_of_a_list_are_found_by_name_or_place(name, server, fetch, tmp_path):
    names = exposures(server, 3)
    server.add("ADP.barnard", fits_file(), target_name="barnard's  STAR", s_ra=269.4525, s_dec=4.6933, t_min=61001.0)
    path = tmp_path / name
    path.write_text(OBJECTS[name])
    code, said, wrong = fetch(f"--objects {path}", tmp_path / "a")
    assert code == 0, said + wrong
    assert fetched(tmp_path / "a") == [names[0], "ADP.barnard"]
    assert "1 objects of the list have nothing, by name or by position: " in said


def test_a_place_reaches_over_zero_hours_and_not_into_corners(server, tmp_path):
    for name, ra, dec in (("a", 359.995, 0.0), ("b", 0.005, 0.0), ("c", 0.0, 89.999), ("d", 180.0, 89.999),
                          ("corner", 0.0163, 0.0163), ("far", 0.1, 0.0)):  # fmt: skip
        server.add(name, target_name="star", s_ra=ra, s_dec=dec, t_min=61000.0)
    path = tmp_path / "o.csv"
    for place, expected in (("0.0001,0", ["a", "b"]), ("359.9999,0", ["a", "b"]), ("90,90", ["c", "d"])):
        path.write_text(f"ra,dec\n{place}\n")
        found = find_products(f"{server.url}/tap", Client(), Search("HARPS", objects=read_objects(path)))
        assert [product.dp_id for product in found.products] == expected


@pytest.mark.parametrize("text", ["object\nSTAR\n", "ra,dec\n400,0\n", "teff\n5000\n", "object\n"])
def test_a_list_that_names_no_star_is_an_error(text, tmp_path):
    (tmp_path / "o.csv").write_text(text)
    with pytest.raises(FetchError, match=r"list of objects .*o\.csv"):
        read_objects(tmp_path / "o.csv")


def test_last_asks_for_what_came_since(server, fetch, tmp_path):
    names, folder = exposures(server, 3), tmp_path / "a"
    server.rows[1]["obs_release_date"] = "2999-01-01T00:00:00"
    assert fetch("--programme 072.C-0488 --since 2025-11-21", folder)[0] == 0
    assert fetched(folder) == [names[0], names[2]]
    server.add("ADP.later", fits_file(), proposal_id="072.C-0488(E)", t_min=61002.0, publication_date="2998-01-01")
    server.add("ADP.before", fits_file(), proposal_id="072.C-0488(E)", t_min=60000.0, publication_date="2998-01-01")
    server.add("ADP.other", fits_file(), proposal_id="1", t_min=61003.0, publication_date="2998-01-01")
    server.asked.clear()
    server.rows[1]["obs_release_date"] = "2026-11-30T00:00:00"  # public by now
    state = json.loads((folder / STATE).read_text())
    (entry,) = state["fetches"].values()
    assert entry["since"] == "2025-11-21"
    code, said, _ = fetch("--programme 072.C-0488 --since last", folder)
    assert (code, fetched(folder)) == (0, [*names, "ADP.later"]), said
    assert "publication_date >= '20" in queries(server)
    assert server.files_asked() == [names[1], "ADP.later"] or set(server.files_asked()) == {names[1], "ADP.later"}
    assert fetch("--programme 1 --since last", folder)[0] == 1  # which was never asked for


def test_last_of_a_service_without_dates_compares_all(server, fetch, tmp_path):
    server.columns = tuple(name for name in server.columns if not name.endswith("_date"))
    exposures(server, 2)
    assert fetch("--programme 072.C-0488", tmp_path / "a")[0] == 0
    server.add("ADP.later", fits_file(), proposal_id="072.C-0488(E)", t_min=61002.0)
    code, said, _ = fetch("--programme 072.C-0488 --since last", tmp_path / "a")
    assert code == 0
    assert "does not say when products were published: all were compared" in said
    assert "fetched 1, there already 2, failed 0" in said


def test_what_failed_is_said_and_asked_for_again(server, fetch, tmp_path):
    names, folder = exposures(server, 4), tmp_path / "a"
    server.faults = {names[1]: ["html!"], names[2]: ["404!"]}
    server.add("../../outside", fits_file(), proposal_id="072.C-0488(E)", t_min=61005.0)
    server.add("ADP.strange", None, proposal_id="072.C-0488(E)", t_min=61006.0, access_url="file:///etc/passwd")
    code, said, _ = fetch("--programme 072.C-0488", folder)
    assert code == 1
    assert "fetched 2, there already 0, failed 4" in said
    assert f"{names[1]}: expected a FITS file, got text/html" in said
    assert f"{names[2]}: the server answers 404" in said
    assert "../../outside: its dp_id cannot be the name of a file" in said
    assert "ADP.strange: expected the address of a web server, got 'file:///etc/passwd'" in said
    assert sorted(path.name for path in folder.iterdir()) == [".harps_dist", *(f"{names[i]}.fits" for i in (0, 3))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    server.faults, server.rows = {}, server.rows[:4]
    assert fetch("--programme 072.C-0488", folder)[0] == 0
    assert fetched(folder) == names


def test_a_server_that_gives_nothing_any_more_ends_it(server, fetch, tmp_path):
    names = exposures(server, 30)
    server.faults = {name: ["404!"] for name in names}
    code, _, wrong = fetch("--programme 072.C-0488 --connections 1", tmp_path / "a")
    assert code == 1
    assert "20 products failed one after another" in wrong
    assert not (tmp_path / "a").exists()


def test_private_data_come_with_the_token_of_the_environment(server, fetch, tmp_path, monkeypatch):
    names = exposures(server, 2)
    server.rows[0]["obs_release_date"], server.private = "2999-01-01T00:00:00", {names[0]}
    assert fetch("--programme 072.C-0488", tmp_path / "a")[0] == 0
    assert fetched(tmp_path / "a") == [names[1]]
    monkeypatch.setenv("HARPS_DIST_TOKEN", "wrong")
    code, said, wrong = fetch(f"--programme 072.C-0488 --token-hosts {server.host}", tmp_path / "a")
    assert (code, "1 are not public yet, and not for this token" in said) == (0, True)
    monkeypatch.setenv("HARPS_DIST_TOKEN", "secret")
    code, said, wrong = fetch(f"--programme 072.C-0488 --token-hosts {server.host}", tmp_path / "a")
    assert (code, fetched(tmp_path / "a")) == (0, names)
    server.asked.clear()
    server.private = set(names)
    assert fetch("--programme 072.C-0488", tmp_path / "b")[0] == 1  # without the host's name
    assert {entry[3] for entry in server.asked} == {""}
    assert "secret" not in said + wrong + str(everything(tmp_path))


def test_connections_are_bounded(server, fetch, tmp_path):
    exposures(server, 9)
    server.slow_s = 0.05
    assert fetch("--programme 072.C-0488 --connections 3", tmp_path / "a")[0] == 0
    assert server.most_at_a_time == 3


@pytest.mark.parametrize("damage", ["{", '{"format": 1, "fetches": {}}', "flip"])
def test_a_damaged_record_is_an_error(damage, server, fetch, tmp_path):
    exposures(server, 1)
    assert fetch("--programme 072.C-0488", tmp_path / "a")[0] == 0
    path = tmp_path / "a" / STATE
    text = path.read_text()
    path.write_text(text.replace('"since": ""', '"since": "2026-01-01"') if damage == "flip" else damage)
    before = everything(tmp_path)
    code, _, wrong = fetch("--programme 072.C-0488 --since last", tmp_path / "a")
    assert (code, everything(tmp_path)) == (1, before)
    assert "is damaged" in wrong
    assert "Remove it" in wrong


def test_a_folder_of_others_is_not_written_into(server, fetch, tmp_path):
    (tmp_path / "mine.fits").write_text("of mine")
    before = everything(tmp_path)
    code, _, wrong = fetch("--programme 072.C-0488", tmp_path)
    assert (code, everything(tmp_path)) == (1, before)
    assert "is no folder of fetched spectra" in wrong
    assert server.asked == []


def test_killed_and_run_again_it_is_the_same_folder(server, tmp_path):
    names = exposures(server, 6)
    server.faults = {name: ["torn"] for name in names}
    server.slow_s = 0.1
    words = ("fetch", "--spectra", tmp_path / "a", "--service", f"{server.url}/tap", "--programme", "072.C-0488")
    line = command("preprocessing/__main__.py", *words, "--connections", 2)
    kill_when(line, tmp_path, lambda: len(server.files_asked()) >= 5)
    assert len(fetched(tmp_path / "a")) < len(names)
    assert "stamina" not in run(line, tmp_path)
    assert fetched(tmp_path / "a") == names
    assert sorted(path.name for path in (tmp_path / "a").glob(".*")) == [STATE, ".harps_dist"]
    for name in names:
        assert (tmp_path / f"a/{name}.fits").read_bytes() == server.files[name]


def test_what_was_fetched_is_ingested(server, fetch, tiny_demo, tmp_path):
    from harps_dist.spectra.grid import named_grid
    from preprocessing.ingest import ingest_spectra

    for number, path in enumerate(sorted((tiny_demo / "files/spectra").rglob("*.fits*"))[:3]):
        name = path.name.partition(".fits")[0]
        server.add(name, path.read_bytes(), t_min=61000.0 + number, target_name="star")
    assert fetch("--since 2003-01-01", tmp_path / "night")[0] == 0
    report = ingest_spectra(tmp_path / "night", tmp_path / "a.zarr", named_grid("tiny"))
    assert (report.added, report.refused) == (3, [])


def test_without_pyvo_one_line_names_it(fetch, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvo", None)
    code, _, wrong = fetch("--programme 1", tmp_path / "a")
    assert (code, wrong) == (1, "this needs pyvo, which is not installed: pip install 'harps_dist[fetch]'.\n")
