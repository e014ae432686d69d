"""No command replaces, or writes into, what it did not write itself: every output against everything in its way."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harps_dist.console import exit_code_of
from harps_dist.data.reader import Release
from harps_dist.files import exclusive
from harps_dist.recipes import find_recipe
from harps_dist.runs.checkpoint import Snapshot, save_checkpoint
from harps_dist.runs.run import save_recipe
from tests.commands import ROOT

MAIN = "preprocessing.__main__"
READ = {  # options that name what is only read
    "preprocessing fetch objects",
    "preprocessing ingest spectra", "preprocessing ingest catalog", "preprocessing etc json", "preprocessing etc seds",
    "preprocessing generative design", "preprocessing withdraw listed", "preprocessing pack archive",
    "preprocessing pack grow", "preprocessing verify path", "preprocessing diff before", "preprocessing diff after",
    "simulate Options model", "simulate Options labels", "simulate Options spectrum",
    "chain Chain spectra", "chain Chain archive", "chain Chain parent", "chain Chain registry", "chain Chain model",
    "chain Chain catalog", "chain Chain gate", "compare Arguments new", "compare Arguments old",
    "evaluate Arguments run", "export Arguments run", "predict Arguments model", "promote promote run",
    "fit Arguments model", "predict Arguments fits", "preprocessing pack labels_from",
    "fit Arguments stars",
    "fit Arguments lines",
    "promote promote comparison", "promote promote gate", "retrain Arguments run", "train Arguments start_from",
    "benchmark predict model", "benchmark ridge run", "benchmark curves runs", "benchmark ingest spectra",
    "promote history registry",
    "benchmark genuine spectra", "benchmark genuine labels", "benchmark genuine model", "benchmark genuine stars",
    "benchmark genuine lines", "benchmark sensitivity model", "benchmark sensitivity lines",
    "benchmark data scratch",  # in which a folder is made that has no other's name
}  # fmt: skip
# option: module, its arguments, what is written, and what else is, where another thing may be in the way
WRITTEN = {
    "preprocessing fetch spectra": (
        MAIN, "fetch --spectra {out} --since 2026-01-01 --service http://127.0.0.1:9", "night", (),
    ),
    "preprocessing ingest archive": (
        MAIN, "ingest --spectra {files}/spectra --archive {out} --grid tiny", "a.zarr",
        ("a.zarr.quarantine.csv", "a.zarr.stars.csv"),
    ),
    "preprocessing ingest part": (
        MAIN, "ingest --spectra {files}/spectra --archive {out} --grid tiny --part 0/2", "a.zarr", ("a.zarr.parts",),
    ),
    "preprocessing merge archive": (MAIN, "merge --archive {out} --parts 1", "a.zarr", ()),
    "preprocessing etc archive": (
        MAIN, "etc --json {files}/etc --archive {out} --grid tiny", "a.zarr", ("a.zarr.quarantine.csv",),
    ),
    "preprocessing generative archive": (
        MAIN, "generative --design {files}/generative/design.csv --archive {out} --grid tiny", "a.zarr", (),
    ),
    "preprocessing withdraw archive": (MAIN, "withdraw {out} ADP.x", "a.zarr", ()),
    "preprocessing pack release": (MAIN, "pack --archive {archive} --release {out}", "r", ()),
    "preprocessing pack release grown": (MAIN, "pack --archive {archive} --release {out} --grow {release}", "r", ()),
    "preprocessing diff json": (MAIN, "diff {release} {release} --json {out}", "d.json", ()),
    "preprocessing demo folder": (
        MAIN, "demo --folder {out} --size.grid tiny", "demo", ("demo/files", "demo/archive.zarr", "demo/release"),
    ),
    "preprocessing demo folder delivery": (
        MAIN, "demo --folder {out} --size.grid tiny --delivery 1", "demo", ("demo/delivery-1",),
    ),
    "train Arguments out": ("train", "demo-cnn-mix --out {out} --data.release {release}", "run", ()),
    "retrain Arguments out": ("retrain", "--from {run} --release {release} --policy scratch --out {out}", "run", ()),
    "evaluate Arguments out": ("evaluate", "{run} --release {release} --out {out}", "e", ("e/index.html",)),
    "compare Arguments out": ("compare", "{run} --release {release} -o {out}", "c", ()),
    "promote promote registry": ("promote", "promote {run} --registry {out}", "models", ("models/current",)),
    "promote rollback registry": ("promote", "rollback --registry {out}", "models", ()),
    "export Arguments folder": ("export", "{run} {out} --release {release}", "x", ()),
    "predict Arguments output": (
        "predict", "{run} {files}/spectra -o {out}", "t.csv", ("t.csv.json", "t.csv.failed.csv", "t.csv.parts"),
    ),
    "predict Arguments output fits": ("predict", "{run} {files}/spectra -o {out}", "t.fits", ("t.fits.parts",)),
    "predict Arguments output ecsv": ("predict", "{run} {files}/spectra -o {out}", "t.ecsv", ()),
    "predict Arguments output parquet": ("predict", "{run} {files}/spectra -o {out}", "t.parquet", ()),
    "fit Arguments output": (
        "fit", "{files}/spectra -o {out}", "t.csv", ("t.csv.json", "t.csv.failed.csv", "t.csv.parts"),
    ),
    "fit Arguments output ecsv": ("fit", "{files}/spectra -o {out}", "t.ecsv", ()),
    "fit Arguments figures": ("fit", "{files}/spectra -o {out}.csv --figures {out}", "f", ()),
    "lines Arguments output": ("lines", "{files}/spectra --teff 5500 --logg 4.4 --mh 0 -o {out}", "l.npz", ()),
    "simulate Options out": ("simulate", "{run} -o {out}", "s.fits", ()),
    "simulate Options out csv": ("simulate", "{run} -o {out}", "s.csv", ("s.csv.json",)),
    "simulate Options out ecsv": ("simulate", "{run} -o {out}", "s.ecsv", ()),
    "simulate Options out parquet": ("simulate", "{run} -o {out}", "s.parquet", ()),
    "simulate Options out png": ("simulate", "{run} -o {out}", "s.png", ()),
    "simulate Options out traverse": ("simulate", "{run} --traverse rv -o {out}", "v.png", ("v.csv",)),
    **{
        f"simulate Options out many {name}": ("simulate", "{run} --labels {labels} -o {out}", name, beside)
        for name, beside in {
            "m.zarr": ("m.zarr.parts",), "m.parquet": ("m.parquet.parts",), "m.fits": ("m.fits.parts",), "m": (),
        }.items()
    },
    "reproduce Arguments runs": (
        "reproduce", "{out} --scale demo --release {release}", "",
        ("runs/index.html", "runs/tables.md", "runs/tables.json", "runs/figures"),
    ),
    "chain Arguments folder": ("chain", "{out} --spectra {files} --archive {archive} --parent {release}", "c", ()),
    **{
        f"benchmark {name} json": ("benchmark", f"{name} {arguments} --json {{out}}", "b.json", ())
        for name, arguments in {
            "models": "", "speed": "", "data": "--release {release}", "step": "", "ranks": "", "growth": "", "etc": "",
            "ingest": "",
            "predict": "{run} {files}",
            "sensitivity": "{run}",
            "genuine": "--spectra {files}/spectra --labels {files}/catalog.csv",
        }.items()
    },
    "benchmark genuine tables": (
        "benchmark", "genuine --spectra {files}/spectra --labels {files}/catalog.csv --tables {out}", "g", (),
    ),
    "benchmark ridge out": ("benchmark", "ridge {run} --release {release} --out {out}", "e", ()),
    "benchmark nuisances out": ("benchmark", "nuisances --release {release} --out {out}", "n.png", ()),
    "benchmark curves out": ("benchmark", "curves {run} --loss label --out {out}", "c.png", ("c.csv",)),
}  # fmt: skip
PLACES = [
    (option, name) for option, (_, _, out, beside) in WRITTEN.items() for name in (*filter(None, (out,)), *beside)
]
HINDRANCES = ("folder", "file", "archive", "release", "link to a file", "link to a folder", "link to nothing")
OWN = {"a.zarr": "archive", "demo/archive.zarr": "archive", "r": "release", "demo/release": "release"}
CASES = [(*place, hindrance) for place in PLACES for hindrance in HINDRANCES if OWN.get(place[1]) != hindrance]


def paths_of_commands() -> set[str]:
    """Every option of a command whose type names a path: "script class-or-function option"."""
    options_of = {"simulate": "harps_dist/inference/options.py", "chain": "harps_dist/cluster/chain.py"}
    scripts = [("preprocessing", ROOT / "preprocessing/__main__.py")]
    doors = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))
    scripts += [(name, ROOT / f"harps_dist/commands/{name}.py") for name in doors]
    scripts += [("benchmark", ROOT / f"harps_dist/commands/benchmark_{part}.py") for part in ("files", "nuisances")]
    found = set()
    for script, path in [*scripts, *((name, ROOT / path) for name, path in options_of.items())]:
        for node in ast.walk(ast.parse(path.read_text())):
            options: list[tuple[str, ast.expr | None]] = []
            if isinstance(node, ast.ClassDef):
                fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
                options = [(ast.unparse(field.target), field.annotation) for field in fields]
            elif isinstance(node, ast.FunctionDef) and (script, path) in scripts and not node.name.startswith("_"):
                options = [(argument.arg, argument.annotation) for argument in node.args.args]
            found |= {f"{script} {node.name} {name}" for name, kind in options if kind and "Path" in ast.unparse(kind)}
    return found


def run_command(script: str, arguments: str, capsys, monkeypatch) -> tuple[int, str]:
    """A command in this process: its exit code, and what it said of what went wrong."""
    module = importlib.import_module(script if script == MAIN else f"harps_dist.commands.{script}")
    monkeypatch.setattr(sys, "argv", [script, *arguments.split()])
    capsys.readouterr()
    code = exit_code_of(module.main)
    return code, capsys.readouterr().err


def everything(folder: Path) -> dict[str, str | bytes | None]:
    """Every name below a folder with what it holds."""
    found: dict[str, str | bytes | None] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def foreign_file(path: Path) -> None:
    """A table, figure or text of a user, in the form that the name says."""
    if path.suffix in (".fits", ".ecsv"):
        from astropy.table import Table

        table = Table({"object": ["HD 1"], "file": ["/data/harps_dist/a.fits"]}, meta={"EXPORT": "harps_dist"})
        table.write(path, format="fits" if path.suffix == ".fits" else "ascii.ecsv")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"object": ["harps_dist"]}), path)
    elif path.suffix == ".png":
        from matplotlib.figure import Figure

        Figure(figsize=(1, 1)).savefig(path)
    else:
        first = {".json": '{"made": "by harps_dist"}', ".csv": "wave_aa,flux"}.get(path.suffix, "harps_dist")
        path.write_text(f"{first}\n")


def foreign_folder(path: Path) -> None:
    """Files of a user, a model of another library among them."""
    path.mkdir()
    (path / "thesis.txt").write_text("harps_dist, a chapter of mine")
    (path / "config.json").write_text('{"model_type": "bert", "format": 1}')
    (path / "manifest.json").write_text('{"files": ["thesis.txt"]}')
    (path / "recipe.yaml").write_text("recipe: pancakes\n")
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')


@pytest.fixture(scope="module")
def inputs(tiny_demo, tmp_path_factory) -> dict[str, Path]:
    """What commands read: the demo, and a run with a log."""
    folder = tmp_path_factory.mktemp("inputs")
    run, release = folder / "run", Release(tiny_demo / "release")
    recipe = find_recipe("demo-cnn-mix")
    save_recipe(run, recipe, release, "demo-cnn-mix")
    state = {"step": 10, "recipe_digest": recipe.digest, "release_digest": release.digest}
    save_checkpoint(run / "checkpoints", Snapshot({"w": torch.zeros(3)}, {}), state, keep=2)
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "loss_label": 1.0}) + "\n")
    (folder / "labels.csv").write_text("teff\n5000\n")
    demo = {name: tiny_demo / path for name, path in (("files", "files"), ("archive", "archive.zarr"))}
    return demo | {"release": tiny_demo / "release", "run": run, "labels": folder / "labels.csv"}


def test_every_option_that_names_a_path_is_known_as_read_or_tried_here():
    written = {" ".join(option.split()[:3]) for option in WRITTEN}
    assert paths_of_commands() - READ == written - {"preprocessing ingest part"}


@pytest.mark.parametrize(("option", "name", "hindrance"), CASES)
def test_what_is_in_the_way_stays_as_it_is(option, name, hindrance, inputs, tmp_path, capsys, monkeypatch):
    script, arguments, out, _ = WRITTEN[option]
    way, mine = tmp_path / name, tmp_path / "mine"
    way.parent.mkdir(exist_ok=True)
    if way.parent.name == "demo":
        way.parent.rmdir()
        (tmp_path / "demo/files").mkdir(parents=True)
        (tmp_path / "demo/files/.harps_dist").write_text('{"harps_dist": "folder of the demo\'s files"}')
        if name == "demo/files":
            shutil.rmtree(tmp_path / "demo/files")
    if way.parent.name == "models":
        (tmp_path / "models/.harps_dist").write_text('{"harps_dist": "registry of models"}')
    if hindrance == "folder":
        foreign_folder(way)
    elif hindrance == "file":
        foreign_file(way)
    elif hindrance in ("archive", "release"):
        shutil.copytree(inputs[hindrance], way)
    else:
        {"link to a file": foreign_file, "link to a folder": foreign_folder}.get(hindrance, lambda path: None)(mine)
        way.symlink_to(mine)
    before = everything(tmp_path)
    place = tmp_path / (out or "runs")
    code, said = run_command(script, arguments.format(out=place, **inputs), capsys, monkeypatch)
    assert code == 1, said
    assert everything(tmp_path) == before
    assert len(said.strip().splitlines()) == 1, said
    assert str(way) in said or str(place) in said


@pytest.mark.parametrize(
    ("script", "arguments", "locked"),
    [
        (*WRITTEN[option][:2], locked)
        for option, locked in {
            "preprocessing ingest archive": ".out.lock", "preprocessing pack release": ".out.lock",
            "preprocessing pack release grown": ".out.lock", "preprocessing diff json": ".out.lock",
            "preprocessing demo folder": "out/.lock", "train Arguments out": "out/.lock",
            "evaluate Arguments out": "out/.lock", "compare Arguments out": "out/.lock",
            "export Arguments folder": ".out.lock", "reproduce Arguments runs": "out/.index.html.lock",
            "benchmark ridge out": "out/.lock",
        }.items()
    ],
)  # fmt: skip
def test_one_process_writes_at_a_time(script, arguments, locked, inputs, tmp_path, capsys, monkeypatch):
    (tmp_path / locked).parent.mkdir(exist_ok=True)
    with exclusive(tmp_path / locked):
        before = everything(tmp_path)
        code, said = run_command(script, arguments.format(out=tmp_path / "out", **inputs), capsys, monkeypatch)
        assert code == 1
        assert "another process is writing" in said
        assert "Wait until it has ended." in said
        assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (MAIN, "fetch --spectra {out} --objects {gone}.csv"),
        (MAIN, "fetch --spectra {files}/catalog.csv/x --since 2026-01-01"),
        (MAIN, "ingest --spectra {gone} --archive {out}"),
        (MAIN, "ingest --spectra {empty} --archive {out}"),
        (MAIN, "ingest --spectra {files}/spectra --catalog {gone} --archive {out}"),
        (MAIN, "ingest --spectra {gone} --archive {out} --part 0/2"),
        (MAIN, "etc --json {gone} --archive {out}"),
        (MAIN, "etc --json {files}/etc --seds {gone} --archive {out}"),
        (MAIN, "generative --design {gone} --archive {out}"),
        (MAIN, "withdraw {archive} --listed {gone}"),
        (MAIN, "withdraw {archive} --listed {files}/complete/x"),
        (MAIN, "withdraw {gone} x"),
        (MAIN, "merge --archive {gone} --parts 2"),
        (MAIN, "pack --archive {gone} --release {out}"),
        (MAIN, "pack --archive {archive} --release {out} --grow {gone}"),
        (MAIN, "pack --archive {archive} --release {files}/catalog.csv/x"),
        (MAIN, "diff {gone} {gone}"),
        (MAIN, "verify {gone}"),
        ("train", "demo-cnn-mix --data.release {gone} --out {out}"),
        ("train", "demo-cnn-mix --data.release {release} --out {files}/catalog.csv/x"),
        ("retrain", "--from {gone} --release {release} --out {out}"),
        ("evaluate", "{gone} --release {release} --out {out}"),
        ("evaluate", "{run} --release {gone} --out {out}"),
        ("compare", "{gone} --release {release} -o {out}"),
        ("export", "{gone} {out} --release {release}"),
        ("export", "{run} {files}/catalog.csv/x --release {release}"),
        ("predict", "{gone} {files}/spectra -o {out}.csv"),
        ("predict", "{run} {files}/spectra -o {files}/catalog.csv/t.csv"),
        ("predict", "{run} {files}/spectra -o {out}.ecsv --fits {gone}"),
        ("predict", "{run} {files}/spectra -o {out}.ecsv --fits {files}/catalog.csv"),
        (MAIN, "pack --archive {archive} --release {out} --labels-from {gone}.ecsv"),
        ("simulate", "{gone} -o {out}.fits"),
        ("simulate", "{run} -o {files}/catalog.csv/s.fits"),
        ("promote", "promote {run} --gate {gone} --registry {out}"),
        ("promote", "promote {run} --comparison {gone} --registry {files}/catalog.csv/x"),
        ("promote", "rollback --registry {out}"),
        ("chain", "{out} --spectra {gone} --archive {archive} --parent {release}"),
        ("benchmark", "curves {gone} --out {out}.png"),
        ("benchmark", "genuine --spectra {gone} --labels {files}/catalog.csv --json {out}.json"),
        ("benchmark", "genuine --spectra {empty} --labels {files}/catalog.csv --tables {out}"),
        ("benchmark", "genuine --spectra {files}/spectra --labels {gone} --tables {out}"),
        ("benchmark", "models --json {gone}/b.json"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_left(script, arguments, inputs, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    names = {"gone": tmp_path / "gone", "out": tmp_path / "out", "empty": tmp_path / "empty"}
    before = everything(tmp_path), everything(inputs["files"])
    code, said = run_command(script, arguments.format(**names, **inputs), capsys, monkeypatch)
    assert code == 1, said
    assert len(said.strip().splitlines()) == 1, said
    assert (everything(tmp_path), everything(inputs["files"])) == before


def test_a_release_that_holds_a_users_file_is_not_replaced(inputs, tmp_path, capsys, monkeypatch):
    shutil.copytree(inputs["release"], tmp_path / "r")
    (tmp_path / "r/notes.txt").write_text("of mine")
    before = everything(tmp_path)
    arguments = WRITTEN["preprocessing pack release"][1].format(out=tmp_path / "r", **inputs)
    code, said = run_command(MAIN, f"{arguments} --codec u16", capsys, monkeypatch)
    assert (code, everything(tmp_path)) == (1, before)
    assert "holds 'notes.txt' besides a release, so it is not replaced" in said
    (tmp_path / "r/notes.txt").unlink()
    assert run_command(MAIN, f"{arguments} --codec u16", capsys, monkeypatch)[0] == 0
    assert Release(tmp_path / "r").manifest.codec.real == "u16"


def test_an_empty_folder_and_a_link_to_ones_own_archive_are_written_into(inputs, tmp_path, capsys, monkeypatch):
    for name in ("real.zarr", "r"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.zarr").symlink_to("real.zarr")
    ingest = WRITTEN["preprocessing ingest archive"][1].format(out=tmp_path / "a.zarr", **inputs)
    for _ in range(2):
        assert run_command(MAIN, ingest, capsys, monkeypatch)[0] == 0
    assert (tmp_path / "a.zarr").is_symlink()
    pack = f"pack --archive {tmp_path / 'a.zarr'} --release {tmp_path / 'r'}"
    for _ in range(2):
        assert run_command(MAIN, pack, capsys, monkeypatch)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "a.zarr.stars.csv", "r", "real.zarr"]
    assert np.isfinite(Release(tmp_path / "r").array(0)).all()
