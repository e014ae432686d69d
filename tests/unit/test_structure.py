"""The rooms of the design: imports point one way, configuration is light, the README's commands exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from harps_dist.recipes import RECIPES
from tests.commands import ROOT, environment

ROOMS = {  # room: rooms of harps_dist it may import from, besides itself
    "spectra": set(),
    "data": {"spectra"},
    "models": {"spectra", "data"},
    "training": {"spectra", "data", "models"},
    "evaluation": {"spectra", "data", "models", "training"},
    "inference": {"spectra", "data", "models", "training", "evaluation"},
}
COMMON = {"errors", "files", "frozen", "console", "sealed", "intake", "text", "ownership"}
PREPROCESSING = {
    "spectra",
    "data.manifest",
    "data.codec",
    "data.reader",  # verify reads what pack wrote
    "data.split",
    "data.keyed",
    *COMMON,
}


FILES_AND_ARCHIVES = {f"preprocessing.{name}" for name in ("readers", "records", "archive", "withdraw")}
BESIDES = {  # forms of files, which stand in preprocessing once
    "harps_dist/inference/sources.py": FILES_AND_ARCHIVES,  # labels of files, without an ingest before
    "harps_dist/inference/label_table.py": {"harps_dist.formats.tables"},
    "harps_dist/inference/spectrum_files.py": {"preprocessing.simulator.phase3"},
    "harps_dist/inference/traverse.py": {"harps_dist.formats.readers", "harps_dist.formats.records"},
}


def imported_modules(path) -> set[str]:
    """Modules of this project that a file imports when it is imported; not what only type checkers see."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("harps_dist", "preprocessing", "launch", "tests")}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    allowed = (
        ROOMS[room]
        | COMMON
        | {room}
        | ({"config", "recipes"} if room in ("models", "training", "evaluation", "inference") else set())
    )
    files = list((ROOT / "harps_dist" / room).rglob("*.py"))
    assert files
    for path in files:
        besides = BESIDES.get(str(path.relative_to(ROOT)), set())
        for module in imported_modules(path) - besides - {"harps_dist"}:  # whose version anyone may say
            assert module.startswith("harps_dist."), f"{path} imports {module}"
            assert module.split(".")[1] in allowed, f"{path} imports {module}"


def test_preprocessing_knows_only_spectra_and_the_release_format():
    for path in (ROOT / "preprocessing").rglob("*.py"):
        for module in imported_modules(path):
            if module.startswith("harps_dist."):
                inner = module.removeprefix("harps_dist.")
                assert any(inner == name or inner.startswith(f"{name}.") for name in PREPROCESSING), (
                    f"{path} imports {module}"
                )
            else:
                assert module.startswith("preprocessing"), f"{path} imports {module}"


@pytest.mark.parametrize(
    "module", ["harps_dist.recipes", "preprocessing.demo", "harps_dist.data.manifest", "harps_dist.promotion.registry"]
)
def test_configuration_imports_nothing_heavy(module):
    heavy = ("torch", "astropy", "matplotlib", "zarr", "scipy", "pyarrow", "wandb")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


def test_launch_scripts_hold_no_logic():
    for path in (ROOT / "launch").glob("*.py"):
        commands = path.read_text().count("import console_for")  # each command of a script prints
        assert len(path.read_text().splitlines()) <= 80 + 20 * max(0, commands - 1), path


def test_the_readme_names_things_that_exist():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"launch/\w+\.py|harps_dist/[\w/]+\.py", text):
        assert (ROOT / name).exists(), name
    named = set(re.findall(r"`((?:demo-)?(?:cnn|ae|resnet|infovae|beta-vae|fig2|figd1)-[\w.-]+)`", text))
    assert named
    results = {path.name for path in (ROOT / "launch/results").glob("*.json")}
    assert named <= set(RECIPES) | results
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
