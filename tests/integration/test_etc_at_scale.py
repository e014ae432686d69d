"""ETC runs in many processes and parts: the archive of one, to the byte, whatever is killed, and each named once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import Archive
from harps_dist.formats.quarantine import Quarantine, quarantine_path
from harps_dist.formats.records import Reason
from harps_dist.spectra.grid import named_grid
from preprocessing import workers
from preprocessing.etc import GROUPS, ingest_etc
from preprocessing.merge import Part, merge, note_begun, note_done
from preprocessing.workers import processes
from tests.commands import command, environment, kill_when, run

TINY = named_grid("tiny")
PREPROCESSING = "preprocessing/__main__.py"


def bytes_of(archive: Path) -> dict[str, bytes]:
    """Every file of an archive, and its list of refused ones."""
    found = {str(path.relative_to(archive)): path.read_bytes() for path in archive.rglob("*") if path.is_file()}
    return found | {"refused": quarantine_path(archive).read_bytes()}


@pytest.fixture(scope="module")
def files(tiny_demo, tmp_path_factory) -> tuple[Path, Path]:
    """Runs and SEDs in folders whose names sort otherwise as texts than as paths; bad ones and second ones of a name;
    runs whose SED stands in their output alone."""
    folder = tmp_path_factory.mktemp("etc")
    runs, seds = folder / "etc", folder / "sed"
    good = sorted((tiny_demo / "files/etc").glob("*.json"))
    for path in (*(runs / name for name in ("a", "a-b", "a/c")), seds / "b", seds / "b-c"):
        path.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(good):
        shutil.copy(path, runs / ("", "a", "a-b", "a/c")[number % 4] / path.name)
    shutil.copy(good[0], runs / "a-b")  # a second one of its name
    older = next(path for path in good if "orders" in json.loads(path.read_text())["data"])
    for name in ("a/own-2", "a-b/own-1", "own-3"):
        document = json.loads(older.read_text())
        document["input"]["target"]["sed"] = {}
        document["input"]["sky"]["airmass"] += 0.1 * int(name[-1])
        (runs / f"{name}.json").write_text(json.dumps(document))
    (runs / "a/broken.json").write_text("{")
    shutil.copy(sorted((tiny_demo / "files/sed").glob("*"))[0], seds / "b-c")  # a second one of its name
    for number, path in enumerate(sorted((tiny_demo / "files/sed").glob("*"))):
        shutil.copy(path, seds)
        if number < 3:
            (seds / "b" / f"more-{number}{path.suffix}").write_bytes(path.read_bytes())
    (seds / "b/broken.npz").write_bytes(b"PK")
    return runs, seds


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> Path:
    archive = tmp_path_factory.mktemp("whole") / "A.zarr"
    ingest_etc(files[0], archive, TINY, files[1])
    return archive


def test_what_is_refused_is_said_and_nothing_comes_twice(files, whole):
    runs, seds = files
    archive = Archive(whole)
    refused = {refusal.source: refusal.reason for refusal in Quarantine(whole).refused}
    assert refused.pop("a/broken.json") == Reason.NOT_JSON
    assert refused.pop("b/broken.npz") == Reason.UNREADABLE
    assert len(refused) == 2
    assert {Path(source).name for source in refused} == {"harps_00000.json", "sed_00000.fits"}
    assert set(refused.values()) == {Reason.DUPLICATE}
    for group in GROUPS:
        keys = archive.column(group, "key").tolist()
        assert len(keys) == len(set(keys))
    sources = archive.column("sed", "source").tolist()
    assert sources[-3:] == ["a/own-2.json", "a-b/own-1.json", "own-3.json"]
    assert set(archive.column("response", "sed")) <= set(archive.column("sed", "key"))
    before = bytes_of(whole)
    report = ingest_etc(runs, whole, TINY, seds)
    assert (report.added, len(report.refused)) == (0, 4)
    assert bytes_of(whole) == before


def test_any_number_of_processes_makes_the_same_bytes(files, whole, tmp_path):
    report = ingest_etc(files[0], tmp_path / "A.zarr", TINY, files[1], workers=2)
    assert len(report.refused) == 4
    assert bytes_of(tmp_path / "A.zarr") == bytes_of(whole)


@pytest.mark.parametrize("of", [1, 3])
def test_any_number_of_parts_makes_the_same_bytes(of, files, whole, tmp_path):
    archive = tmp_path / "A.zarr"
    words = ("etc", "--json", files[0], "--seds", files[1], "--archive", archive, "--grid", "tiny")
    for number in range(of):
        run(command(PREPROCESSING, *words, "--part", f"{number}/{of}"), tmp_path)
    for _ in range(2):  # merging again adds nothing
        run(command(PREPROCESSING, "merge", "--archive", archive, "--parts", of), tmp_path)
        assert bytes_of(archive) == bytes_of(whole)


def test_a_second_run_of_a_name_leaves_no_sed_of_its_own(files, tmp_path):
    """Two runs of one name in different parts: the first one's SED is a file, the other's its output alone has."""
    runs, seds = tmp_path / "runs", files[1]
    names = [f"{letter}/run.json" for letter in "abcdefgh"]
    first = next(name for name in names if Part(0, 2).has(name))
    other = next(name for name in names if Part(1, 2).has(name) and name > first)
    for name, source in ((first, min(files[0].glob("harps_*.json"))), (other, files[0] / "own-3.json")):
        (runs / name).parent.mkdir(parents=True)
        shutil.copy(source, runs / name)
    ingest_etc(runs, tmp_path / "whole.zarr", TINY, seds)
    for number in range(2):
        part = Part(number, 2, "etc-")
        report = ingest_etc(runs, part.archive(tmp_path / "A.zarr"), TINY, seds, wanted=part.has)
        note_done(part.archive(tmp_path / "A.zarr"), report.added)
    merge(tmp_path / "A.zarr", 2)
    assert bytes_of(tmp_path / "A.zarr") == bytes_of(tmp_path / "whole.zarr")
    assert "run" not in Archive(tmp_path / "A.zarr").column("sed", "key").tolist()


def test_killed_with_its_processes_it_ends_with_the_same_bytes(files, whole, tmp_path):
    archive = tmp_path / "A.zarr"
    words = ("etc", "--json", files[0], "--seds", files[1], "--archive", archive, "--grid", "tiny", "--workers", 2)
    taking_in = command(PREPROCESSING, *words)
    for ready in (archive / "sed/flux/c/1", archive / "response/response/c/0"):
        assert kill_when(taking_in, tmp_path, ready.exists) == -9
    run(taking_in, tmp_path)
    assert bytes_of(archive) == bytes_of(whole)


def test_a_merge_waits_for_the_parts_of_its_kind(tmp_path):
    """Parts of ETC runs and of spectra stand side by side, and neither stands for the other."""
    whole = tmp_path / "A.zarr"
    for number in range(2):
        note_done(Part(number, 2).archive(whole), 0)
    assert merge(whole, 2).added == 0
    note_begun(Part(0, 2, "etc-").archive(whole))  # nothing of it is there yet
    note_done(Part(1, 2, "etc-").archive(whole), 0)
    with pytest.raises(ArchiveError, match="ETC parts 0 of 2"):
        merge(whole, 2)
    note_done(Part(0, 2, "etc-").archive(whole), 0)
    assert merge(whole, 2).added == 0


class Eager:
    """A pool whose every result is there at once, and which counts what nobody has taken."""

    def __init__(self):
        self.waiting = self.most = 0

    def submit(self, function, entry):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return self

    def result(self):
        self.waiting -= 1
        return self.waiting


def test_processes_are_not_far_ahead_of_who_takes_their_results():
    pool = Eager()
    assert len(list(workers._in_order(pool, 6, str, range(100)))) == 100
    assert pool.most == 6


def test_results_come_in_order_and_a_process_that_is_killed_is_told_of():
    with processes(2) as mapper:
        assert list(mapper(str, range(20))) == [str(number) for number in range(20)]
    with pytest.raises(ArchiveError, match="fewer --workers"), processes(2) as mapper:
        list(mapper(signal.raise_signal, [signal.SIGKILL]))


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """It is killed alone, so that nobody tells them."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from preprocessing.workers import processes\n"
        "def own(_): return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    with processes(2) as mapper:\n"
        "        print(*set(mapper(own, range(20))), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command_line = [sys.executable, script]  # whose output ends when the last of its processes has
    done = subprocess.run(command_line, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for pid in map(int, done.stdout.split()):
        deadline = time.monotonic() + 60
        while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline, "a process outlives the one that started it"
            time.sleep(0.05)
