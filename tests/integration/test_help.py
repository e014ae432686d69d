"""Help of every command: a sentence for each option, an example that parses, and no torch to wait for."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import tyro

from harps_dist.commands.door import main
from harps_dist.commands.listed import OF_PREPROCESSING, names
from harps_dist.recipes import RECIPES, families
from tests.commands import run

NOTES = re.compile(r"\s*\((default: .*|required|repeatable)\)$", re.DOTALL)  # that tyro appends
SENTENCE = re.compile(r"(?!(As|Of|Those|Likewise|Also) )[A-Z].* .*\.", re.DOTALL)
EXAMPLE = re.compile(r"^ *Example: `harps-dist (.+)`\.$", re.MULTILINE)
ONE_OF_EACH = {recipe.model.kind: name for name, recipe in RECIPES.items()}  # its options are those of its model


class Asked(Exception):
    """Stands for the command line that a command asks tyro for."""


class Help(NamedTuple):
    """What a command, "promote list", explains."""

    command: str
    parser: ArgumentParser

    @property
    def options(self) -> dict[str, str]:
        """Words of every option, without what tyro appends."""
        actions = [action for action in self.parser._actions if action.option_strings != ["-h", "--help"]]
        return {
            "/".join(action.option_strings) or action.dest: NOTES.sub("", str(action.help or "").strip())
            for action in actions
        }


def parser_of(made: Any, options: dict[str, Any]) -> ArgumentParser:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        taken = {name: options[name] for name in ("description", "config", "default") if name in options}
        return tyro.extras.get_parser(made, prog="harps-dist", **taken)


def helps(*arguments: str) -> Iterator[Help]:
    """Help of a command, or of each of its subcommands."""
    asked: dict[str, tuple[Any, dict[str, Any]]] = {}

    def cli(made: Any, **options: Any) -> None:
        asked[arguments[0]] = made, options
        raise Asked

    def from_dict(made: dict[str, Callable[..., int]], **options: Any) -> None:
        whole = arguments[0] in OF_PREPROCESSING  # what is a subcommand there is a command here
        chosen = (
            {arguments[0]: made[arguments[0]]} if whole else {f"{arguments[0]} {name}": made[name] for name in made}
        )
        asked.update({name: (one, {}) for name, one in chosen.items()})
        raise Asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", cli)
        patch.setattr(tyro.extras, "subcommand_cli_from_dict", from_dict)
        patch.setattr(sys, "argv", ["harps-dist", *arguments])
        with pytest.raises(Asked):
            main()
    for command, (made, options) in asked.items():
        yield Help(command, parser_of(made, options))


CALLS = [(name,) for name in names() if name != "train"] + [("train", recipe) for recipe in ONE_OF_EACH.values()]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_option_has_a_sentence(call):
    for found in helps(*call):
        assert found.options
        for option, words in found.options.items():
            assert SENTENCE.fullmatch(words), f"harps-dist {found.command} {option}: {words!r} is no sentence"


@pytest.mark.parametrize("name", names())
def test_every_command_has_an_example_of_its_options(name):
    for found in helps(name):
        description = found.parser.description or ""
        examples = [shlex.split(line) for line in EXAMPLE.findall(description)]
        assert examples, f"harps-dist {found.command} --help shows no example"
        for words in examples:
            command = found.command.split()
            assert words[: len(command)] == command
            rest = words[len(command) :]
            found.parser.parse_args(rest[1:] if name == "train" else rest)  # a recipe is no option


def test_help_waits_for_nothing_heavy(tmp_path):
    code = f"""
import contextlib, io, sys
from harps_dist.commands.door import main
for name in {names()!r}:
    sys.argv = ["harps-dist", name, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main()
    heavy = {{"torch", "astropy", "matplotlib", "zarr", "scipy", "pyarrow"}} & set(sys.modules)
    assert not heavy, f"{{name}} --help imports {{sorted(heavy)}}"
"""
    run([sys.executable, "-c", code], tmp_path)


def test_train_lists_its_recipes_in_few_lines(tmp_path):
    printed = run([sys.executable, "-m", "harps_dist", "train", "--help"], tmp_path)
    listed = printed[printed.index("Recipes:") : printed.index("options")].splitlines()
    assert len(listed) < 12
    assert max(map(len, listed)) < 200
    assert {name for group in families().values() for name in group} == {
        name for name in RECIPES if not name.startswith("demo-")
    }


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("demo-cn-mix",), "Did you mean demo-cnn-mix, "),
        (("--training.lrate", "1e-3"), "--training.learning-rate"),
        (("--learning-rate", "1e-3"), "--training.learning-rate"),
        (("--training.bachsize", "8"), "--training.batch-size"),
    ],
)
def test_what_is_mistyped_is_found(arguments, meant, tmp_path):
    printed = run([sys.executable, "-m", "harps_dist", "train", *arguments], tmp_path, expect=None)
    assert meant in printed
    assert "Traceback" not in printed
    assert len(printed) < 3000
