"""The rule of the house: one way through its rooms, no circle, no room or file too large, and its words stand alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from harps_dist.recipes import RECIPES
from tests.commands import ROOT, environment

PRODUCT = ("harps_dist", "preprocessing", "launch")
# A module imports from its own room and from those before it. A room is a folder, or a file of harps_dist itself.
WAY = (
    *(
        "errors",
        "files",
        "version",
        "sealed",
        "text",
        "frozen",
        "columns",
        "intake",
        "ownership",
        "progress",
        "console",
    ),
    "spectra",
    *("formats", "kernels", "data", "models"),
    *("config", "recipes", "ranks", "runs"),
    "training",
    *("evaluation", "inference", "fitting"),
    *("preprocessing.simulator", "preprocessing"),
    *("benchmarks", "paper", "promotion"),
    *("cluster", "commands", "launch", "__main__"),
)
LARGEST_ROOM, LONGEST_FILE = 0.2, 400
LEANING = re.compile(r"(The same|As|Of|Those|Likewise|Also|Undoes)\b")
OPENS = {"Table.read": "harps_dist.formats.tables", "gzip.open": "harps_dist.intake"}


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    paths = sorted(path for top in PRODUCT for path in (ROOT / top).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def room(module: str) -> str:
    parts = [part for part in module.split(".") if part != "harps_dist"]
    return next((name for name in (".".join(parts[:2]), parts[0]) if name in WAY), parts[0]) if parts else ""


def imported(path: Path) -> set[str]:
    """Modules of the product that a file names in imports, those for types alone among them."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_every_module_stands_in_a_room_of_the_way():
    astray = {module for module in MODULES if room(module) not in WAY} - {"harps_dist"}
    assert not astray, f"{sorted(astray)} stand in no room. Put them into one, or name theirs in WAY."


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"harps_dist"}))
def test_imports_point_one_way(module):
    own = room(module)
    later = {found for found in imported(MODULES[module]) if room(found) in WAY[WAY.index(own) + 1 :]}
    assert not later, f"{module} stands in {own} and imports {sorted(later)}, which stand further on"


def test_no_circle():
    graph = {module: imported(path) - {module, "harps_dist"} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' -> '.join(error.args[1])}")


def test_no_room_is_too_large():
    lines = Counter[str]()
    for module, path in MODULES.items():
        lines[room(module)] += len(path.read_text(encoding="utf-8").splitlines())
    large = {
        name: f"{count / lines.total():.1%}" for name, count in lines.items() if count > LARGEST_ROOM * lines.total()
    }
    assert not large, f"above {LARGEST_ROOM:.0%} of the lines: {large}"


@pytest.mark.parametrize("path", MODULES.values(), ids=str)
def test_no_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", MODULES.values(), ids=str)
def test_docstrings_stand_alone(path):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree(path)):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        assert not (text and LEANING.match(text)), f"{path}: {text!r} leans on its neighbour. Say what it is."


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_tests_of_a_module_are_found_from_its_name(module):
    """tests/**/test_NAME.py, or where the docstring of the module or its room says."""
    path = MODULES[module]
    if path.name in ("__init__.py", "__main__.py") or path.parent.name == "launch":
        return
    if any((ROOT / "tests").rglob(f"test_{path.stem}.py")):
        return
    documents = [ast.get_docstring(tree(place)) or "" for place in (path, path.with_name("__init__.py"))]
    named = re.findall(r"tests/\w+/test_\w+\.py", " ".join(documents))
    assert named, f"no tests/**/test_{path.stem}.py, and the docstring of {path} names no other file of tests"
    for name in named:
        assert (ROOT / name).is_file(), f"{path} says that {name} tests it"


def test_files_of_others_are_opened_in_one_place():
    """A fault found in how one is opened is mended once."""
    for module, path in MODULES.items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        for opener, opens in OPENS.items():
            assert opener not in calls or module == opens, f"{module} calls {opener}, which {opens} does for all"


@pytest.mark.parametrize(
    "module",
    [
        "harps_dist.recipes",
        "preprocessing.demo",
        "harps_dist.data.manifest",
        "harps_dist.promotion.registry",
        "preprocessing.etc",  # many processes of it read files
    ],
)
def test_configuration_imports_nothing_heavy(module):
    heavy = ("torch", "astropy", "matplotlib", "zarr", "scipy", "pyarrow", "wandb")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


def test_commands_hold_no_logic():
    """Lines that explain a command or an option, for its help, may be as many as they need."""
    for path in (ROOT / "harps_dist/commands").glob("*.py"):
        commands = path.read_text().count("import console_for")  # each command of a script prints
        words = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Expr) and is_text(node.value)]
        lines = len(path.read_text().splitlines()) - sum(node.end_lineno - node.lineno + 1 for node in words)
        assert lines <= 80 + 15 * max(0, commands - 1), path
    for path in (ROOT / "launch").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 10, path


def test_the_readme_names_things_that_exist():
    pages = (ROOT / "README.md", *ROOT.glob("*/README.md"), ROOT / "launch/results/README.md")
    text = "\n".join(page.read_text() for page in pages)
    for name in re.findall(r"launch/\w+\.py|harps_dist/[\w/]+\.py", text):
        assert (ROOT / name).exists(), name
    named = set(re.findall(r"`((?:demo-)?(?:cnn|ae|resnet|infovae|beta-vae|fig2|figd1)-[\w.-]+)`", text))
    assert named
    results = {path.name for path in (ROOT / "launch/results").glob("*.json")}
    assert named <= set(RECIPES) | results
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
