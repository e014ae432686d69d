"""A folder that is fetched into again: what is new, what failed, what is private, and the folder after a kill."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("pyvo")

from preprocessing.fetch import STATE
from tests.commands import command, kill_when, run
from tests.fetching import exposures, fetched, queries
from tests.fetching import fetch as fetch
from tests.fetching import server as server
from tests.integration.test_fetch import fits_file
from tests.integration.test_nothing_replaced import everything


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
