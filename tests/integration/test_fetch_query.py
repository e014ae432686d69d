"""From a query to a folder: what is asked for, and which form of an exposure."""

from __future__ import annotations

import pytest

pytest.importorskip("pyvo")

from harps_dist.errors import FetchError
from preprocessing import obscore
from preprocessing.download import Client
from preprocessing.fetch import STATE, choose
from preprocessing.obscore import Search, find_products, quoted, read_objects
from tests.fetching import NEW, OLD, exposures, fetched
from tests.fetching import fetch as fetch
from tests.fetching import server as server
from tests.integration.test_fetch import fits_file
from tests.integration.test_nothing_replaced import everything


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
