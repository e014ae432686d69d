"""What a command wrote it knows again: the same command twice, no kind for another, after a kill, on a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from harps_dist.console import exit_code_of
from harps_dist.data.reader import Release
from harps_dist.errors import DiskFullError, OutputError
from harps_dist.files import publish_folder
from harps_dist.formats.archive import Archive
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.checkpoint import Snapshot, save_checkpoint
from harps_dist.training.loop import train_run
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import pack
from tests.commands import ROOT, command, environment
from tests.integration.test_nothing_replaced import MAIN, everything, run_command

WORLD = World.alone()


@pytest.fixture(scope="module")
def inputs(tiny_demo, tmp_path_factory) -> dict[str, Path]:
    """The demo, an encoder and a decoder that were trained for a moment, and a table of labels."""
    folder, release = tmp_path_factory.mktemp("trained"), tiny_demo / "release"
    for name in ("demo-cnn-mix", "demo-cnn-dec-etc"):
        recipe = find_recipe(name).model_copy(update={"parent": None})
        settings = {"steps": 2, "batch_size": 8, "warmup_steps": 0}
        recipe = recipe.changed(model={"width": 0.125}, training=settings, data={"release": str(release)})
        train_run(recipe, name, Release(release), folder / name, WORLD)
    (folder / "labels.csv").write_text("teff\n5000\n5500\n")
    demo = {name: tiny_demo / path for name, path in (("files", "files"), ("archive", "archive.zarr"))}
    known = next(row["key"] for row in Archive(demo["archive"]).rows("real") if row["teff"] > 0)
    demo["known"] = demo["files"] / f"spectra/{known}.fits"
    models = {"run": folder / "demo-cnn-mix", "decoder": folder / "demo-cnn-dec-etc", "labels": folder / "labels.csv"}
    return demo | {"release": release} | models


AGAIN = {  # a command, and what it writes
    "etc": (MAIN, "etc --json {files}/etc --seds {files}/sed --archive {at}/a.zarr --grid tiny"),
    "diff": (MAIN, "diff {release} {release} --json {at}/d.json"),
    "evaluation": ("evaluate", "{run} --release {release} --out {at}/e"),
    "ridge": ("benchmark", "ridge {run} --release {release} --spectra 96 --components 2 --out {at}/ridge"),
    "comparison": ("compare", "{run} --release {release} -o {at}/c"),
    "export": ("export", "{run} {at}/x --release {release} --spectra 8"),
    **{
        f"predictions.{ending}": ("predict", f"{{at}}/x {{files}}/spectra -o {{at}}/t.{ending}")
        for ending in ("fits", "ecsv", "csv", "parquet")
    },
    "lines": ("lines", "{files}/spectra/*1.fits --teff 5500 --logg 4.4 --mh 0 -o {at}/l.npz"),
    "fits.csv": ("fit", "{files}/spectra/*1.fits -o {at}/f.csv"),
    **{
        f"spectrum.{ending}": ("simulate", f"{{decoder}} -o {{at}}/s.{ending}")
        for ending in ("fits", "ecsv", "csv", "parquet", "png")
    },
    **{
        f"simulation{ending}": ("simulate", f"{{decoder}} --labels {{labels}} -o {{at}}/m{ending}")
        for ending in (".zarr", ".fits", ".parquet", "")
    },
    "traversal": ("simulate", "{decoder} --traverse teff --points 2 -o {at}/v.png"),
    "curves": ("benchmark", "curves {run} --out {at}/curves.png"),
    "nuisances": ("benchmark", "nuisances --release {release} --out {at}/nuisances.png"),
    "sensitivity": ("benchmark", "sensitivity {at}/x --release {release} --json {at}/n.json"),
    "costs": ("benchmark", "models demo-cnn-mix --grid tiny --json {at}/b.json"),
    "growth": ("benchmark", "growth --sizes 4 --fresh 2 --json {at}/g.json"),
    "etc costs": ("benchmark", "etc --runs 1 --json {at}/e.json"),
    "ingest costs": ("benchmark", "ingest --files 1 --grid tiny --json {at}/i.json"),
    "genuine": (
        "benchmark",
        "genuine --spectra {known} --labels {files}/catalog.csv --tables {at}/tables --json {at}/k.json",
    ),
    "page": ("reproduce", "{at}/runs --scale demo --release {release}"),
    "delivery": (MAIN, "demo --folder {at}/demo --size.stars 2 --size.grid tiny --delivery 1"),
}


@pytest.fixture(scope="module")
def written(inputs, tmp_path_factory) -> Path:
    """A folder with an output of every kind, each written twice by the same command."""
    return tmp_path_factory.mktemp("written")


@pytest.mark.parametrize("what", AGAIN)
def test_the_same_command_again_goes_on(what, inputs, written, capsys, monkeypatch):
    script, arguments = AGAIN[what]
    for _ in range(2):
        code, said = run_command(script, arguments.format(at=written, **inputs), capsys, monkeypatch)
        assert code == 0, said
    assert not [path for path in written.rglob(".*") if path.name != ".harps_dist"]  # neither locks nor halves


@pytest.mark.parametrize(
    ("there", "script", "arguments"),
    [
        ("s.fits", "predict", "{at}/x {files}/spectra -o {out}"),
        ("s.ecsv", "predict", "{at}/x {files}/spectra -o {out}"),
        ("s.csv", "predict", "{at}/x {files}/spectra -o {out}"),
        ("s.parquet", "predict", "{at}/x {files}/spectra -o {out}"),
        ("m.fits", "predict", "{at}/x {files}/spectra -o {out}"),
        ("t.fits", "simulate", "{decoder} -o {out}"),
        ("t.csv", "simulate", "{decoder} -o {out}"),
        ("t.parquet", "simulate", "{decoder} --labels {labels} -o {out}"),
        ("m.parquet", "simulate", "{decoder} -o {out}"),
        ("v.png", "simulate", "{decoder} -o {out}"),
        ("s.png", "simulate", "{decoder} --traverse teff -o {out}"),
        ("s.png", "benchmark", "curves {run} --out {out}"),
        ("m.zarr", MAIN, "etc --json {files}/etc --archive {out} --grid tiny"),
        ("x", "train", "demo-cnn-mix --data.release {release} --out {out}"),
        ("x", MAIN, "pack --archive {archive} --release {out}"),
        ("e", "benchmark", "ridge {run} --release {release} --out {out}"),
        ("ridge", "evaluate", "{run} --release {release} --out {out}"),
        ("e", "compare", "{run} --release {release} -o {out}"),
        ("c", "evaluate", "{run} --release {release} --out {out}"),
        ("c", "promote", "promote {run} --registry {out}"),
        ("demo", MAIN, "pack --archive {archive} --release {out}"),
        ("d.json", "benchmark", "models --json {out}"),
        ("b.json", MAIN, "diff {release} {release} --json {out}"),
    ],
)
def test_one_kind_is_not_replaced_by_another(there, script, arguments, inputs, written, capsys, monkeypatch):
    assert (written / there).exists(), "the test before writes it"
    before = everything(written)
    arguments = arguments.format(at=written, out=written / there, **inputs)
    code, said = run_command(script, arguments, capsys, monkeypatch)
    assert code == 1, said
    assert "is there and is no " in said
    assert everything(written) == before


def test_tables_and_reports_of_older_versions_are_known(inputs, written, capsys, monkeypatch):
    """Folders that were written before there were marks are known by what they hold."""
    marks = list(written.rglob(".harps_dist"))
    assert len(marks) >= 5
    for mark in marks:
        mark.unlink()
    for what in ("evaluation", "ridge", "comparison", "delivery"):
        script, arguments = AGAIN[what]
        code, said = run_command(script, arguments.format(at=written, **inputs), capsys, monkeypatch)
        assert code == 0, said


HOLD = """
import sys, time
import harps_dist.files as files
def held(path):
    print("half", flush=True)
    time.sleep(600)
