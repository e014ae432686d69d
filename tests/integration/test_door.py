"""The one door: every command by its name, from a checkout and from a wheel, and what a shell completes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from harps_dist.commands.listed import COMMANDS, names
from harps_dist.console import EXTRAS
from tests.commands import ROOT, command, environment, run

DOOR = (sys.executable, "-m", "harps_dist")


def test_the_list_names_every_command(tmp_path):
    printed = run([*DOOR], tmp_path)
    assert printed == run([*DOOR, "--help"], tmp_path)
    for group in COMMANDS.values():
        for name, what in group.items():
            assert f"  {name} " in printed
            assert what in printed
    in_files = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert in_files <= set(names())
    assert run([*DOOR, "--version"], tmp_path).startswith("harps-dist 0.")


@pytest.mark.parametrize("name", names())
def test_every_command_explains_itself(name, tmp_path):
    printed = run([*DOOR, name, "--help"], tmp_path)
    assert printed.startswith(f"usage: harps-dist {name} ")
    assert f"Example: `harps-dist {name} " in printed
    assert "traceback" not in printed.lower()


def test_a_near_miss_is_suggested(tmp_path):
    printed = run([*DOOR, "evalute"], tmp_path, expect=1)
    assert printed == (
        "ConfigError: harps-dist has no command 'evalute'. Did you mean 'evaluate'? `harps-dist --help` lists them.\n"
    )
    assert "Did you mean" not in run([*DOOR, "xyzzy"], tmp_path, expect=1)


def test_ranks_train_through_the_door(tiny_release, tmp_path):
    started = command("launch/train.py", ranks=2)
    torchrun = [*started[: started.index(next(word for word in started if str(word).endswith("train.py")))]]
    arguments = ("train", "demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 2)
    small = ("--training.batch-size", 4, "--model.width", 0.125)
    run([*torchrun, "-m", "harps_dist", *map(str, (*arguments, *small))], tmp_path)
    assert (tmp_path / "run/checkpoints/step-00000002").is_dir()


def completed(words: str, folder) -> list[str]:
    """What bash offers for the last of some words."""
    (folder / "harps-dist").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harps_dist "$@"\n')
    (folder / "harps-dist").chmod(0o755)
    script = (
        f'eval "$(harps-dist completion)"; COMP_WORDS=(harps-dist {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); '
        '_harps_dist; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    variables = environment() | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=variables, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_recipes_options_and_files(tmp_path):
    (tmp_path / "run-of-mine").mkdir()
    assert completed("e", tmp_path) == ["etc", "evaluate", "export"]
    assert "demo-cnn-mix" in completed("train demo-cnn", tmp_path)
    assert "--training.precision" in completed("train --training.p", tmp_path)
    assert completed("evaluate run", tmp_path) == ["run-of-mine"]


@pytest.mark.slow
def test_a_wheel_opens_the_door_without_the_extras(tiny_demo, tmp_path):
    """Installed into a folder of its own, away from the checkout; extras are as if they were not there."""
    source = tmp_path / "source"  # building writes beside what it builds
    for name in ("harps_dist", "preprocessing"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    variables = environment() | {"PYTHONPATH": ""}
    for step in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", str(source)],
        ["install", "--no-deps", "--no-index", "--find-links", "wheels", "--target", "site", "harps_dist"],
    ):
        subprocess.run([*pip, *step], cwd=tmp_path, env=variables, check=True)
    for name in EXTRAS:
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text(f"raise ModuleNotFoundError(name={name!r})")
    variables["PYTHONPATH"] = f"{tmp_path / 'without'}:{tmp_path / 'site'}"

    def door(*arguments: object, expect: int = 0) -> str:
        found = subprocess.run(
            [*DOOR, *map(str, arguments)], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert found.returncode == expect, found.stdout + found.stderr
        return found.stdout + found.stderr

    where = subprocess.run(
        [sys.executable, "-c", "import harps_dist; print(harps_dist.__file__)"],
        cwd=tmp_path, env=variables, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(tmp_path / "site") in where
    for name in names():
        assert f"usage: harps-dist {name} " in door(name, "--help")
    small = ("--training.steps", 2, "--training.batch-size", 4, "--model.width", 0.125)
    door("train", "demo-cnn-mix", "--data.release", tiny_demo / "release", "--out", "run", *small)
    door("evaluate", "run")
    door("export", "run", "model")
    door("predict", "model", tiny_demo / "files/spectra", "-o", "labels.csv")
    printed = door("train", "demo-cnn-mix", "--data.release", tiny_demo / "release", "--out", "other", *small,
                   "--strategy", "deepspeed", expect=1)  # fmt: skip
    assert "pip install 'harps_dist[train]'" in printed
    assert "Traceback" not in printed
