"""One flipped bit in any file that is read back is an error or a word, never another result."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from harps_dist.data.ledger import read_ledger
from harps_dist.data.reader import Release
from harps_dist.errors import HarpsDistError, ResumeError
from harps_dist.evaluation.evaluate import EVALUATION, evaluate_run, is_evaluated
from harps_dist.inference.export import export_run
from harps_dist.inference.model import load
from harps_dist.inference.simulators import open_simulator
from harps_dist.paper.evaluations import Evaluations
from harps_dist.promotion.comparison import read_comparison
from harps_dist.promotion.registry import CURRENT, Registry
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.log import read_log
from harps_dist.runs.run import Run, read_run
from harps_dist.sealed import sealed
from harps_dist.training.loop import train_run
from tests.commands import command, run
from tests.made_up_models import write_comparison, write_model
from tests.unit.test_registry import GATE

NAME = "ae-mix"
WORLD = World.alone()
FLIPS = 16  # of each file, at random, besides its first and last bit
NOT_READ_BACK = (".md", ".html", ".png", ".pdf", ".csv", ".idx", ".lock")  # for people, but .idx, which verify reads


@pytest.fixture(scope="module")
def runs(tiny_release, tmp_path_factory) -> Path:
    """A folder with one run: two checkpoints, a log, a ledger and an evaluation."""
    runs, release = tmp_path_factory.mktemp("runs"), Release(tiny_release)
    recipe = find_recipe(f"demo-{NAME}").model_copy(update={"parent": None})
    recipe = recipe.changed(
        model={"width": 0.125, "decoder_width": 0.125},
        training={"steps": 4, "batch_size": 8, "warmup_steps": 0},
        log={"every": 1, "save_every": 2, "validate_every": 2, "ledger": True},
        data={"release": str(tiny_release)},
    )
    train_run(recipe, f"demo-{NAME}", release, runs / f"demo-{NAME}", WORLD)
    folder = runs / f"demo-{NAME}"
    evaluate_run(folder, release, "test", folder / EVALUATION, WORLD, Console(quiet=True))
    return runs


@pytest.fixture(scope="module")
def exported(runs, tiny_release, tmp_path_factory) -> Path:
    return export_run(runs / f"demo-{NAME}", tmp_path_factory.mktemp("exports") / "export", Release(tiny_release))


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    model = write_model(folder / "run", 1)
    Registry(folder / "models").promote(model, write_comparison(folder / "compared", model, None), GATE)
    shutil.copytree(folder / "compared", folder / "models" / "compared")
    return folder / "models"


def of_run(runs: Path, release: Path) -> list[Any]:
    folder, index = runs / f"demo-{NAME}", Release(release).index
    found: list[Any] = [read_run(folder), read_log(folder), read_ledger(folder / "ledger.jsonl", len(index))._seen]
    for which in ("newest", "best"):
        opened = Run(folder)
        model, checkpoint = opened.model(which), opened.checkpoint(which)
        found += [checkpoint.state, model.state_dict(), checkpoint.moments()]
    evaluations = Evaluations(runs, demo=True)
    for kind in ("real", "simulated", "generative"):
        found += [evaluations.scores(NAME, kind), evaluations.predictions(NAME, kind)]
        found += [evaluations.table(NAME, kind, "spectrum.parquet")]
    if not is_evaluated(folder, Release(release), "test"):
        raise HarpsDistError("it would be evaluated again")
    return found


def of_export(folder: Path, release: Path) -> list[Any]:
    exported = load(folder)
    reference = exported.reference.tensors() if exported.reference else {}
    return [exported.description, exported.model.state_dict(), reference, open_simulator(folder).id]


def of_registry(folder: Path, release: Path) -> list[Any]:
    current = folder / CURRENT
    opened = Run(current)
    model, checkpoint = opened.identity(), opened.checkpoint()
    weights = load_file(checkpoint.path / "model.safetensors")
    return [Registry(folder).events(), model, checkpoint.state, weights, read_comparison(folder / "compared")]


def of_release(folder: Path, _: Path) -> list[Any]:
    release = Release(folder)
    arrays = [release.array(row) for row in range(len(release.index))]
    coefficients = [release.coefficients(row) for row in release.index.rows("simulated")]
    columns = {name: release.index[name] for name in release.index._columns if name != "coefficients"}
    return [release.manifest, columns, arrays, coefficients]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return bool(one == other) or repr(one) == repr(other)  # NaN


def flip_bits(folder: Path, read: Callable[[Path, Path], list[Any]], release: Path) -> None:
    """Flip bits one by one in every file below a folder that is read back."""
    whole, draw, noticed = read(folder, release), np.random.default_rng(17), 0
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.suffix not in NOT_READ_BACK and path.name != ".lock"]
    assert files
    for path in files:
        content = path.read_bytes()
        path.chmod(0o644)
        bits = 8 * len(content)
        for bit in {0, bits - 1, *draw.integers(bits, size=FLIPS).tolist()}:
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    found = read(folder, release)
                except HarpsDistError:
                    noticed += 1
                    continue
                finally:
                    path.write_bytes(content)
            assert told or same(found, whole), f"bit {bit} of {path} made another result"
    assert noticed > FLIPS * len(files) / 2


@pytest.mark.parametrize("what", ["run", "export", "registry", "release"])
def test_a_flipped_bit_is_an_error_or_a_word(what, tmp_path, request, tiny_release):
    fixture = {"run": "runs", "export": "exported", "registry": "registry", "release": "tiny_release"}[what]
    read = {"run": of_run, "export": of_export, "registry": of_registry, "release": of_release}[what]
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(fixture), folder, symlinks=True)
    flip_bits(folder, read, tiny_release)


@pytest.mark.parametrize("which", ["newest", "best"])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_no_command_takes_an_older_checkpoint_for_a_damaged_one(runs, tiny_release, tmp_path, which, file):
    folder = tmp_path / "run"
    shutil.copytree(runs / f"demo-{NAME}", folder)
    path = folder / "checkpoints" / "step-00000004" / file
    if which == "best":
        path = Run(folder).checkpoint("best").path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    release, before = Release(tiny_release), sorted(folder.rglob("*"))
    tries: list[Callable[[], object]] = [
        lambda: Run(folder).model(which, on=release.manifest),
        lambda: Run(folder).identity(which),
        lambda: evaluate_run(folder, release, "test", folder / EVALUATION, WORLD, Console(quiet=True), which),
        lambda: export_run(folder, tmp_path / "export", release, which),
        lambda: open_simulator(folder, which),
    ]
    for attempt in tries:
        with pytest.raises(ResumeError, match=f"the {which} checkpoint of .* is damaged: .*{path.name}"):
            attempt()
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "export").exists()


def test_a_resumed_training_says_what_it_passes_over_and_learns_the_same(runs, tiny_release, tmp_path):
    shutil.copytree(runs / f"demo-{NAME}", tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-00000004/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    log = tmp_path / "run/log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0].replace('"step": 1', '"step": 3') + "".join(lines[1:]))
    settings = (
        "--model.width",
        0.125,
        "--model.decoder-width",
        0.125,
        "--training.steps",
        4,
        "--training.batch-size",
        8,
    )
    settings += ("--training.warmup-steps", 0, "--log.every", 1, "--log.save-every", 2, "--log.validate-every", 2)
    arguments = (f"demo-{NAME}", "--parent", "None", "--data.release", tiny_release, "--out", "run", "--log.ledger")
    said = run(command("launch/train.py", *arguments, *settings), tmp_path)
    assert "passed over a checkpoint" in said
    assert "step-00000004/model.safetensors is damaged" in said
    assert "line 1 of run/log.jsonl is damaged: it is left out" in said
    assert path.read_bytes() == whole
    for file in (tmp_path / "run/checkpoints").rglob("model.safetensors"):
        file.write_bytes(b"")
    said = run(command("launch/train.py", *arguments, *settings), tmp_path, expect=1)
    assert "has checkpoints, but none is whole" in said


def test_a_recipe_of_another_run_is_noticed(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / f"demo-{NAME}", folder)
    content = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sealed(content | {"release_digest": "0" * 64})))
    with pytest.raises(ResumeError, match=r"written for release .* not of the same run"):
        Run(folder).model()
    shutil.move(folder / "checkpoints/step-00000004", folder / "checkpoints/step-00000005")
    with pytest.raises(ResumeError, match="it is of step 4"):
        Run(folder).model()