files._flush = held
sys.argv[1:] = {arguments!r}.split()
{start}
"""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (MAIN, "pack --archive {archive} --release {out}"),
        (MAIN, "pack --archive {archive} --release {out} --workers 2"),
        ("export", "{run} {out} --release {release} --spectra 8"),
    ],
)
def test_what_a_killed_writer_left_goes_at_the_next_start(script, arguments, inputs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = arguments.format(out=out, **inputs)
    module = script if script == MAIN else f"harps_dist.commands.{script}"
    code = HOLD.format(arguments=arguments, start=f"import {module} as module; module.main()")
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != b"half\n":
            assert line, "it ended before it could be killed"
        (left,) = tmp_path.glob(".out.*.tmp")
        neighbour = tmp_path / ".out.zarr.0123abcd.tmp"  # of another output, whose writer may live
        neighbour.touch()
        held = everything(left)
        code, said = run_command(script, arguments, capsys, monkeypatch)
        assert code == 1
        assert f"another process is writing {out}. Wait until it has ended." in said
        assert everything(left) == held
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    code, said = run_command(script, arguments, capsys, monkeypatch)
    assert code == 0, said
    assert sorted(path.name for path in tmp_path.iterdir()) == [neighbour.name, "out"]


def test_what_others_left_beside_an_output_goes_too(inputs, written, capsys, monkeypatch):
    """Half a new archive of an older version, half of a file beside; but parts of another model's predictions stay."""
    table, archive = "predictions.csv", "etc"
    parts, left = written / "t.csv.parts/0123456789abcdef", [written / ".a.zarr.new"]
    for folder in (parts, *left):
        folder.mkdir()
        (folder / "x.parquet").touch()
    halves = [written / f".{name}.0123abcd.tmp" for name in ("t.csv", "t.csv.json", "a.zarr", "a.zarr.quarantine.csv")]
    for half in halves:
        half.touch()
    for what in (table, archive):
        script, arguments = AGAIN[what]
        assert run_command(script, arguments.format(at=written, **inputs), capsys, monkeypatch)[0] == 0
    assert not any(path.exists() for path in (*left, *halves))
    assert (parts / "x.parquet").exists()


def test_what_comes_in_the_way_during_the_work_is_not_replaced_either(tmp_path):
    def check() -> None:
        raise OutputError("there")

    def publish() -> None:
        with publish_folder(tmp_path / "r", check) as aside:
            (aside / "new").touch()
            (tmp_path / "r").mkdir()
            (tmp_path / "r/mine").touch()

    with pytest.raises(OutputError):
        publish()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["r", "r/mine"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 600 kB, where this machine lets us make one."""
    disk = tmp_path / "small"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_by_ingest_and_the_archive_goes_on_after(tiny_demo, small_disk, tmp_path):
    from harps_dist.spectra.grid import named_grid

    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 250_000)
    with pytest.raises(DiskFullError, match=r"no space is left to write .*a\.zarr.*Free some space"):
        ingest_spectra(tiny_demo / "files/spectra", small_disk / "a.zarr", named_grid("tiny"))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    report = ingest_spectra(tiny_demo / "files/spectra", small_disk / "a.zarr", named_grid("tiny"))
    assert Archive(small_disk / "a.zarr").count("real") == report.added + report.already > 0
    assert sorted(path.name for path in small_disk.iterdir()) == ["a.zarr", "a.zarr.stars.csv"]


def test_a_full_disk_is_said_by_a_checkpoint_and_nothing_of_it_is_left(small_disk):
    """safetensors has an error of its own for it."""
    with pytest.raises(DiskFullError, match=r"no space is left to write .*step-00000001"):
        save_checkpoint(small_disk, Snapshot({"w": torch.zeros(400_000)}, {}), {"step": 1}, keep=1)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train", "demo-cnn-mix --data.release {release} --training.steps 2 --training.batch-size 4 --out {at}/run"),
        ("evaluate", "{run} --release {release} --out {at}/e"),
        ("predict", "{run} {files}/spectra --release {release} -o {at}/t.fits"),
        ("simulate", "{decoder} -o {at}/s.png"),
        ("simulate", "{decoder} --labels {labels} -o {at}/m.zarr"),
        (MAIN, "diff {release} {release} --json {at}/d.json"),
        ("reproduce", "{at} --scale demo --release {release}"),
    ],
)
def test_a_full_disk_is_one_sentence(script, arguments, inputs, small_disk, capsys, monkeypatch):
    with (small_disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    code, said = run_command(script, arguments.format(at=small_disk, **inputs), capsys, monkeypatch)
    assert code == 1, said
    (sentence,) = (
        line for line in said.strip().splitlines() if "━" not in line and "0:00" not in line
    )  # but for bars of progress
    assert "no space is left" in sentence


def test_a_pipe_whose_reader_has_gone_ends_a_command_without_a_word(tiny_demo):
    reader, writer = os.pipe()
    process = subprocess.Popen(
        command("preprocessing/__main__.py", "verify", tiny_demo / "release"),
        cwd=ROOT, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    time.sleep(0.1)
    os.close(reader)
    said = process.communicate()[1]
    assert [line for line in said.splitlines() if "0:00:00" not in line] == []  # but for bars of progress
    assert process.returncode == 1


@pytest.mark.parametrize("wrong", [ZeroDivisionError("x"), KeyError("x"), OSError("no file named"), BrokenPipeError()])
def test_what_is_wrong_in_the_program_keeps_its_traceback(wrong):
    def main() -> int:
        raise wrong

    with pytest.raises(type(wrong)):
        exit_code_of(main)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(2, "x", "/a/.t.csv.0123abcd.tmp"), "there is no /a/t.csv. Check the path."),
        (NotADirectoryError(20, "x", "/a/b"), "there can be no /a/b, for a part of this path is a file."),
        (IsADirectoryError(21, "x", "/a/b"), "/a/b is a folder, expected a file."),
        (PermissionError(13, "x", b"/a/\xff"), "/a/\\xff may not be read or written by you."),
        (OSError(5, "Input/output error", "/a/b"), "/a/b cannot be read or written: Input/output error."),
        (OSError(28, "No space left on device", "/a/b"), "DiskFullError: no space is left to write /a/b."),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "DiskFullError: no space is left."),
        (OSError(30, "Read-only file system", "/a/b"), "/a/b cannot be read or written: Read-only file system."),
    ],
)
def test_errors_of_files_end_in_a_sentence(error, sentence, capsys):
    def main() -> int:
        raise error

    assert exit_code_of(main) == 1
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 1


def test_pack_twice_at_once_has_one_winner(tiny_demo, tmp_path):
    """Two threads of calls, as of two processes: a lock is by open file."""
    from concurrent.futures import ThreadPoolExecutor

    def attempt(_: int) -> str:
        try:
            return pack(tiny_demo / "archive.zarr", tmp_path / "r").digest
        except OutputError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        said = set(pool.map(attempt, range(2)))
    digest = Release(tmp_path / "r").digest
    assert digest in said
    assert all(one == digest or "another process is writing" in one for one in said)
